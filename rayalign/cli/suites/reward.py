"""`rayalign evaluate PLACE --suite reward`."""

from __future__ import annotations

import argparse

from rayalign.cli.parser import add_model_options
from rayalign.cli.suites import Suite
from rayalign.cli.suites.data import add_data_options, data_source, tell_reward


def _add_options(evaluate: argparse.ArgumentParser) -> None:
    add_data_options(evaluate, "--pairs", "{prompt, chosen, rejected}, as data.preferences")
    add_model_options(evaluate)


def _run(parsed: argparse.Namespace) -> None:
    source = data_source(parsed, parsed.pairs, "--pairs")
    tell_reward(parsed.place)
    from rayalign.suites.reward import evaluate_reward, table

    file, results = evaluate_reward(
        parsed.place,
        source,
        out=parsed.out,
        threads=parsed.threads,
        chat_template=parsed.chat_template,
        trust_remote_code=parsed.trust_remote_code,
    )
    print("\n".join(table(results)))
    print(f"evaluation: {file}")


REWARD = Suite(
    "reward",
    "the share of pairs that a reward ranks as people did",
    "The share of pairs ranked right, by section and subset (RewardBench's form), ties, calibration, and whether the\n"
    "reward goes by length. PLACE holds any reward: a run's, a stage's, a Hugging Face model's.",
    _add_options,
    _run,
)

"""`rayalign evaluate PLACE --suite reward`."""

from __future__ import annotations

import argparse

from rayalign.cli.parser import add_model_options, count
from rayalign.cli.suites import Suite
from rayalign.config.load import parse_as
from rayalign.errors import UserError


def _add_options(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("--pairs", required=True, metavar="FILE", help="{prompt, chosen, rejected}, as data.preferences")
    evaluate.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="names of the columns, if others")
    evaluate.add_argument("--limit", type=count, metavar="N", help="the first N rows")
    add_model_options(evaluate)


def _run(parsed: argparse.Namespace) -> None:
    from rayalign.config.data import DataSource
    from rayalign.suites.reward import evaluate_reward, table

    columns = dict(word.split("=", 1) for word in parsed.columns if "=" in word)
    if len(columns) < len(parsed.columns):
        raise UserError(f"--columns {' '.join(parsed.columns)}: give OURS=THEIRS, such as prompt=question")
    source = parse_as(DataSource, {"path": parsed.pairs, "columns": columns, "limit": parsed.limit}, "--pairs")
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

"""`rayalign evaluate` and `rayalign compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rayalign.cli.parser import Parser, add_command, add_model_options, count
from rayalign.config.load import parse_as
from rayalign.errors import UserError


def add_evaluate(commands: argparse._SubParsersAction[Parser]) -> None:
    evaluate = add_command(
        commands,
        "evaluate",
        "measure a reward on pairs that people ranked",
        "Suite reward: the share of pairs ranked right, by section and subset (RewardBench's form), ties,\n"
        "calibration, and whether the reward goes by length. PLACE holds any reward: a run's, a stage's, a Hugging\n"
        "Face model's. The results are added to evaluation.json in PLACE.",
        about="",
    )
    evaluate.add_argument("place", type=Path, metavar="PLACE", help="a run's folder, a stage's reward, or a model's")
    evaluate.add_argument("--suite", choices=["reward"], required=True, help="what to measure")
    evaluate.add_argument("--pairs", required=True, metavar="FILE", help="{prompt, chosen, rejected}, as data.preferences")
    evaluate.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="names of the columns, if others")
    evaluate.add_argument("--limit", type=count, metavar="N", help="the first N rows")
    evaluate.add_argument("--out", type=Path, metavar="FILE", help="adds the results to this file instead")
    add_model_options(evaluate)
    evaluate.set_defaults(run=_evaluate)


def add_compare(commands: argparse._SubParsersAction[Parser]) -> None:
    compare = add_command(
        commands,
        "compare",
        "put evaluations side by side",
        "A table of what suites measured in each PLACE, differences to the first, pair by pair, with\n"
        "intervals, and what differs in the runs' configs.",
        about="",
    )
    compare.add_argument("places", nargs="+", type=Path, metavar="PLACE", help="folders with an evaluation.json")
    compare.set_defaults(run=_compare)


def _evaluate(parsed: argparse.Namespace) -> None:
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


def _compare(parsed: argparse.Namespace) -> None:
    from rayalign.suites.compare import compare

    print("\n".join(compare(parsed.places)))

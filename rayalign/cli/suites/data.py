"""What several suites ask for: a place, told before anything heavy is imported, and a file of rows."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rayalign.cli.parser import count
from rayalign.config.data import DataSource
from rayalign.config.load import parse_as
from rayalign.errors import UserError


def add_data_options(evaluate: argparse.ArgumentParser, option: str, about: str) -> None:
    """The file, the names of its columns, and how many rows; `data_source` reads them."""
    evaluate.add_argument(option, required=True, metavar="FILE", help=about)
    evaluate.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="names of the columns, if others")
    evaluate.add_argument("--limit", type=count, metavar="N", help="the first N rows")


def tell_policy(place: Path) -> None:
    """Which of a run's policies is measured, before the work. Raises UserError for a place without one."""
    from rayalign.serving.places import find_policy

    _tell("policy", place, find_policy(place))


def tell_reward(place: Path) -> None:
    """As `tell_policy`, of rewards."""
    from rayalign.serving.places import find_reward

    _tell("reward", place, find_reward(place))


def _tell(role: str, place: Path, found: Path) -> None:
    if found != place.expanduser():
        print(f"{role} of {place}: {found}", flush=True)


def data_source(parsed: argparse.Namespace, path: str, option: str) -> DataSource:
    """What they ask for. Raises UserError for columns that are no pairs, and for a path that is none."""
    columns = dict(word.split("=", 1) for word in parsed.columns if "=" in word)
    if len(columns) < len(parsed.columns):
        raise UserError(f"--columns {' '.join(parsed.columns)}: give OURS=THEIRS, such as prompt=question")
    path = os.path.expanduser(path)
    return parse_as(DataSource, {"path": path, "columns": columns, "limit": parsed.limit}, option)

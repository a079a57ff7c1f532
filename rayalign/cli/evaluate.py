"""`rayalign evaluate` and `rayalign compare`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayalign.cli.parser import EXIT_CODES, Parser, add_command
from rayalign.cli.suites import Suite
from rayalign.cli.suites.generation import GENERATION
from rayalign.cli.suites.ifeval import IFEVAL
from rayalign.cli.suites.lm_eval import LM_EVAL
from rayalign.cli.suites.mt_bench import MT_BENCH
from rayalign.cli.suites.reward import REWARD

SUITES = {suite.name: suite for suite in (REWARD, GENERATION, MT_BENCH, IFEVAL, LM_EVAL)}


def add_evaluate(commands: argparse._SubParsersAction[Parser]) -> None:
    """`rayalign evaluate`."""
    listed = "\n".join(f"  {suite.name:<12} {suite.summary}" for suite in SUITES.values())
    evaluate = add_command(
        commands,
        "evaluate",
        "measure a saved reward or policy",
        "Measures what a run, or a model's folder, holds. The results are added to evaluation.json in PLACE.",
        about=f"suites:\n{listed}\n  `rayalign evaluate --suite NAME --help` shows the options of one.",
    )
    _add_common(evaluate)
    evaluate.by_choice = _of_the_suite


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", type=Path, metavar="PLACE", help="a run's folder, a stage's model, or any model's")
    parser.add_argument("--suite", choices=list(SUITES), required=True, help="what to measure")
    parser.add_argument("--out", type=Path, metavar="FILE", help="adds the results to this file instead")


def _of_the_suite(arguments: Sequence[str]) -> Parser | None:
    """The parser with the options of the suite that is named; None where none is, which `evaluate` itself tells."""
    asked = Parser(add_help=False, exit_on_error=False)
    asked.add_argument("--suite", choices=list(SUITES))
    try:
        known, _ = asked.parse_known_args(list(arguments))
    except argparse.ArgumentError:
        return None
    return None if known.suite is None else _OfSuite(SUITES[known.suite])


class _OfSuite(Parser):
    """PLACE, what all suites take, and the options of one; another's is told by the name of its suite."""

    def __init__(self, suite: Suite) -> None:
        super().__init__(
            prog=f"rayalign evaluate --suite {suite.name}",
            description=suite.description,
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._suite = suite
        _add_common(self)
        suite.add_options(self)
        self.set_defaults(run=suite.run)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """All of them: what is left over is an error here, which knows the suite."""
        self._refuse_others(args or ())
        known, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return known, []

    def _refuse_others(self, arguments: Sequence[str]) -> None:
        """Before what is missing is told: who gives another suite's option has mistaken the suite."""
        for word in arguments:
            option = word.split("=", 1)[0]
            if option.startswith("--") and option not in self._option_string_actions:
                owners = [name for name, suite in SUITES.items() if option in _options_of(suite)]
                if owners:
                    self.error(f"{option} goes with --suite {' or '.join(owners)}, not with {self._suite.name}")


def _options_of(suite: Suite) -> set[str]:
    parser = argparse.ArgumentParser(add_help=False)
    suite.add_options(parser)
    return set(parser._option_string_actions)


def add_compare(commands: argparse._SubParsersAction[Parser]) -> None:
    """`rayalign compare`."""
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


def _compare(parsed: argparse.Namespace) -> None:
    from rayalign.suites.compare import compare

    print("\n".join(compare(parsed.places)))

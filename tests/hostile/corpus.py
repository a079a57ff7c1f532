"""The kinds of hostile input, how many of each the tests run, and the one loop that runs them."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.hostile import configs, data_files, data_rows, run_folders, texts
from tests.hostile.judge import Case, Verdict, judge

# The strategy, and how many cases of it the tests run.
KINDS: dict[str, tuple[Callable[[], st.SearchStrategy[Case]], int]] = {
    "config values moved": (configs.damaged, 250),
    "config types": (configs.of_wrong_type, 200),
    "config numbers": (configs.with_a_number, 200),
    "config unknown keys": (configs.with_an_unknown_key, 200),
    "config references": (configs.references, 150),
    "config names": (texts.names, 100),
    "config paths": (texts.with_a_strange_path, 100),
    "config YAML": (texts.with_a_snippet, 200),
    "config bytes": (texts.with_damaged_bytes, 150),
    "config overrides": (texts.with_an_override, 150),
    "config extends": (texts.extending, 27),
    "config files": (texts.configs_that_are_none, 45),
    "data rows of nonsense": (data_rows.with_a_row_of_nonsense, 200),
    "data any rows": (data_rows.with_any_row, 150),
    "data bytes": (data_files.with_damaged_bytes, 200),
    "data tables": (data_files.with_a_damaged_table, 150),
    "data something else": (data_files.that_are_something_else, 200),
    "data folders": (data_files.folders, 100),
    "data settings": (data_files.settings_of_sources, 100),
    "run folders": (run_folders.damaged, 80),
}


def run_cases(kind: str, num: int, random_seed: int | None = None) -> list[Verdict]:
    """The verdicts on at most `num` cases of a kind: always the same ones, or those of a seed."""
    strategy, _ = KINDS[kind]
    found: list[Verdict] = []

    @settings(
        max_examples=num,
        derandomize=random_seed is None,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy())
    def one(case: Case) -> None:
        found.append(judge(case))

    (one if random_seed is None else seed(random_seed)(one))()
    return found

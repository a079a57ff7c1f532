"""What was measured of a run's models, as rows for a card: from the last evaluate stage, and from evaluation.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayalign.report.results import Estimate, estimates_below
from rayalign.sharing.found import SharedModel, SharedRun
from rayalign.storage.evaluation import EVALUATION_FILE, content_of, read_evaluation

MAX_ROWS = 60


@dataclass(frozen=True)
class Row:
    """One estimate by its place in the results: mean with a 95% interval, and over how many."""

    name: str
    estimate: Estimate

    @property
    def mean(self) -> str:
        """For a table."""
        return f"{self.estimate.mean:.4g}"

    @property
    def interval(self) -> str:
        """Empty where it is not known."""
        low, high = self.estimate.low, self.estimate.high
        return "" if math.isnan(low) or math.isnan(high) else f"{low:.4g} to {high:.4g}"


@dataclass(frozen=True)
class Measured:
    """A table: where its numbers are from, and its rows."""

    source: str
    rows: list[Row]
    num_left_out: int


def of_stages(results: Mapping[str, Any] | None) -> Measured | None:
    """Of results.json, as the evaluate stage writes it."""
    return _table("the run's last evaluate stage", results) if results else None


def of_suites(run: SharedRun, model: SharedModel) -> list[Measured]:
    """What suites measured of this very model, by the hashes of its files; what they measured of others is left out."""
    content, found = content_of(model.folder), []
    for folder in dict.fromkeys((run.folder, model.folder)):
        for name, suite in read_evaluation(folder / EVALUATION_FILE)["suites"].items():
            told = suite.get("model") if isinstance(suite, dict) else None
            if isinstance(told, dict) and told.get("content") == content:
                table = _table(f"rayalign evaluate --suite {name}", suite.get("results"))
                found += [table] if table else []
    return found


def _table(source: str, results: Any) -> Measured | None:
    rows = [Row(" / ".join(path), found) for path, found in estimates_below(results)]
    return Measured(source, rows[:MAX_ROWS], max(0, len(rows) - MAX_ROWS)) if rows else None

"""How often a reward ranks a pair as people did: by section and subset, calibrated or not, and whether it goes by length.

A margin is r(chosen) - r(rejected). A tie counts half everywhere, and is counted beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayalign.evaluate.statistics import accuracy_interval

RIGHT = {"1": 1.0, "0": 0.0, "=": 0.5}  # of a pair: ranked right, wrong, a tie
NUM_BINS = 10  # of confidence, from a half to 1
LENGTH_EDGES = (-0.7, -0.2, 0.2, 0.7)  # of log(chosen / rejected): half as long, as long within a fifth, twice as long
LENGTH_NAMES = (
    "chosen at most half as long",
    "chosen shorter",
    "within a fifth of each other",
    "chosen longer",
    "chosen at least twice as long",
)


@dataclass(frozen=True)
class ScoredPairs:
    """N pairs: scores and response tokens of both sides [N], and where each belongs."""

    chosen: np.ndarray
    rejected: np.ndarray
    chosen_lengths: np.ndarray
    rejected_lengths: np.ndarray
    sections: Sequence[str]
    subsets: Sequence[str]

    @property
    def margins(self) -> np.ndarray:
        """r(chosen) - r(rejected) [N]."""
        return np.asarray(self.chosen, np.float64) - np.asarray(self.rejected, np.float64)


def reward_accuracy(pairs: ScoredPairs) -> dict[str, Any]:
    """The results as evaluation.json holds them; `right` has a mark of RIGHT for each pair.

    `score` is the mean of the sections' accuracies, and a section's that of its pairs, as RewardBench weights them
    (Lambert et al. 2024, arXiv 2403.13787, section 4.2, without the older test sets).
    """
    margins = pairs.margins
    sections = {name: _section(pairs, margins, name) for name in sorted(set(pairs.sections))}
    return {
        "score": float(np.mean([section["accuracy"]["mean"] for section in sections.values()])),
        **_accuracy(margins),
        "sections": sections,
        "calibration": calibration(margins),
        "length": length_reliance(margins, pairs.chosen_lengths, pairs.rejected_lengths),
        "right": "".join("1" if margin > 0 else "0" if margin < 0 else "=" for margin in margins),
    }


def calibration(margins: np.ndarray) -> dict[str, Any]:
    """Whether sigma(|margin|) is the share ranked right: the curve by bins, and the expected calibration error.

    The error is the mean over pairs of |accuracy - confidence| of their bin (Guo et al. 2017, eq. 3), on the scale that a
    Bradley-Terry reward has; a reward on another scale may rank well and be calibrated badly.
    """
    confidence = 1.0 / (1.0 + np.exp(-np.abs(margins)))
    right = (np.sign(margins) + 1.0) / 2.0
    places = np.minimum(((confidence - 0.5) * 2 * NUM_BINS).astype(int), NUM_BINS - 1)
    curve, error = [], 0.0
    for place in range(NUM_BINS):
        rows = places == place
        if rows.any():
            confident, accurate, num = float(confidence[rows].mean()), float(right[rows].mean()), int(rows.sum())
            curve.append({"confidence": confident, "accuracy": accurate, "num": num})
            error += num / len(margins) * abs(accurate - confident)
    return {"curve": curve, "expected_error": error}


def length_reliance(margins: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> dict[str, Any]:
    """Accuracy by how much longer the chosen side is, what preferring the longer side would get, and the rank correlation
    of the margin with the difference in length: a reward that goes by length is right where the chosen one is long."""
    ratios = np.log(np.maximum(chosen, 1) / np.maximum(rejected, 1))
    places = np.digitize(ratios, LENGTH_EDGES)
    present = [(name, places == place) for place, name in enumerate(LENGTH_NAMES) if (places == place).any()]
    return {
        "by_ratio": {name: _accuracy(margins[rows]) for name, rows in present},
        "longer_side": _accuracy(ratios),
        "rank_correlation": rank_correlation(margins, ratios),
    }


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's, ties by their mean rank; None where one of the two does not vary."""
    a, b = (_ranks(np.asarray(values, np.float64)) for values in (first, second))
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _section(pairs: ScoredPairs, margins: np.ndarray, name: str) -> dict[str, Any]:
    rows = np.array([section == name for section in pairs.sections])
    subsets = sorted({subset for subset, own in zip(pairs.subsets, rows, strict=True) if own})
    of_subset = {subset: rows & np.array([other == subset for other in pairs.subsets]) for subset in subsets}
    return _accuracy(margins[rows]) | {
        "subsets": {subset: _accuracy(margins[own]) for subset, own in of_subset.items()}
    }


def _accuracy(margins: np.ndarray) -> dict[str, Any]:
    mean = float((np.sign(margins) + 1).mean() / 2)  # the interval's own is of whole numbers
    return {"accuracy": accuracy_interval(margins).as_dict() | {"mean": mean}, "num_ties": int((margins == 0).sum())}


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2.0)[places])

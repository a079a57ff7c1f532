"""`rayalign evaluate PLACE --suite reward`: how often a reward ranks pairs as people did, in RewardBench's form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rayalign.config.data import DataSource
from rayalign.data import shapes
from rayalign.data.files import Place, PlacedRow
from rayalign.data.fingerprint import fingerprint
from rayalign.data.sources import could_be_hub_name, read_rows
from rayalign.data.tally import Tally
from rayalign.data.tokenize import tokenize_preferences
from rayalign.errors import DataError
from rayalign.evaluate.reward_accuracy import ScoredPairs, reward_accuracy
from rayalign.serving.places import find_reward
from rayalign.serving.saved import SavedReward, pin_threads
from rayalign.storage.evaluation import record
from rayalign.suites.place import evaluation_file

SUITE = "reward"
OTHERS = "all"  # the section of rows that name none


def evaluate_reward(
    place: Path,
    pairs: DataSource,
    *,
    out: Path | None = None,
    threads: int | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Scores both sides of every pair, and adds the results to evaluation.json; that file, and the results.

    Args:
        place: a run's folder, a stage's reward, or any Hugging Face reward model's folder.
        pairs: a preference file; its columns `section` and `subset`, where there are any, group the pairs.
        out: the file; evaluation.json in `place` if unset.

    Raises UserError for a place without a reward, DataError for rows that are no pairs.
    """
    folder = find_reward(place)
    file = evaluation_file(place, out)
    labels: dict[Place, tuple[str, str]] = {}
    tally = Tally()
    rows = list(shapes.preferences(_labelled(read_rows(pairs, resolve=_local), labels), tally=tally))
    if not rows:
        raise DataError(f"{pairs.path}: no row is left ({tally})")
    pin_threads(threads)
    reward = SavedReward(folder, chat_template=chat_template, trust_remote_code=trust_remote_code)
    places, preferences = zip(*rows, strict=True)
    chosen, rejected = tokenize_preferences(
        preferences, reward.template, max_length=reward.max_length, overlong="truncate", places=places, tally=tally
    )
    sections, subsets = zip(*(labels[place] for place in places), strict=True)
    scored = ScoredPairs(
        chosen=reward.score(chosen),
        rejected=reward.score(rejected),
        chosen_lengths=chosen.response_lengths,
        rejected_lengths=rejected.response_lengths,
        sections=sections,
        subsets=subsets,
    )
    bad = np.flatnonzero(~np.isfinite(scored.margins))
    if len(bad):
        raise DataError(f"{places[bad[0]]}: its score is not a finite number ({len(bad)} such pairs); is the reward whole?")
    results = reward_accuracy(scored) | {"left_out": str(tally)}
    data = {"path": pairs.path, "fingerprint": fingerprint(preferences), "num_rows": len(preferences)}
    record(file, SUITE, results, model=folder, data=data)
    return file, results


def _local(path: str) -> Path | str:
    return path if could_be_hub_name(path) else Path(path).expanduser()


def _labelled(rows: Iterator[PlacedRow], labels: dict[Place, tuple[str, str]]) -> Iterator[PlacedRow]:
    """The rows; on the way their section and subset go into `labels`."""
    for place, row in rows:
        section = str(row.get("section") or OTHERS)
        labels[place] = (section, str(row.get("subset") or section))
        yield place, row


def table(results: dict[str, Any]) -> list[str]:
    """Lines for a terminal."""
    lines = [f"{'section':<34} {'pairs':>6} {'accuracy':>9}  95% interval     ties"]
    for section, found in results["sections"].items():
        lines.append(_line(section, found))
        if list(found["subsets"]) != [section]:
            lines += [_line(f"  {subset}", one) for subset, one in found["subsets"].items()]
    lines.append(_line("every pair", results))
    lines.append(f"score (mean of the sections): {results['score']:.3f}")
    length, calibration = results["length"], results["calibration"]
    reliance = length["rank_correlation"]
    told = "does not vary" if reliance is None else f"{reliance:+.2f}"
    longer = length["longer_side"]["accuracy"]["mean"]
    lines.append(f"rank correlation of margin and length: {told}; the longer side is the chosen one in {longer:.1%}")
    lines.append(f"expected calibration error: {calibration['expected_error']:.3f}")
    return lines


def _line(name: str, found: dict[str, Any]) -> str:
    accuracy = found["accuracy"]
    interval = f"{accuracy['low']:.3f} to {accuracy['high']:.3f}"
    return f"{name:<34} {accuracy['num']:>6} {accuracy['mean']:>9.3f}  {interval}  {found['num_ties']:>6}"

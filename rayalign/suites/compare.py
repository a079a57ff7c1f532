"""`rayalign compare PLACE PLACE ...`: evaluations side by side, each against the first, and what differs in the configs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from rayalign.errors import UserError
from rayalign.evaluate.reward_accuracy import RIGHT
from rayalign.evaluate.statistics import paired_difference
from rayalign.storage.differences import differences
from rayalign.storage.evaluation import EVALUATION_FILE, STAGE_SUITE, read_evaluation
from rayalign.storage.run_folder import CONFIG_FILE
from rayalign.suites import generation_table, harness_table, ifeval_table, stage_table
from rayalign.suites.mt_bench import tables as mt_bench_tables

Table = Callable[[dict[str, dict[str, Any]]], list[str]]  # of each place's evaluation, by its name
WIDTH = 24
OF_THE_NAME = ("name", "run_dir")  # differ between any two runs


def compare(places: Sequence[Path]) -> list[str]:
    """Lines for a terminal. Raises UserError for fewer than two places, and for one without an evaluation."""
    if len(places) < 2:
        raise UserError("compare: give two places or more, each with an evaluation.json")
    if twice := [place for number, place in enumerate(places) if place in places[:number]]:
        raise UserError(f"compare: {twice[0]} is given twice; give two places or more that differ")
    found = {_name(place, places): _suites(place) for place in places}
    known = (suite for suite in next(iter(found.values())) if suite in TABLES or suite.startswith(STAGE_SUITE))
    common = [suite for suite in known if all(suite in suites for suites in found.values())]
    if not common:
        told = "; ".join(f"{name} has {', '.join(suites)}" for name, suites in found.items())
        raise UserError(f"compare: no suite was run on all of them ({told}); run rayalign evaluate on each")
    lines: list[str] = []
    for suite in common:
        try:
            lines += _table(suite)({name: suites[suite] for name, suites in found.items()})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"compare: an evaluation of suite {suite} is not whole ({type(error).__name__}: {error}); run rayalign "
                "evaluate again on each"
            ) from None
    return lines + _configs(places)


def _table(suite: str) -> Table:
    return stage_table.comparison if suite.startswith(STAGE_SUITE) else TABLES[suite]


def _suites(place: Path) -> dict[str, Any]:
    file = place.expanduser()
    file = file / EVALUATION_FILE if file.is_dir() else file
    suites: dict[str, Any] = read_evaluation(file)["suites"]
    if not suites:
        raise UserError(f"{place}: holds no evaluation; run rayalign evaluate {place} --suite NAME")
    return suites


def _name(place: Path, places: Sequence[Path]) -> str:
    """Its last part, or all of it where another one ends alike."""
    alone = [other.name for other in places].count(place.name) == 1
    return place.name if alone and place.name else str(place)


def _reward(found: dict[str, dict[str, Any]]) -> list[str]:
    """Accuracies, with the paired difference to the first where the pairs are the same."""
    names, first = list(found), next(iter(found.values()))
    data = first["data"]
    lines = [f"reward: {data['num_rows']} pairs of {data['path']}, fingerprint {data['fingerprint'][:8]}"]
    others = [name for name in names[1:] if found[name]["data"]["fingerprint"] != data["fingerprint"]]
    if others:
        lines.append(f"  measured on other pairs, and so without a difference: {', '.join(others)}")
    lines.append(f"  {'':<{WIDTH}}" + "".join(f"{name:>{WIDTH}}" for name in names))
    rows = [("score", [f"{one['results']['score']:.3f}" for one in found.values()])]
    rows.append(("every pair", [_interval(one["results"]) for one in found.values()]))
    for section in first["results"]["sections"]:
        own = [one["results"]["sections"].get(section) for one in found.values()]
        rows.append((f"  {section}", ["" if one is None else _interval(one) for one in own]))
    errors = [f"{one['results']['calibration']['expected_error']:.3f}" for one in found.values()]
    rows.append(("calibration error", errors))
    lines += [f"  {name:<{WIDTH}}" + "".join(f"{cell:>{WIDTH}}" for cell in cells) for name, cells in rows]
    lines += [_difference(names[0], name, first, found[name]) for name in names[1:] if name not in others]
    return lines


def _interval(found: dict[str, Any]) -> str:
    accuracy = found["accuracy"]
    return f"{accuracy['mean']:.3f} ({accuracy['low']:.3f}-{accuracy['high']:.3f})"


def _difference(first_name: str, name: str, first: dict[str, Any], second: dict[str, Any]) -> str:
    a, b = ([RIGHT[mark] for mark in one["results"]["right"]] for one in (second, first))
    found = paired_difference(a, b)
    told = found.difference
    verdict = "" if found.excludes_zero else "; 0 is within it, so neither is shown to be better"
    interval = f"95% interval {told.low:+.3f} to {told.high:+.3f}{verdict}"
    return f"  {name} minus {first_name}, pair by pair: {told.mean:+.3f} ({interval})"


def _configs(places: Sequence[Path]) -> list[str]:
    """What each run's config has that the first one's has not."""
    configs = {place: file for place in places if (file := place.expanduser() / CONFIG_FILE).is_file()}
    if len(configs) < 2:
        return []
    values = {place: yaml.safe_load(file.read_text(encoding="utf-8")) for place, file in configs.items()}
    (base, settings), *others = values.items()
    lines = []
    for place, own in others:
        changed = [one for one in differences(settings, own) if one.split(" ", 1)[0] not in OF_THE_NAME]
        lines.append(f"config of {place} against {base}: {'; '.join(changed) or 'the same'}")
    return lines


TABLES: dict[str, Table] = {
    "reward": _reward,
    "generation": generation_table.comparison,
    "mt-bench": mt_bench_tables.comparison,
    "ifeval": ifeval_table.comparison,
    "lm-eval": harness_table.comparison,
}

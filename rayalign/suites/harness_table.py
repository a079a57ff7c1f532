"""What suite `lm-eval` found, for a terminal: of one policy, and of several side by side."""

from __future__ import annotations

from typing import Any

from rayalign.evaluate.statistics import paired_bootstrap
from rayalign.storage.evaluation import unpacked
from rayalign.suites.columns import Row, difference, interval, side_by_side

NAME = 40


def table(results: dict[str, Any]) -> list[str]:
    """A line a metric of each task, and of each group."""
    lines = [f"{'task':<{NAME}} {'metric':<28} {'shots':>5} {'rows':>6}  value, 95% interval"]
    for name, found in results["tasks"].items():
        for metric, value in found["metrics"].items():
            shots = "" if found["num_fewshot"] is None else found["num_fewshot"]
            lines.append(f"{name:<{NAME}} {metric:<28} {shots:>5} {found['num']:>6}  {interval(value, 4)}")
    for name, metrics in results["groups"].items():
        lines += [f"{name:<{NAME}} {metric:<28} {'':>5} {'':>6}  {interval(one, 4)}" for metric, one in metrics.items()]
    settings = results["settings"]
    told = f"lm_eval {results['lm_eval_version']}, backend {settings['backend']}, seed {settings['seed']}"
    return [*lines, told if settings["limit"] is None else f"{told}; the first {settings['limit']} rows only, so no result"]


def comparison(found: dict[str, dict[str, Any]]) -> list[str]:
    """Lines on several evaluations; differences to the first for tasks whose questions were the same."""
    names, first = list(found), next(iter(found.values()))["results"]
    results = [one["results"] for one in found.values()]
    rows: list[Row] = []
    for task, own in first["tasks"].items():
        for metric in own["metrics"]:
            cells = [one["tasks"].get(task, {}).get("metrics", {}).get(metric) for one in results]
            rows.append((f"{task} {metric}", ["" if cell is None else interval(cell) for cell in cells]))
    lines = ["lm-eval:", *side_by_side(names, rows)]
    for name, one in zip(names[1:], results[1:], strict=True):
        for task, own in first["tasks"].items():
            lines += _differences(names[0], name, task, own, one["tasks"].get(task))
    return lines


def _differences(
    first_name: str, name: str, task: str, first: dict[str, Any], second: dict[str, Any] | None
) -> list[str]:
    if second is None:
        return []
    if second["hash"] != first["hash"]:
        return [f"  {name}: {task} was asked otherwise, and so without a difference"]
    lines = []
    for metric, values in first["by_document"].items():
        if metric in second["by_document"]:
            pair = paired_bootstrap(unpacked(second["by_document"][metric]), unpacked(values))
            lines.append(difference(name, first_name, pair, of=f"{task} {metric}", by="row"))
    return lines

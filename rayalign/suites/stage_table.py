"""What `evaluate` stages of several runs found, side by side."""

from __future__ import annotations

from typing import Any

from rayalign.evaluate.statistics import paired_bootstrap
from rayalign.storage.evaluation import unpacked
from rayalign.suites.columns import Row, difference, interval, seeds, side_by_side, unlike

MEASURES = {"golden": "golden reward", "reward": "learned reward"}


def comparison(found: dict[str, dict[str, Any]]) -> list[str]:
    """Lines on several evaluations: each model at each temperature that all have, and differences prompt by prompt.

    Of learned rewards no difference is told: each run has its own, on a scale of its own.
    """
    names, first = list(found), next(iter(found.values()))
    data, results = first["data"], [one["results"] for one in found.values()]
    lines = [f"evaluate: {data['num_rows']} prompts of {data['path']}, fingerprint {data['fingerprint'][:8]}"]
    cells = [(model, t) for model, by_t in results[0]["models"].items() for t in by_t]
    common = [(model, t) for model, t in cells if all(t in one["models"].get(model, {}) for one in results)]
    if not common:
        return [*lines, "  no model was evaluated at one temperature in all of them"]
    lines += side_by_side(names, [row for cell in common for row in _rows(results, *cell)])
    for name in names[1:]:
        if found[name]["data"]["fingerprint"] != data["fingerprint"]:
            lines.append(f"  {name} was measured on other prompts, and so without a difference")
            continue
        own, base = found[name]["results"], first["results"]
        if others := unlike(base.get("sampling", {}), own.get("sampling", {})):
            lines.append(f"  {name} was drawn with {others}, and so without a difference")
            continue
        lines += seeds(name, base, own)
        for model, t in common:
            a, b = (one["results"]["by_prompt"][model][t] for one in (found[name], first))
            if "golden" in a and "golden" in b:
                pair = paired_bootstrap(unpacked(a["golden"]), unpacked(b["golden"]))
                lines.append(difference(name, names[0], pair, of=f"{model}'s golden reward at T = {t}"))
    return lines


def _rows(results: list[dict[str, Any]], model: str, t: str) -> list[Row]:
    rows: list[Row] = []
    for measure, label in MEASURES.items():
        own = [one["models"][model][t].get(measure) for one in results]
        if all(own):
            rows.append((f"{model}, {label}, T={t}", [interval(one) for one in own]))
    return rows

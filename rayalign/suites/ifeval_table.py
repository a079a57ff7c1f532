"""What suite `ifeval` found, for a terminal: of one policy, and of several side by side."""

from __future__ import annotations

from typing import Any

from rayalign.evaluate.statistics import paired_bootstrap
from rayalign.suites.columns import WIDTH, Row, difference, interval, seeds, side_by_side, unlike

WAYS = ("strict", "loose")  # loose: also without first or last line, or asterisks, so an upper bound


def table(results: dict[str, Any]) -> list[str]:
    """Lines for a terminal."""
    rows = [(f"{results['num_prompts']} prompts", *(results[f"prompt_{way}"] for way in WAYS))]
    rows.append((f"{results['num_instructions']} instructions", *(results[f"instruction_{way}"] for way in WAYS)))
    rows += [(f"  {name} ({one['num']})", *(one[way] for way in WAYS)) for name, one in results["families"].items()]
    width = max(WIDTH, *(len(name) for name, *_ in rows))
    lines = [f"  {'':<{width}}{'strict':>{WIDTH}}{'loose':>{WIDTH}}"]
    lines += [f"  {name:<{width}}" + "".join(f"{interval(cell):>{WIDTH}}" for cell in cells) for name, *cells in rows]
    return [*lines, f"  answers that ended: {results['ended_frac']:.1%}"]


def comparison(found: dict[str, dict[str, Any]]) -> list[str]:
    """Lines on several evaluations; differences to the first where the prompts are the same."""
    names, first = list(found), next(iter(found.values()))
    data = first["data"]
    lines = [f"ifeval: {data['num_rows']} prompts of {data['path']}, fingerprint {data['fingerprint'][:8]}"]
    results = [one["results"] for one in found.values()]
    rows: list[Row] = [
        (f"{level}s, {way}", [interval(one[f"{level}_{way}"]) for one in results])
        for level in ("prompt", "instruction")
        for way in WAYS
    ]
    for family in results[0]["families"]:
        own = [one["families"].get(family) for one in results]
        rows.append((f"  {family}", ["" if one is None else interval(one["strict"]) for one in own]))
    lines += side_by_side(names, rows)
    for name in names[1:]:
        if found[name]["data"]["fingerprint"] != data["fingerprint"]:
            lines.append(f"  {name}: measured on other prompts, and so without a difference")
            continue
        drawn = [one["results"]["sampling"] for one in (first, found[name])]
        if others := unlike(*drawn):
            lines.append(f"  {name}: drawn with {others}, and so without a difference")
            continue
        lines += seeds(name, *drawn)
        a, b = (_whole(one["results"]["by_prompt"]["strict"]) for one in (found[name], first))
        lines.append(difference(name, names[0], paired_bootstrap(a, b), of="prompts, strict"))
    return lines


def _whole(words: str) -> list[float]:
    """Whether all of a prompt's instructions are followed, of each prompt. Raises ValueError for other words."""
    if set(words) - set("01 "):
        raise ValueError("by_prompt: marks are 0 or 1")
    return [float("0" not in word) for word in words.split()]

"""MT-Bench's results for a terminal: of one policy, and of several side by side."""

from __future__ import annotations

from typing import Any

from rayalign.evaluate.statistics import paired_difference
from rayalign.suites.columns import seeds, unlike

WIDTH = 24


def table(results: dict[str, Any]) -> list[str]:
    """Lines for a terminal."""
    lines = [f"{'':<14} {'questions':>9} {'grade':>7}  95% interval"]
    rows = [("all", results["score"])] + [(f"turn {turn}", one) for turn, one in results["turns"].items()]
    rows += [(f"  {name}", one) for name, one in results["categories"].items()]
    lines += [f"{name:<14} {one['num']:>9} {_one(one, 7)}" for name, one in rows]
    if "pairwise" in results:
        lines += _pairwise(results["pairwise"])
    return lines + _told(results)


def _pairwise(pairs: dict[str, Any]) -> list[str]:
    lines = [f"against {pairs['against']['path']}, in both orders:"]
    lines.append(f"{'':<14} {'wins':>6} {'ties':>6} {'losses':>6} {'rate':>7}  95% interval")
    rows = [("all", pairs)] + [(f"turn {turn}", one) for turn, one in pairs["turns"].items()]
    rows += [(f"  {name}", one) for name, one in pairs["categories"].items()]
    for name, one in rows:
        counts = " ".join(f"{one[column]:>6}" for column in ("wins", "ties", "losses"))
        lines.append(f"{name:<14} {counts} {_one(one['win_rate'], 7)}")
    lines.append(f"ties for the reason that the two orders differ: {pairs['num_order_decides']}")
    return lines


def _told(results: dict[str, Any]) -> list[str]:
    """What a reader must know to trust the numbers."""
    usage, answers, lines = results["usage"], results["answers"], []
    if results["unparsed"]:
        why = "; ".join(f"{num} x {reason}" for reason, num in results["unparsed"].items())
        lines.append(f"unparsed, and so in no number above: {sum(results['unparsed'].values())} ({why})")
    if results["num_without_reference"]:
        lines.append(
            f"judged without a reference answer, though their category has them: {results['num_without_reference']} turns; "
            "give --references"
        )
    lines.append(f"answers that ended by themselves: {answers['ended_frac']:.1%}; prompts cut: {answers['num_prompts_cut']}")
    spent = f"{usage['num_asks']} asks, {usage['prompt_tokens']} tokens in, {usage['completion_tokens']} out"
    if usage["num_asks_without_usage"]:
        spent += f", unknown for {usage['num_asks_without_usage']} asks; cost unknown"
    elif usage["cost"] is not None:
        spent += f"; cost {usage['cost']:.4f}"
    lines.append(f"judge {results['judge']['model']}: {spent}")
    return lines


def _one(interval: dict[str, Any], width: int) -> str:
    if interval["mean"] is None:
        return f"{'none':>{width}}"
    ends = "" if interval["low"] is None else f"  {interval['low']:.2f} to {interval['high']:.2f}"
    return f"{interval['mean']:>{width}.2f}{ends}"


def comparison(found: dict[str, dict[str, Any]]) -> list[str]:
    """Lines on several evaluations: scores, and the difference to the first one, question by question."""
    names, first = list(found), next(iter(found.values()))
    judge = first["results"]["judge"]["model"]
    lines = [f"mt-bench: {first['data']['num_rows']} questions, judged by {judge}"]
    others = [name for name in names[1:] if _asked(found[name]) != _asked(first)]
    if others:
        lines.append(f"  other questions, or another judge, and so without a difference: {', '.join(others)}")
    for name in names[1:]:
        if told := unlike(_drawn(first), _drawn(found[name])):
            lines.append(f"  {name}: drawn with {told}, and so without a difference")
            others.append(name)
        else:
            lines += seeds(name, first["results"], found[name]["results"])
    lines.append(f"  {'':<{WIDTH}}" + "".join(f"{name:>{WIDTH}}" for name in names))
    results = [one["results"] for one in found.values()]
    rows = [("score", [_one(one["score"], 0) for one in results])]
    for turn in first["results"]["turns"]:
        rows.append((f"  turn {turn}", [_one(one["turns"][turn], 0) for one in results]))
    for category in first["results"]["categories"]:
        own = [one["categories"].get(category) for one in results]
        rows.append((f"  {category}", ["" if one is None else _one(one, 0) for one in own]))
    rows.append(("unparsed", [str(one["num_unparsed"]) for one in results]))
    lines += [f"  {name:<{WIDTH}}" + "".join(f"{cell:>{WIDTH}}" for cell in cells) for name, cells in rows]
    return lines + [_difference(names[0], name, first, found[name]) for name in names[1:] if name not in others]


def _asked(one: dict[str, Any]) -> tuple[Any, ...]:
    judge = one["results"]["judge"]
    return one["data"]["fingerprint"], judge["model"], judge["extra"], judge["max_tokens"]


def _drawn(one: dict[str, Any]) -> dict[str, Any]:
    return {name: one["results"][name] for name in ("max_new_tokens", "temperatures")}


def _difference(first_name: str, name: str, first: dict[str, Any], second: dict[str, Any]) -> str:
    """Over the questions whose every turn was graded in both."""
    grades = [one["results"]["grades"] for one in (second, first)]
    both = [key for key in grades[1] if None not in (*grades[0][key], *grades[1][key])]
    second_means, first_means = ([sum(side[key]) / len(side[key]) for key in both] for side in grades)
    found = paired_difference(second_means, first_means)
    told = found.difference
    if told.num < 2:
        return f"  {name} minus {first_name}: too few questions were graded in both"
    verdict = "" if found.excludes_zero else "; 0 is within it, so neither is shown to be better"
    interval = f"95% interval {told.low:+.2f} to {told.high:+.2f}{verdict}"
    return f"  {name} minus {first_name}, over {told.num} questions: {told.mean:+.2f} ({interval})"

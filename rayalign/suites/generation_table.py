"""What suite `generation` found, for a terminal: of one policy, and of several side by side."""

from __future__ import annotations

from typing import Any

from rayalign.evaluate.statistics import paired_bootstrap
from rayalign.storage.evaluation import unpacked
from rayalign.suites.columns import Row, difference, interval, seeds, side_by_side, unlike


def table(results: dict[str, Any]) -> list[str]:
    """Lines on one evaluation: a column for the policy, and for the one that it was set against."""
    sides = list(results["answers"])
    answers = "1 answer" if results["num_samples"] == 1 else f"{results['num_samples']} answers"
    lines = [f"{results['num_prompts']} prompts, {answers} each"]
    lines += side_by_side(sides, _rows([results] * len(sides), sides))
    for judge, judged in results["scores"].items():
        if "win_rate" in judged:
            lines.append(f"win rate by {judge}, ties half: {interval(judged['win_rate'])}")
            lines.append(f"  difference of {judge}, prompt by prompt: {interval(judged['difference'])}")
        expert = results["judges"][judge].get("expert")
        if expert is not None:
            lines.append(f"the world's demonstrator has {judge} {expert:.3f}")
    return lines + (_best_of(results["best_of"]) if "best_of" in results else [])


def comparison(found: dict[str, dict[str, Any]]) -> list[str]:
    """Lines on several evaluations; differences to the first where prompts and judge are the same."""
    names, first = list(found), next(iter(found.values()))
    data = first["data"]
    lines = [f"generation: {data['num_rows']} prompts of {data['path']}, fingerprint {data['fingerprint'][:8]}"]
    others = [name for name in names[1:] if found[name]["data"]["fingerprint"] != data["fingerprint"]]
    if others:
        lines.append(f"  measured on other prompts, and so without a difference: {', '.join(others)}")
    results = [one["results"] for one in found.values()]
    lines += side_by_side(names, [*_rows(results, ["policy"] * len(names)), *_win_rates(results)])
    for name in names[1:]:
        if name not in others:
            lines += _differences(names[0], name, first["results"], found[name]["results"])
    return lines


def _rows(results: list[dict[str, Any]], sides: list[str]) -> list[Row]:
    """Of each pair of results and side, what both a single table and a comparison show."""
    answers = [one["answers"][side] for one, side in zip(results, sides, strict=True)]
    rows: list[Row] = []
    for judge in results[0]["scores"]:
        judged = [one["scores"].get(judge) for one in results]
        cells = ["" if one is None else interval(one[side]) for one, side in zip(judged, sides, strict=True)]
        rows.append((f"{judge}, mean", cells))
    rows.append(("length, tokens", [interval(own["length"], 1) for own in answers]))
    rows.append(("ended", [interval(own["ended_frac"]) for own in answers]))
    for size in answers[0]["distinct"]:
        shares = [own["distinct"][size] for own in answers]
        rows.append((f"distinct-{size}", ["" if share is None else f"{share:.3f}" for share in shares]))
    rows.append(("repeated 4-grams", [interval(own["repeated_4grams_frac"]) for own in answers]))
    if all("same_as_earlier_frac" in own for own in answers):
        rows.append(("same as an earlier one", [interval(own["same_as_earlier_frac"]) for own in answers]))
    return rows


def _win_rates(results: list[dict[str, Any]]) -> list[Row]:
    """Against what each was set against, where all were set against the same."""
    against = [one["models"].get("against", {}).get("content") for one in results]
    if against[0] is None or any(content != against[0] for content in against):
        return []
    judges = [judge for judge in results[0]["scores"] if all(judge in one["scores"] for one in results)]
    return [(f"win rate by {judge}", [interval(one["scores"][judge]["win_rate"]) for one in results]) for judge in judges]


def _differences(first_name: str, name: str, first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    drawn = [one["sampling"] | {"answers a prompt": one["num_samples"]} for one in (first, second)]
    if others := unlike(*drawn):
        return [f"  {name}: drawn with {others}, and so without a difference"]
    lines = seeds(name, *drawn)
    for judge, judged in first["scores"].items():
        if judge == "reward" and _content(second) != _content(first):
            lines.append(f"  {name}: judged by another reward, and so without a difference")
            continue
        if judge in second["scores"]:
            a, b = (unpacked(one["by_prompt"]["policy"]) for one in (second["scores"][judge], judged))
            lines.append(difference(name, first_name, paired_bootstrap(a, b), of=judge))
    return lines


def _content(results: dict[str, Any]) -> Any:
    """What the reward that judged is, wherever it lies."""
    return results["judges"].get("reward", {}).get("content")


def _best_of(curve: dict[str, Any]) -> list[str]:
    lines = [f"best of N, chosen by {curve['chosen_by']}; KL is at most"]
    for point in curve["points"]:
        golden = f"  golden {interval(point['golden'])}" if "golden" in point else ""
        chosen = interval(point["reward"])
        lines.append(f"  {point['n']:>4}  {point['kl_bound']:>6.3f}  {curve['chosen_by']} {chosen}{golden}")
    return lines

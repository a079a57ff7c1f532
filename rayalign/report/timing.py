"""Where a loop's time went: a strip of its last steps for each group, idle shares, and seconds by phase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rayalign.report.charts import Axis, Bars, Chart, shares, strip
from rayalign.storage.jsonl import Line

MAX_STEPS = 40
# The phases of a step in their order, the group that works in each, and what a person calls it.
PHASES = {
    "generate": ("rollout", "generate"),
    "reward_update": ("reward", "learn the reward"),
    "score": ("reward", "score"),
    "policy_update": ("policy", "update the policy"),
    "sync": ("policy", "send weights"),
}
GROUPS = ("rollout", "reward", "policy")


def time_charts(records: Sequence[Line]) -> list[Chart]:
    """Of one stage's records; nothing where they hold no times."""
    steps = [record for record in records if _number(record.get("time/step_s")) and _number(record.get("time_s"))]
    if not steps:
        return []
    shown = steps[-MAX_STEPS:]
    bars = _bars(shown)
    caption = (
        f"the last {len(shown)} of {len(steps)} steps. Within a step the phases are drawn in their order; groups that "
        "overlap (max_staleness above 0) are drawn as if they did not"
    )
    found = [Chart(strip(bars, GROUPS, Axis("seconds since the first of these steps")), caption)]
    idle = _idle(steps)
    if idle:
        figure = shares(idle, Axis("share of time that the group waits (%)", (0, 100)))
        found.append(Chart(figure, "over all steps; with groups that take turns two of three always wait"))
    return found


def time_table(records: Sequence[Line]) -> list[list[str]]:
    """Phase, seconds, share of the steps' time; the first row names the columns. Empty where there are no times."""
    total = sum(_number(record.get("time/step_s")) or 0.0 for record in records)
    if not total:
        return []
    rows = [["phase", "seconds", "share"]]
    rest = total
    for phase, (_, label) in PHASES.items():
        seconds = sum(_number(record.get(f"time/{phase}_s")) or 0.0 for record in records)
        rest -= seconds
        if seconds:
            rows.append([label, f"{seconds:,.1f}", f"{100 * seconds / total:.0f}%"])
    rows.append(["everything else (measuring, saving)", f"{max(0.0, rest):,.1f}", f"{100 * max(0.0, rest) / total:.0f}%"])
    return rows


def _bars(steps: Sequence[Line]) -> list[Bars]:
    bars = {phase: Bars(label) for phase, (_, label) in PHASES.items()}
    origin = steps[0]["time_s"] - steps[0]["time/step_s"]
    for record in steps:
        at = record["time_s"] - record["time/step_s"] - origin
        for phase, (group, _) in PHASES.items():
            seconds = _number(record.get(f"time/{phase}_s"))
            if seconds:
                bars[phase].add(group, at, seconds)
                at += seconds
    return [one for one in bars.values() if one.rows]


def _idle(steps: Sequence[Line]) -> dict[str, float]:
    """Percent by group, each step by its seconds."""
    found = {}
    for group in GROUPS:
        pairs = [
            (idle, step["time/step_s"])
            for step in steps
            if (idle := _number(step.get(f"idle_frac/{group}"))) is not None
        ]
        if pairs:
            found[group] = 100 * sum(idle * s for idle, s in pairs) / sum(s for _, s in pairs)
    return found


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

"""Metrics of a loop over its policy steps, a chart for each panel, a curve for each metric or, of several runs, each run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rayalign.report.charts import Axis, Chart, Level, Series, lines
from rayalign.report.run_files import RunFiles
from rayalign.storage.jsonl import Line

SHARES = (-0.02, 1.02)  # 0 and 1 are values too, and their points are to be seen whole
DASHES = ("solid", "dot", "dash", "dashdot")


@dataclass(frozen=True)
class Panel:
    """Metrics that share an axis: {metric name: its label}. The label of the axis has the unit."""

    label: str
    metrics: Mapping[str, str]
    limits: tuple[float, float] | None = None
    level: Level | None = None
    from_zero: bool = False
    note: str = ""


ALTERNATION = (
    Panel("golden reward of fresh samples (0 to 1)", {"health/golden_mean": "golden"}, SHARES),
    Panel("learned reward of samples (mean)", {"policy/reward_mean": "reward"}),
    Panel(
        "accuracy (share of pairs)",
        {
            "reward/pair_accuracy": "training pairs",
            "health/demo_accuracy_heldout": "held-out demonstrations",
            "health/rank_accuracy_policy": "own samples, by the golden reward",
            "policy/preference_accuracy": "preferences",
        },
        SHARES,
        Level("chance", 0.5),
        note="held-out demonstrations against samples: falls once the policy beats them",
    ),
    Panel(
        "margin: demonstration minus sample (reward)",
        {
            "health/margin_demo_minus_agent": "held-out",
            "reward/margin_demo_minus_agent": "training",
            "policy/margin_demo_minus_agent": "training (implicit)",
        },
    ),
    Panel(
        "KL of the policy to its reference (nats a response)", {"policy/kl_policy_to_ref": "KL"}, from_zero=True
    ),
    Panel("entropy (nats a token)", {"policy/entropy": "training samples", "health/entropy": "held-out prompts"}),
    Panel(
        "length (tokens a response)",
        {"policy/length_mean": "training samples", "health/length_mean": "held-out prompts"},
    ),
    Panel(
        "responses that end by themselves (share)",
        {"policy/ended_frac": "training samples", "health/ended_frac": "held-out prompts"},
        SHARES,
    ),
    Panel("held-out demonstrations (nats a response)", {"health/demo_nll": "negative log-likelihood"}),
)
FITTING = (
    Panel("negative log-likelihood (nats a token)", {"nll_token": "training"}),
    Panel("accuracy (share of pairs)", {"pair_accuracy": "training pairs"}, SHARES, Level("chance", 0.5)),
)
MISMATCH = (
    Panel(
        "sampler minus trainer (nats a token)",
        {
            "canary/mismatch_mean": "mean, canary",
            "canary/mismatch_max": "largest, canary",
            "policy/mismatch_mean": "mean, training samples",
        },
        from_zero=True,
    ),
)


def panel_charts(groups: Mapping[str, Sequence[RunFiles]], stage: str, panels: Sequence[Panel]) -> list[Chart]:
    """Of what any of the runs measured in a stage; several runs of one experiment make one curve with a band."""
    charts = []
    for panel in panels:
        series = _series(groups, stage, panel)
        if series:
            levels = [panel.level] if panel.level else []
            y = Axis(panel.label, panel.limits, from_zero=panel.from_zero)
            figure = lines(series, Axis("step (of the stage)"), y, levels)
            charts.append(Chart(figure, _caption(panel, groups)))
    return charts


def _series(groups: Mapping[str, Sequence[RunFiles]], stage: str, panel: Panel) -> list[Series]:
    found = []
    for place, (group, runs) in enumerate(groups.items()):
        for metric, label in panel.metrics.items():
            points: dict[float, list[float]] = defaultdict(list)
            for run in runs:
                for step, value in _curve(run.of_stage(stage), metric).items():
                    points[step].append(value)
            if points:
                both = f"{group}: {label}" if len(panel.metrics) > 1 else group
                found.append(Series(label if len(groups) == 1 else both, points, DASHES[place % len(DASHES)]))
    return found


def _curve(records: Sequence[Line], metric: str) -> dict[float, float]:
    """The last value at each step."""
    return {
        float(record.get("step") or 0): float(value)
        for record in records
        if isinstance(value := record.get(metric), (int, float))
    }


def _caption(panel: Panel, groups: Mapping[str, Sequence[RunFiles]]) -> str:
    names = ", ".join(panel.metrics)
    banded = any(len(runs) > 1 for runs in groups.values())
    parts = [names, panel.note, "bands: 95% t intervals over seeds" if banded else ""]
    return "; ".join(part for part in parts if part)

"""A run in one picture: rewards by temperature, and the alternation's curves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator

from rayalign.report.results import Results, title

# Okabe and Ito's colours, which people with any colour vision tell apart
COLOURS = ("#7f7f7f", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK = "#333333"
DPI = 150
_FEW = 12  # points, such as one a round, that would not be seen as a line
_SHARES = (-0.04, 1.04)  # 0 and 1 are values too, and their points are to be seen whole
_HUGE = 1e300  # what is as large, or infinite, leaves no axis for the rest
_DODGE = 0.006  # between models at one temperature, so that their error bars do not lie on each other


@dataclass(frozen=True, slots=True)
class _Panel:
    """Some metrics that share an axis: {metric name: its label}."""

    ylabel: str
    metrics: Mapping[str, str]
    chance: float | None = None
    limits: tuple[float, float] | None = None


_PANELS = (
    _Panel("learned reward\n(mean of samples)", {"policy/reward_mean": "learned reward"}),
    _Panel("KL to reference\n(nats a response)", {"policy/kl_policy_to_ref": "KL"}),
    _Panel(
        "reward accuracy\n(share of pairs)",
        {
            "reward/pair_accuracy": "training pairs",
            "health/demo_accuracy_heldout": "held-out demonstrations (falls once the policy beats them)",
            "health/rank_accuracy_policy": "the policy's own samples",
        },
        chance=0.5,
        limits=_SHARES,
    ),
)


@dataclass(slots=True)
class Curves:
    """The alternation's metrics over its policy steps."""

    points: dict[str, dict[int, float]] = field(default_factory=dict)  # metric -> {policy step: last value}
    round_starts: list[int] = field(default_factory=list)  # policy steps that a new round followed


def plot_run(metrics_jsonl: Path, results: Mapping[str, Any] | None, out: Path) -> Path | None:
    """Writes a PNG: reward by temperature for each model on the left, the alternation's curves on the right.

    What a run did not measure is left out; returns None, and writes nothing, if that is all of it.
    """
    read = Results(results or {})
    curves = read_curves(metrics_jsonl)
    quantity = next((name for name in ("golden", "reward") if read.has(name)), None)
    panels = [panel for panel in _PANELS if any(name in curves.points for name in panel.metrics)]
    if quantity is None and not panels:
        return None
    figure = Figure(figsize=(11 if quantity and panels else 6, 5.8), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    left: FigureBase = figure
    right: FigureBase = figure
    if quantity and panels:
        left, right = figure.subfigures(1, 2, wspace=0.04, squeeze=False)[0]
    if quantity:
        _draw_temperatures(left.subplots(), read, quantity)
    if panels:
        column = list(right.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0])
        _draw_curves(column, panels, curves)
        _explain_curves(right, column, panels)
        right.align_ylabels()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, format="png")
    return out


def read_curves(metrics_jsonl: Path) -> Curves:
    """Every metric of the last stage that has `policy/` metrics, over that stage's policy steps.

    A record without `policy/` metrics (a reward update, a round's health) stands at the last policy step
    before it. A step that a resumed run repeated counts once, as it was the last time.
    """
    records = list(_records(metrics_jsonl)) if metrics_jsonl.exists() else []
    stage = next((r["stage"] for r in reversed(records) if _is_policy_step(r)), None)
    curves = Curves()
    place, last_step, last_round = 0, 0, None
    for record in _without_repeats([r for r in records if r["stage"] == stage]):
        if record["round"] != last_round and last_round is not None:
            curves.round_starts.append(place)
        last_round = record["round"]
        if _is_policy_step(record):
            # a step that starts again at each round is counted on
            place += record["step"] - last_step if record["step"] > last_step else max(1, record["step"])
            last_step = record["step"]
        for name, value in record.items():
            if "/" in name and isinstance(value, (int, float)) and abs(value) < _HUGE:
                curves.points.setdefault(name, {})[place] = value
    return curves


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):  # else a killed run left it half-written
                yield {"stage": None, "round": None, "step": 0} | json.loads(line)


def _is_policy_step(record: Mapping[str, Any]) -> bool:
    return any(name.startswith("policy/") for name in record)


def _without_repeats(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drops what a later record of the same round, step and metrics replaces."""
    last = {(r["round"], r["step"], tuple(sorted(r))): place for place, r in enumerate(records)}
    keep = set(last.values())
    return [record for place, record in enumerate(records) if place in keep]


def _draw_temperatures(axes: Axes, read: Results, quantity: str) -> None:
    for place, model in enumerate(read.models):
        curve = dict(sorted(read.curve(model, quantity).items()))
        if not curve:
            continue
        shift = (place - (len(read.models) - 1) / 2) * _DODGE
        below = [e.mean - e.low if e.low == e.low else 0.0 for e in curve.values()]
        above = [e.high - e.mean if e.high == e.high else 0.0 for e in curve.values()]
        axes.errorbar(
            [t + shift for t in curve],
            [e.mean for e in curve.values()],
            yerr=[below, above],
            color=COLOURS[place % len(COLOURS)],
            marker="o",
            markersize=5,
            linewidth=1.8,
            capsize=3,
            label=title(model),
        )
    if quantity == "golden" and read.expert_golden is not None:
        axes.axhline(read.expert_golden, color=INK, linestyle="--", linewidth=1.2, label="demonstrator")
    axes.set_xticks(sorted(read.temperatures))
    axes.set_xlim(min(read.temperatures) - 0.05, max(read.temperatures) + 0.05)
    axes.set_xlabel("sampling temperature")
    axes.set_ylabel(
        "golden reward (0 to 1, mean, 95% interval)" if quantity == "golden" else "learned reward (mean, 95% interval)"
    )
    axes.set_title("Held-out prompts", loc="left", color=INK)
    if quantity == "golden":
        axes.set_ylim(*_SHARES)
    finish(axes)
    handles, labels = axes.get_legend_handles_labels()
    # matplotlib puts plain lines before those with error bars
    order = sorted(range(len(labels)), key=lambda i: labels[i] == "demonstrator")
    axes.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
        ncols=min(4, len(labels)),
    )


def _draw_curves(column: Sequence[Axes], panels: Sequence[_Panel], curves: Curves) -> None:
    for axes, panel in zip(column, panels, strict=True):
        for start in curves.round_starts:
            axes.axvline(start + 0.5, color="#bbbbbb", linewidth=0.8, linestyle=":")
        if panel.chance is not None:
            axes.axhline(panel.chance, color="#999999", linewidth=1, linestyle="--", label="chance")
        for place, (name, label) in enumerate(panel.metrics.items()):
            points = curves.points.get(name)
            if points:
                marker = "o" if len(points) <= _FEW else ""
                (line,) = axes.plot(
                    list(points), list(points.values()), color=COLOURS[1 + place], label=label
                )
                line.set(linewidth=1.6, marker=marker, markersize=4)
        axes.set_ylabel(panel.ylabel)
        if panel.limits:
            axes.set_ylim(*panel.limits)
        finish(axes)
    column[0].set_title("The alternation", loc="left", color=INK)
    column[-1].set_xlabel("policy step" + (" (dotted: a new round)" if curves.round_starts else ""))
    column[-1].xaxis.set_major_locator(MaxNLocator(integer=True))


def _explain_curves(figure: FigureBase, column: Sequence[Axes], panels: Sequence[_Panel]) -> None:
    """A legend for the panel of several metrics, below all panels: within it would lie on what is drawn."""
    for axes, panel in zip(column, panels, strict=True):
        if len(panel.metrics) > 1:
            figure.legend(
                *axes.get_legend_handles_labels(),
                title=panel.ylabel.splitlines()[0],
                alignment="left",
                frameon=False,
                fontsize="small",
                title_fontsize="small",
                loc="outside lower center",
                ncols=2,
            )


def finish(axes: Axes) -> None:
    """No frame at the top and the right, and a pale grid behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)

"""What best of n is worth as n grows: the learned reward that chooses, and the golden one that judges, in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from rayalign.report.plot import COLOURS, DPI, INK, finish
from rayalign.report.results import Estimate

_LABELS = {
    "reward": "learned reward, which chooses\n(mean, 95% interval)",
    "golden": "golden reward, which judges\n(mean, 95% interval)",
}


def plot_best_of(curve: Mapping[str, Any], out: Path) -> Path:
    """Writes a PNG: a panel a reward over n, on a log axis that also tells the KL to the policy that n buys at most.

    `curve` is curve.json: {"points": [{"n", "kl_bound", "reward": ESTIMATE, "golden": ESTIMATE}], "expert": {"golden"}}.
    """
    points = curve["points"]
    panels = [name for name in _LABELS if any(name in point for point in points)]
    figure = Figure(figsize=(5.6 * len(panels), 4.4), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    expert = (curve.get("expert") or {}).get("golden")
    for place, (axes, name) in enumerate(zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True)):
        _draw(axes, points, name, COLOURS[1 + place])
        if name == "golden" and expert is not None:
            axes.axhline(expert, color=INK, linestyle="--", linewidth=1.2, label="demonstrator")
            axes.legend(frameon=False)
    figure.suptitle(
        f"Best of n, {curve['num_prompts']} prompts, {curve['num_samples']} samples each", color=INK, x=0.01, ha="left"
    )
    figure.savefig(out, format="png")
    return out


def best_of_line(curve: Mapping[str, Any]) -> str:
    """One sentence on the curve: what choosing gained, and whether it was too much (over-optimisation)."""
    points = curve["points"]
    first, last = points[0], points[-1]
    told = f"best of {last['n']} against best of {first['n']}: learned reward {_mean(last, 'reward')} against "
    told += _mean(first, "reward")
    if "golden" not in last:
        return told
    told += f"; golden {_mean(last, 'golden')} against {_mean(first, 'golden')}"
    best = max(points, key=lambda point: point["golden"]["mean"])
    peak, end = Estimate.parse(best["golden"]), Estimate.parse(last["golden"])
    if peak and end and peak.is_above(end):
        told += f", but {peak.mean:.3f} at n = {best['n']}: choosing among more chases what the reward gets wrong"
    return told


def _draw(axes: Axes, points: Sequence[Mapping[str, Any]], name: str, colour: str) -> None:
    known = [(point["n"], estimate) for point in points if (estimate := Estimate.parse(point.get(name)))]
    below = [e.mean - e.low if e.low == e.low else 0.0 for _, e in known]
    above = [e.high - e.mean if e.high == e.high else 0.0 for _, e in known]
    axes.errorbar(
        [n for n, _ in known],
        [e.mean for _, e in known],
        yerr=[below, above],
        color=colour,
        marker="o",
        markersize=5,
        linewidth=1.8,
        capsize=3,
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks([point["n"] for point in points], [f"{p['n']}\n{p['kl_bound']:.2f}" for p in points])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("n, and below it the most nats that choosing moves from the policy")
    axes.set_ylabel(_LABELS[name])
    finish(axes)


def _mean(point: Mapping[str, Any], name: str) -> str:
    return f"{point[name]['mean']:.3f}"

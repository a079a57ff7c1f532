"""Pictures of a control run: returns over steps, the learned reward against the true one, and both over states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from rayalign.evaluate.statistics import mean_interval
from rayalign.report.plot import COLOURS, INK, finish

MOST_POINTS = 3000


@dataclass(frozen=True)
class Curve:
    """A metric of runs that differ in their seeds alone: {environment steps: a value of each run that got there}."""

    label: str
    points: Mapping[int, Sequence[float]]


@dataclass(frozen=True)
class StepRewards:
    """Steps of one source: observations[B, O], their learned and true rewards [B] and [B]."""

    label: str
    observations: np.ndarray
    learned: np.ndarray
    true: np.ndarray


def draw_curves(curves: Sequence[Curve], ylabel: str, level: tuple[str, float] | None = None) -> Figure:
    """A line each with a 95% t interval over seeds; `level` is a dashed line with its label."""
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for place, curve in enumerate(curves):
        colour = COLOURS[1 + place % (len(COLOURS) - 1)]
        steps = sorted(curve.points)
        found = [mean_interval(list(curve.points[step])) for step in steps]
        axes.plot(steps, [one.mean for one in found], color=colour, marker="o", markersize=3, label=curve.label)
        if any(one.num > 1 for one in found):
            low, high = ([getattr(one, end) for one in found] for end in ("low", "high"))
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    if level is not None:
        axes.axhline(level[1], color=INK, linestyle="--", linewidth=1.2, label=level[0])
    axes.set_xlabel("environment steps")
    axes.set_ylabel(ylabel)
    if len(curves) > 1 or level is not None:
        axes.legend(frameon=False, fontsize="small")
    finish(axes)
    return figure


def draw_rewards(sources: Sequence[StepRewards]) -> Figure:
    """The learned reward of each step against its true one."""
    figure = Figure(figsize=(5.2, 4), layout="constrained")
    axes = figure.subplots()
    for place, source in enumerate(sources):
        rows = _some(len(source.true))
        points = axes.scatter(source.true[rows], source.learned[rows], s=5, alpha=0.4, linewidths=0)
        points.set(color=COLOURS[1 + place], label=source.label)
    axes.set_xlabel("true reward of a step")
    axes.set_ylabel("learned reward of a step")
    axes.legend(frameon=False, markerscale=3)
    finish(axes)
    return figure


def draw_states(sources: Sequence[StepRewards]) -> Figure:
    """Visited states on the two directions in which they vary most, coloured by learned and by true reward."""
    observations = np.concatenate([source.observations for source in sources]).astype(np.float64)
    rows = _some(len(observations))
    deviation = observations.std(axis=0)
    standard = (observations - observations.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    _, sizes, directions = np.linalg.svd(standard, full_matrices=False)
    shares = np.square(sizes) / np.square(sizes).sum()
    at = standard[rows] @ directions[:2].T
    if at.shape[1] < 2:
        at, shares = np.column_stack([at, np.zeros(len(at))]), np.append(shares, 0.0)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharex=True, sharey=True), ("learned", "true"), strict=True):
        values = np.concatenate([getattr(source, name) for source in sources])[rows]
        low, high = np.percentile(values, [2, 98])
        points = axes.scatter(at[:, 0], at[:, 1], c=values, s=6, linewidths=0, cmap="viridis", vmin=low, vmax=high)
        figure.colorbar(points, ax=axes, label=f"{name} reward of a step")
        axes.set_xlabel(f"first component ({shares[0]:.0%} of the variance)")
        axes.set_ylabel(f"second ({shares[1]:.0%})")
        finish(axes)
    return figure


def _some(num: int) -> np.ndarray:
    """As many rows as can be told apart, the same ones each time."""
    return np.arange(num) if num <= MOST_POINTS else np.random.default_rng(0).choice(num, MOST_POINTS, replace=False)

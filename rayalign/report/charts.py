"""Charts of a report, as plotly figures: every axis says what it is and in which unit.

Colours and fonts of text are left to the page, which knows whether it is dark.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import plotly.graph_objects as go

from rayalign.evaluate.statistics import mean_interval
from rayalign.report.plot import COLOURS

HEIGHT = 320  # pixels
FEW = 12  # points, such as one a round, that would not be seen as a line
BAND_OPACITY = 0.18
WRAP = 34  # characters of an axis's title in a line


@dataclass(frozen=True)
class Chart:
    """A figure, and what it shows."""

    figure: go.Figure
    caption: str


@dataclass(frozen=True)
class Series:
    """A curve: at each x the value of every run that has it. Several runs get a band: mean and 95% t interval."""

    label: str
    points: Mapping[float, Sequence[float]]
    dash: str = "solid"
    colour: str | None = None


@dataclass(frozen=True)
class Axis:
    """What an axis is, with its unit, and what it spans if not its values."""

    title: str
    limits: tuple[float, float] | None = None
    log: bool = False
    from_zero: bool = False


@dataclass(frozen=True)
class Level:
    """A line across a chart."""

    label: str
    value: float


@dataclass
class Bars:
    """A horizontal bar for each of `rows`, from `starts` over `widths`."""

    label: str
    rows: list[str] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)

    def add(self, row: str, start: float, width: float) -> None:
        """One more bar."""
        self.rows.append(row)
        self.starts.append(start)
        self.widths.append(width)


def lines(series: Sequence[Series], x: Axis, y: Axis, levels: Sequence[Level] = ()) -> go.Figure:
    """Curves over a common axis."""
    figure = _empty(x, y)
    for place, one in enumerate(series):
        colour = one.colour or COLOURS[(1 + place) % len(COLOURS)]
        xs = sorted(one.points)
        if any(len(one.points[x]) > 1 for x in xs):
            _band(figure, one, xs, colour)
        mode = "lines+markers" if len(xs) <= FEW else "lines"
        means = [sum(one.points[x]) / len(one.points[x]) for x in xs]
        line = {"color": colour, "width": 2, "dash": one.dash}
        figure.add_scatter(x=xs, y=means, name=one.label, mode=mode, line=line, showlegend=len(series) > 1)
    _levels(figure, levels)
    return figure


def histogram(samples: Mapping[str, Sequence[float]], x: Axis, y: Axis) -> go.Figure:
    """Shares of values over one set of bins, which all of the samples share."""
    figure = _empty(x, y)
    every = [value for values in samples.values() for value in values]
    low, high = (min(every), max(every)) if every else (0.0, 1.0)
    size = (high - low) / 30 or 1.0
    for place, (label, values) in enumerate(samples.items()):
        figure.add_histogram(
            x=list(values),
            name=label,
            histnorm="percent",
            opacity=0.6,
            marker_color=COLOURS[(1 + place) % len(COLOURS)],
            xbins={"start": low, "end": high + size, "size": size},
        )
    figure.update_layout(barmode="overlay")
    return figure


def strip(bars: Sequence[Bars], rows: Sequence[str], x: Axis) -> go.Figure:
    """A row for each of `rows`, with bars at their times: who worked when."""
    figure = _empty(x, Axis(""))
    for place, one in enumerate(bars):
        figure.add_bar(
            y=one.rows,
            x=one.widths,
            base=one.starts,
            orientation="h",
            name=one.label,
            marker_color=COLOURS[(1 + place) % len(COLOURS)],
            hovertemplate=f"{one.label}: %{{x:.2f}} s<extra></extra>",
        )
    figure.update_layout(barmode="overlay", height=130 + 50 * len(rows))
    figure.update_yaxes(categoryorder="array", categoryarray=list(reversed(rows)), title=None)
    return figure


def shares(values: Mapping[str, float], x: Axis) -> go.Figure:
    """A horizontal bar for each name."""
    figure = _empty(x, Axis(""))
    names = list(values)[::-1]
    figure.add_bar(y=names, x=[values[name] for name in names], orientation="h", marker_color=COLOURS[1], showlegend=False)
    figure.update_layout(height=130 + 36 * len(names))
    return figure


def estimates(
    curves: Mapping[str, Mapping[float, tuple[float, float, float]]], x: Axis, y: Axis, levels: Sequence[Level] = ()
) -> go.Figure:
    """Points with intervals: {label: {x: (mean, low, high)}}; ends that are NaN are not drawn."""
    figure = _empty(x, y)
    for place, (label, points) in enumerate(curves.items()):
        xs = sorted(points)
        above = [max(0.0, points[x][2] - points[x][0]) if math.isfinite(points[x][2]) else 0.0 for x in xs]
        below = [max(0.0, points[x][0] - points[x][1]) if math.isfinite(points[x][1]) else 0.0 for x in xs]
        figure.add_scatter(
            x=xs,
            y=[points[x][0] for x in xs],
            name=label,
            mode="lines+markers",
            error_y={"type": "data", "array": above, "arrayminus": below, "symmetric": False, "thickness": 1.2},
            line={"color": COLOURS[place % len(COLOURS)], "width": 2},
            showlegend=len(curves) > 1,
        )
    _levels(figure, levels)
    if x.log:
        known = sorted({value for points in curves.values() for value in points})
        figure.update_xaxes(tickvals=known, ticktext=[f"{value:g}" for value in known])
    return figure


def _empty(x: Axis, y: Axis) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        height=HEIGHT,
        margin={"l": 60, "r": 16, "t": 44, "b": 48},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hovermode="closest",
    )
    for update, axis in ((figure.update_xaxes, x), (figure.update_yaxes, y)):
        text = "<br>".join(textwrap.wrap(html.escape(axis.title, quote=False), WRAP))
        update(title={"text": text, "standoff": 8}, automargin=True, type="log" if axis.log else None)
        if axis.limits:
            update(range=list(axis.limits))
        elif axis.from_zero:
            update(rangemode="tozero")
    return figure


def _band(figure: go.Figure, one: Series, xs: Sequence[float], colour: str) -> None:
    ends = [_ends(one.points[x]) for x in xs]
    outline = [*[high for _, high in ends], *[low for low, _ in reversed(ends)]]
    figure.add_scatter(
        x=[*xs, *reversed(xs)],
        y=outline,
        fill="toself",
        fillcolor=colour,
        opacity=BAND_OPACITY,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    found = mean_interval(values)
    return (found.low, found.high) if len(values) > 1 else (found.mean, found.mean)


def _levels(figure: go.Figure, levels: Sequence[Level]) -> None:
    for level in levels:
        figure.add_hline(
            y=level.value, line={"dash": "dash", "width": 1, "color": COLOURS[0]}, annotation_text=level.label
        )

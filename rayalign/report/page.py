"""A report as one HTML file that holds all it shows and asks no network for anything."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs

from rayalign.report.charts import Chart

TEMPLATE = Path(__file__).with_name("page.html.jinja")
DPI = 110


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, and what it shows."""

    uri: str
    caption: str

    @classmethod
    def of_figure(cls, figure: Figure, caption: str) -> Picture:
        """A matplotlib figure."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI)
        return cls.of_bytes(buffer.getvalue(), "png", caption)

    @classmethod
    def of_bytes(cls, content: bytes, kind: str, caption: str) -> Picture:
        """A file's content; `kind` is png or gif."""
        return cls(f"data:image/{kind};base64,{base64.b64encode(content).decode()}", caption)


@dataclass(frozen=True)
class Section:
    """A part of a page: lines, then pictures and charts, then a table (its first row names the columns), the browser of
    samples (`answers.sources`), folded text. `folded` keeps all but the lines out of sight at first."""

    title: str
    lines: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    charts: Sequence[Chart] = ()
    table: Sequence[Sequence[str]] = ()
    browser: Sequence[Mapping[str, Any]] = ()
    text: str = ""
    folded: bool = False


def page(title: str, verdict: Sequence[str], sections: Sequence[Section]) -> str:
    """The HTML. What is given is escaped: a run's names and texts cannot become markup, nor end a script."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data"] = _data
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    has_charts = any(section.charts for section in sections)
    return template.render(
        title=title,
        verdict=verdict,
        sections=sections,
        style=Markup(TEMPLATE.with_name("page.css").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()) if has_charts else "",
        script=Markup(TEMPLATE.with_name("page.js").read_text(encoding="utf-8")),
    )


def _data(value: Any) -> Markup:
    """JSON that may stand in a script element."""
    text = value.figure.to_json() if isinstance(value, Chart) else json.dumps(value, ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))

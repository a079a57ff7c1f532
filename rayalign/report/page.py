"""A report as one HTML file that holds all it shows and asks no network for anything."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

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
    """A part of a page: lines, then pictures, then a table (its first row names the columns), then folded text."""

    title: str
    lines: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    table: Sequence[Sequence[str]] = ()
    text: str = ""


def page(title: str, verdict: Sequence[str], sections: Sequence[Section]) -> str:
    """The HTML. What is given is escaped: a run's names and texts cannot become markup."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, verdict=verdict, sections=sections)

"""Words of the code as Markdown: as they are printed, whatever characters they hold."""

from __future__ import annotations

import re
import textwrap

SPECIAL = re.compile(r"[\\`*_\[\]{}|#~$<>&]")


def plain(text: str) -> str:
    """On one line, with no character read as Markdown or HTML."""
    return _escaped(" ".join(text.split()))


def prose(text: str) -> str:
    """The same, but `code` stays code."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(part.replace("|", "\\|") if part.startswith("`") else _escaped(part) for part in parts)


def block(text: str) -> str:
    """Lines as they are, without what all of them are indented by."""
    return f"```text\n{textwrap.dedent(text.rstrip())}\n```"


def several(words: list[str], joint: str = "and") -> str:
    """A list in words: a, b and c."""
    return f"{', '.join(words[:-1])} {joint} {words[-1]}" if len(words) > 1 else "".join(words)


def _escaped(text: str) -> str:
    return SPECIAL.sub(lambda found: f"&#{ord(found[0])};", text)

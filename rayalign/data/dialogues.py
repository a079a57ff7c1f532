"""Conversations out of what people store: lists of messages, ShareGPT turns, HH-RLHF transcripts."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from rayalign.data.files import Place
from rayalign.errors import DataError
from rayalign.types import Conversation, Message

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
}
_HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def read_text(value: Any, key: str, place: Place) -> str:
    """The text of a column. Raises DataError for anything else, and for text that no tokenizer can take."""
    if not isinstance(value, str):
        raise DataError(f"{place}: {key!r} holds {type(value).__name__}, expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"{place}: {key!r} holds half of a surrogate pair (\\ud800 to \\udfff); mend the text"
        ) from None
    return value


def read_messages(value: Any, key: str, place: Place) -> Conversation:
    """A list of {role, content} or {from, value} as a conversation.

    Raises DataError for an empty list, a role other than system, user and assistant (or ShareGPT's names for
    them) and for content that is not text.
    """
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{place}: {key!r} must be a list of messages with at least one, found {type(value).__name__}"
        )
    return tuple(_read_message(item, f"{key}[{index}]", place) for index, item in enumerate(value))


def _read_message(item: Any, key: str, place: Place) -> Message:
    for role_key, content_key in (("role", "content"), ("from", "value")):
        if isinstance(item, dict) and role_key in item and content_key in item:
            return Message(
                _read_role(item[role_key], key, place), _read_content(item[content_key], key, place)
            )
    found = f"the keys {', '.join(map(str, item))}" if isinstance(item, dict) else type(item).__name__
    raise DataError(f"{place}: {key} must be {{role, content}} or {{from, value}}, found {found}")


def _read_role(role: Any, key: str, place: Place) -> str:
    known = _ROLES.get(role.lower()) if isinstance(role, str) else None
    if known is None:
        raise DataError(f"{place}: {key} has the role {role!r}; known roles: {', '.join(_ROLES)}")
    return known


def _read_content(content: Any, key: str, place: Place) -> str:
    """Text, or a list of text parts as chat APIs store them."""
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in content
    ):
        content = "".join(read_text(part.get("text"), key, place) for part in content)
    return read_text(content, key, place)


def is_transcript(text: str) -> bool:
    """Whether a text is an HH-RLHF dialogue, "\\n\\nHuman: ...\\n\\nAssistant: ...", and no plain answer."""
    return text.startswith("\n\nHuman:") or (text.lstrip().startswith("Human:") and "\n\nAssistant:" in text)


def split_transcript(text: str, key: str, place: Place) -> Conversation:
    """An HH-RLHF dialogue as turns, without the white space around each.

    Some rows of the real files have two turns of one speaker in a row (text of the other was lost, or folded
    into the first). They become one turn with a blank line between, so that roles alternate and no text is
    lost. Nothing else is mended: a "Human:" in the middle of a line stays in the answer that holds it.
    """
    before, *parts = _HH_TURN.split(text)
    if before or not parts:
        raise DataError(f'{place}: {key!r} is no dialogue; it must begin with "\\n\\nHuman:"')
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple(
        Message(_ROLES[speaker.lower()], "\n\n".join(content.strip() for _, content in group))
        for speaker, group in groupby(turns, key=lambda turn: turn[0])
    )

"""Rows as people store them, as demonstrations, preferences and prompts.

What a row is, is read off its columns (after `columns` renamed them), so files of different shapes can be
mixed. A row that cannot be understood is an error that names its place. A row that is understood but is of no
use (an answer that is empty, a pair whose sides are equal) is left out and counted: in the caller's Tally, or else in
the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn, TypeVar

from rayalign.data.dialogues import is_transcript, read_messages, read_text, split_transcript
from rayalign.data.files import Place, PlacedRow, Row
from rayalign.data.tally import Tally
from rayalign.errors import DataError
from rayalign.types import Conversation, Demonstration, Message, Preference

COLUMNS = (
    "prompt", "response", "completion", "messages", "conversations", "instruction", "context", "input",
    "output", "question", "answer", "chosen", "rejected",
)  # fmt: skip

_PAIRS = (
    "{prompt, chosen, rejected}, {instruction, input, chosen, rejected}, "
    "or {chosen, rejected} with whole dialogues"
)
_DEMONSTRATIONS = (
    "{prompt, response}, {prompt, completion}, {messages}, {conversations}, "
    "{instruction, context or input, response or output}, {question, answer}, "
    "or a preference's {chosen, rejected}"
)
_PROMPTS = (
    "{prompt}, {instruction, context or input}, {question}, {messages}, {conversations} or {chosen, rejected}"
)

logger = logging.getLogger(__name__)
T = TypeVar("T")


class _OfNoUse(Exception):
    """A row to leave out; the text is the reason that is counted."""


def demonstrations(
    rows: Iterable[PlacedRow], *, tally: Tally | None = None
) -> Iterator[tuple[Place, Demonstration]]:
    """Rows as demonstrations.

    Of a conversation the last assistant turn is the response, of a preference `chosen` is.
    A `response` or `completion` column goes before `chosen`, and `chosen` before any other. Left out and
    counted: an empty response, a conversation without a prompt before its answer. Raises DataError for a row
    without a known shape, and where no row at all can be used.
    """
    return _convert(rows, _to_demonstration, tally)


def preferences(
    rows: Iterable[PlacedRow], *, tally: Tally | None = None
) -> Iterator[tuple[Place, Preference]]:
    """Rows as preferences. The sides are answers, or whole dialogues that differ in their last turn only.

    Left out and counted: sides that are equal, dialogues that differ before their last turn (there is no
    common prompt), a dialogue that does not end with an answer. One empty side is kept: silence can be worse,
    or better. Raises DataError for a row without a known shape, and where no row at all can be used.
    """
    return _convert(rows, _to_preference, tally)


def prompts(rows: Iterable[PlacedRow], *, tally: Tally | None = None) -> Iterator[tuple[Place, Conversation]]:
    """Rows as prompts: what comes before the answer, in files that have answers and in files that have none.

    Raises DataError for a row without a known shape, and where no row at all can be used.
    """
    return _convert(rows, _to_prompt, tally)


def _convert(
    rows: Iterable[PlacedRow], make: Callable[[Row, Place], T], tally: Tally | None
) -> Iterator[tuple[Place, T]]:
    logs, tally = tally is None, Tally() if tally is None else tally
    place = None
    for place, row in rows:
        try:
            made = make({key: value for key, value in row.items() if not _is_missing(value)}, place)
        except _OfNoUse as reason:
            tally.leave_out(str(reason), place)
            continue
        tally.num_used += 1
        yield place, made
    if not tally.num_used:
        where = place.source if place else "data"
        raise DataError(f"{where}: no row can be used ({tally}); mend the rows, or name another file")
    if tally and logs:
        logger.warning("%s: %s", place.source if place else "data", tally)


def _is_missing(value: object) -> bool:
    """Columns that a row does not fill: null, or the NaN that table tools write for it."""
    return value is None or (isinstance(value, float) and value != value)


def _to_demonstration(row: Row, place: Place) -> Demonstration:
    prompt, response = _read_prompt(row, place), _read_response(row, place)
    if _is_preference(row) and not {"response", "completion"} & row.keys():
        preference = _read_preference(row, place)
        prompt, response = preference.prompt, preference.chosen
    elif prompt is None or response is None:
        conversation = _read_conversation(row, place)
        if conversation is None:
            _refuse(row, place, "demonstration", _DEMONSTRATIONS)
        prompt, response = _last_answer(conversation)
    if not response.strip():
        raise _OfNoUse("empty response")
    return Demonstration(_with_words(prompt), response)


def _to_preference(row: Row, place: Place) -> Preference:
    if not _is_preference(row):
        _refuse(row, place, "preference", _PAIRS)
    preference = _read_preference(row, place)
    if preference.chosen == preference.rejected:
        raise _OfNoUse("chosen and rejected are equal")
    return Preference(_with_words(preference.prompt), preference.chosen, preference.rejected)


def _to_prompt(row: Row, place: Place) -> Conversation:
    prompt = _read_prompt(row, place)
    if prompt is None and _is_preference(row):
        prompt = _read_preference(row, place).prompt
    if prompt is None:
        prompt = _read_conversation(row, place)
        if prompt is None:
            _refuse(row, place, "prompt", _PROMPTS)
        prompt = _last_answer(prompt)[0] if prompt[-1].role == "assistant" else prompt
    return _with_words(prompt)


def _read_prompt(row: Row, place: Place) -> Conversation | None:
    """The prompt of a row that has a column for it; None where it is in a conversation, or not there."""
    if "prompt" in row:
        return _read_turns(row["prompt"], "prompt", place)
    key = next((key for key in ("instruction", "question") if key in row), None)
    if key is None:
        return None
    parts = [read_text(row[key], key, place)]
    context = next((name for name in ("context", "input") if name in row), None)
    if context and read_text(row[context], context, place).strip():
        parts.append(row[context])
    return (Message("user", "\n\n".join(parts)),)


def _read_turns(value: object, key: str, place: Place) -> Conversation:
    """A prompt as text, as an HH-RLHF transcript that ends in "Assistant:", or as messages."""
    if isinstance(value, list):
        return read_messages(value, key, place)
    text = read_text(value, key, place)
    if not text.startswith("\n\nHuman:"):
        return (Message("user", text),)
    turns = split_transcript(text, key, place)
    return turns[:-1] if turns[-1] == Message("assistant", "") else turns


def _read_response(row: Row, place: Place) -> str | None:
    key = next((key for key in ("response", "completion", "output", "answer") if key in row), None)
    return None if key is None else _read_answer(row[key], key, place)


def _read_answer(value: object, key: str, place: Place) -> str:
    """An answer as text, or as a list of one assistant message."""
    if not isinstance(value, list):
        return read_text(value, key, place)
    messages = read_messages(value, key, place)
    if len(messages) != 1 or messages[0].role != "assistant":
        roles = ", ".join(message.role for message in messages)
        raise DataError(f"{place}: {key!r} must be text or one assistant message, found the roles {roles}")
    return messages[0].content


def _read_conversation(row: Row, place: Place) -> Conversation | None:
    key = next((key for key in ("messages", "conversations") if key in row), None)
    return None if key is None else read_messages(row[key], key, place)


def _last_answer(conversation: Conversation) -> tuple[Conversation, str]:
    """Splits at the last assistant turn; what a user said after it was never answered."""
    answers = [index for index, message in enumerate(conversation) if message.role == "assistant"]
    if not answers:
        raise _OfNoUse("no assistant turn")
    return conversation[: answers[-1]], conversation[answers[-1]].content


def _is_preference(row: Row) -> bool:
    return "chosen" in row and "rejected" in row


def _read_preference(row: Row, place: Place) -> Preference:
    prompt = _read_prompt(row, place)
    sides = [
        _read_side(row[key], key, place, has_prompt=prompt is not None) for key in ("chosen", "rejected")
    ]
    if any(side[-1].role != "assistant" for side in sides):
        raise _OfNoUse("a side does not end with an answer")
    (*before, chosen), (*before_rejected, rejected) = sides
    if before != before_rejected:
        raise _OfNoUse("the sides differ before their last turn")
    if prompt is None or before:
        if prompt is not None and tuple(before[-len(prompt) :]) != prompt:
            raise DataError(
                f"{place}: the turns before the answers are not the prompt; mend or remove the row"
            )
        prompt = tuple(before)
    return Preference(prompt, chosen.content, rejected.content)


def _read_side(value: object, key: str, place: Place, *, has_prompt: bool) -> Conversation:
    """One side as turns, the answer last; a plain text is an answer where the row has a prompt."""
    if isinstance(value, list):
        return read_messages(value, key, place)
    text = read_text(value, key, place)
    if has_prompt:
        return (Message("assistant", text),)
    if is_transcript(text):
        return split_transcript(text, key, place)
    raise DataError(f"{place}: {key!r} is a plain text, but the row has no prompt; accepted: {_PAIRS}")


def _with_words(prompt: Conversation) -> Conversation:
    if not any(message.content.strip() for message in prompt):
        raise _OfNoUse("empty prompt")
    return prompt


def _refuse(row: Row, place: Place, what: str, accepted: str) -> NoReturn:
    columns = ", ".join(f"{name} (null)" if value is None else name for name, value in row.items())
    raise DataError(
        f"{place}: no {what} in a row with the columns {columns or '(none)'}; accepted: {accepted}; "
        "name other columns in the source's columns setting"
    )

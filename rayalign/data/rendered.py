"""From the text of a prompt back to its tokens, as training made them.

A reward that is given texts (a Python function, a service) sees a rendered prompt without its special tokens. To score it
with a model they must be put back: the text is taken apart into its turns by what the chat template writes around them,
rendered again, and kept only if it then reads exactly as it came.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rayalign.data.template import Template
from rayalign.errors import DataError
from rayalign.types import Conversation, Message

# Plain words, so that no template cuts, moves or hides them; one for each turn.
PROBES = ("probea", "probeb", "probec")


@dataclass(frozen=True)
class _Scaffold:
    """What a template writes before the first turn (or system text), between turns, and before the answer."""

    before: str
    system_end: str | None  # between the system text and the first turn; None where there is no system text
    user_end: str | None  # between a question and its answer; None for a single turn
    assistant_end: str | None
    last: str


class RenderedPrompts:
    """Reads prompts that a template rendered, without their special tokens."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self._scaffolds = [*_scaffolds(template)]
        # Decoding may drop the space beside a special token that was dropped.
        self._scaffolds += [_stripped(scaffold) for scaffold in self._scaffolds]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of B prompts. Raises DataError, which names the place, for a text that is no prompt of this template."""
        return [self._encode(text, place) for place, text in enumerate(texts)]

    def _encode(self, text: str, place: int) -> list[int]:
        for rendered in self._candidates(text):
            (tokens,) = self._template.encode_prompts([rendered])
            if tokens and self._template.decode_prompt(tokens) == text:
                return tokens
        raise DataError(
            f"prompts[{place}] does not read as a prompt of this reward's chat template; send what the template renders, "
            "the generation prompt included, without special tokens"
        )

    def _candidates(self, text: str) -> Iterator[str]:
        """Rendered conversations that may read as the text: the most turns first, and at last one that was cut."""
        for scaffold in self._scaffolds:
            conversation = _taken_apart(text, scaffold)
            if conversation is None:
                continue
            try:
                yield self._template.prompt_text(conversation)
            except DataError:
                continue  # the template takes no such conversation
        # A prompt over the length limit lost its beginning, and with it what would tell its turns apart.
        if any(scaffold.last.strip() and text.endswith(scaffold.last) for scaffold in self._scaffolds):
            yield text


def _scaffolds(template: Template) -> Iterator[_Scaffold]:
    """Of several turns and of one, each with a system text and without, as far as the template takes them."""
    first, second, third = PROBES
    turns = (Message("user", first), Message("assistant", second), Message("user", third))
    for system in (False, True):
        for conversation in (turns, turns[:1]):
            told = (Message("system", "probes"), *conversation) if system else conversation
            try:
                text = template.without_special(template.prompt_text(told))
            except DataError:
                continue
            pieces = _between(text, ["probes"] * system + [turn.content for turn in conversation])
            if pieces is not None:
                yield _scaffold(pieces, system=system)


def _scaffold(pieces: list[str], *, system: bool) -> _Scaffold:
    before, *between, last = pieces
    system_end = between.pop(0) if system else None
    user_end, assistant_end = between if between else (None, None)
    return _Scaffold(before, system_end, user_end, assistant_end, last)


def _between(text: str, words: list[str]) -> list[str] | None:
    """What stands before, between and after words that follow each other; None where one is not there."""
    pieces = []
    for word in words:
        piece, found, text = text.partition(word)
        if not found:
            return None
        pieces.append(piece)
    return [*pieces, text]


def _stripped(scaffold: _Scaffold) -> _Scaffold:
    system, user, assistant = (
        None if end is None else end.strip()
        for end in (scaffold.system_end, scaffold.user_end, scaffold.assistant_end)
    )
    return _Scaffold(scaffold.before.strip(), system, user, assistant, scaffold.last.strip())


def _taken_apart(text: str, scaffold: _Scaffold) -> Conversation | None:
    """The turns of a text; None where it has another form."""
    if not text.startswith(scaffold.before) or not text.endswith(scaffold.last):
        return None
    rest = text[len(scaffold.before) : len(text) - len(scaffold.last)]
    if len(scaffold.before) + len(scaffold.last) > len(text):
        return None
    turns: list[Message] = []
    if scaffold.system_end is not None:
        told, found, rest = rest.partition(scaffold.system_end) if scaffold.system_end else ("", "", rest)
        if not found:
            return None
        turns.append(Message("system", told))
    if scaffold.user_end is None or scaffold.assistant_end is None:
        return (*turns, Message("user", rest))
    ends = (("user", scaffold.user_end), ("assistant", scaffold.assistant_end))
    if not all(end.strip() for _, end in ends):
        return None  # nothing that shows tells the turns apart
    number = 0
    while ends[number % 2][1] in rest:
        role, end = ends[number % 2]
        turn, _, rest = rest.partition(end)
        turns.append(Message(role, turn))
        number += 1
    return (*turns, Message("user", rest)) if number and number % 2 == 0 else None

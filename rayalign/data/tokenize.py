"""Demonstrations, prompts and preferences as tokens, within the model's length.

What is too long is an error, is left out, or is cut, as `overlong` says; the last two are counted in the caller's
Tally, or logged. A prompt is cut on the left (its end is what is asked); a response that has no room even then is
cut on the right, loses its end token and has `ended` False: an end is never forged.

How far a prompt is cut depends on `room`. With `room`, every prompt gets max_length - room tokens, in
training and in generation alike, so both see the same prompt (T17 holds for cut prompts too): use it wherever
demonstrations are set against the policy's own samples. Without, a demonstration's prompt yields what its
response needs, down to one token.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeVar

import numpy as np

from rayalign.data.files import Place
from rayalign.data.tally import Tally
from rayalign.data.template import Template
from rayalign.errors import ConfigError, DataError
from rayalign.types import Conversation, Demonstration, Preference, Ragged, Sequences, TokenizedPrompts

Overlong = Literal["error", "drop", "truncate"]

_CHUNK = 1024  # rows that go through the tokenizer at once

logger = logging.getLogger(__name__)
T = TypeVar("T")


class AllTooLong(DataError):
    """No row of those given fits into max_length."""


def tokenize_demonstrations(
    rows: Iterable[Demonstration],
    template: Template,
    *,
    max_length: int,
    overlong: Overlong = "error",
    room: int | None = None,
    places: Sequence[Place] | None = None,
    tally: Tally | None = None,
) -> Sequences:
    """Prompt, response and end token of each row: B <= number of rows.

    `prompt_ids` are the numbers of the first rows with the same prompt, in the rows given. `places` are used
    in messages; without them a row is called by its number. Raises DataError for a row that is too long under
    "error" and where the template refuses a conversation, AllTooLong where every row is too long.
    """
    rows = list(rows)
    answers = [(row.prompt, (row.response,)) for row in rows]
    fit = _Fit.of(template, max_length, room, overlong, tally)
    (sequences,) = _tokenize(answers, fit, places, num_sides=1)
    return sequences


def tokenize_preferences(
    rows: Iterable[Preference],
    template: Template,
    *,
    max_length: int,
    overlong: Overlong = "error",
    room: int | None = None,
    places: Sequence[Place] | None = None,
    tally: Tally | None = None,
) -> tuple[Sequences, Sequences]:
    """The chosen and the rejected sides. Row i of both is pair i: same prompt tokens, same `prompt_ids`.

    A pair is left out whole where one side is too long. Raises as tokenize_demonstrations does.
    """
    rows = list(rows)
    answers = [(row.prompt, (row.chosen, row.rejected)) for row in rows]
    fit = _Fit.of(template, max_length, room, overlong, tally)
    chosen, rejected = _tokenize(answers, fit, places, num_sides=2)
    return chosen, rejected


def tokenize_prompts(
    conversations: Iterable[Conversation],
    template: Template,
    *,
    max_length: int,
    room: int,
    overlong: Overlong = "error",
    places: Sequence[Place] | None = None,
    tally: Tally | None = None,
) -> TokenizedPrompts:
    """Prompts that leave `room` tokens for a response; `prompt_ids` are the row numbers.

    Raises as tokenize_demonstrations does, and ConfigError where `room` leaves nothing for a prompt.
    """
    fit = _Fit.of(template, max_length, room, overlong, tally)
    kept: list[Any] = []
    ids: list[int] = []
    for row, prompt, _ in _encode(((prompt, ()) for prompt in conversations), template, places):
        cut = fit.apply(prompt, [], _place(places, row))
        if cut is not None:
            kept.append(cut[0])
            ids.append(row)
    fit.finish()
    return TokenizedPrompts(Ragged.from_list(kept), np.array(ids, dtype=np.int64))


def prompts_of(sequences: Sequences) -> TokenizedPrompts:
    """The different prompts of sequences, token for token as they stand there, in the order of their ids."""
    ids, first_rows = np.unique(sequences.prompt_ids, return_index=True)
    tokens: list[Any] = list(sequences.take(first_rows).prompts())
    return TokenizedPrompts(Ragged.from_list(tokens), ids.astype(np.int64))


def prompt_ids(conversations: Iterable[Conversation]) -> np.ndarray:
    """[B] int64: for each conversation the number of the first one that equals it."""
    first: dict[Conversation, int] = {}
    return np.array(
        [first.setdefault(prompt, row) for row, prompt in enumerate(conversations)], dtype=np.int64
    )


@dataclass(slots=True)
class _Fit:
    """The length rule of one call, and what it did."""

    template: Template
    max_length: int
    room: int | None
    overlong: Overlong
    tally: Tally
    logs: bool  # where the caller brought no tally to tell from
    num_rows: int = 0
    num_kept: int = 0
    num_too_long: int = 0

    @classmethod
    def of(
        cls, template: Template, max_length: int, room: int | None, overlong: Overlong, tally: Tally | None
    ) -> _Fit:
        """With the caller's tally, or its own."""
        return cls(template, max_length, room, overlong, Tally() if tally is None else tally, logs=tally is None)

    def __post_init__(self) -> None:
        if self.room is not None and not 0 < self.room < self.max_length:
            raise ConfigError(
                f"max_new_tokens ({self.room}) leaves no room for a prompt in model.max_length "
                f"({self.max_length}); lower the one or raise the other"
            )

    def apply(
        self, prompt: np.ndarray, responses: Sequence[np.ndarray], place: str
    ) -> tuple[np.ndarray, list[np.ndarray]] | None:
        """Prompt and responses within max_length; None for a row to leave out."""
        if len(prompt) == 0:
            raise DataError(f"{place}: the prompt has no tokens; mend the row or the chat template")
        self.num_rows += 1
        lengths = [len(response) for response in responses]
        kept, kept_lengths = self._kept(len(prompt), lengths)
        reasons = ["prompt cut on the left"] * (kept < len(prompt))
        reasons += ["response cut on the right, without an end"] * (kept_lengths != lengths)
        self.num_too_long += bool(reasons)
        if reasons and self.overlong != "truncate":
            self._refuse_or_drop(self._describe(len(prompt), lengths), place)
            return None
        for reason in reasons:
            self.tally.cut_row(reason, place)
        self.num_kept += 1
        kept_responses = [response[:length] for response, length in zip(responses, kept_lengths, strict=True)]
        return self._cut_left(prompt, kept), kept_responses

    def _kept(self, prompt: int, responses: list[int]) -> tuple[int, list[int]]:
        """Tokens to keep of the prompt and of each response; both sides of a pair share one prompt."""
        if self.room is None:
            budget = max(self.max_length - max(responses), 1)
        else:
            budget = self.max_length - self.room
        kept = min(prompt, budget)
        return kept, [min(length, self.max_length - kept) for length in responses]

    def _cut_left(self, prompt: np.ndarray, length: int) -> np.ndarray:
        """The end of the prompt. A BOS stays in front: models that were trained with one fail without."""
        cut = prompt[len(prompt) - length :]
        if prompt[0] == self.template.bos_token_id and 1 < length < len(prompt):
            return np.concatenate([prompt[:1], cut[1:]])
        return cut

    def _refuse_or_drop(self, lengths: str, place: str) -> None:
        if self.overlong == "error":
            raise DataError(
                f"{place}: {lengths}; raise model.max_length, shorten the row, "
                "or set data.overlong to drop or truncate"
            )
        self.tally.leave_out("too long", f"{place}: {lengths}")

    def _describe(self, prompt: int, responses: list[int]) -> str:
        if self.room is not None and prompt > self.max_length - self.room:
            return (
                f"a prompt of {prompt} tokens leaves no room for {self.room} more "
                f"in max_length {self.max_length}"
            )
        total = prompt + max(responses)
        return (
            f"a prompt of {prompt} tokens and a response of {max(responses)} make {total}, "
            f"over max_length {self.max_length}"
        )

    def finish(self) -> None:
        self.tally.num_used = self.num_kept
        if self.num_rows and not self.num_kept:
            raise AllTooLong(
                f"all {self.num_rows} rows are too long for max_length {self.max_length}; "
                "raise model.max_length, or set data.overlong to truncate"
            )
        if self.num_too_long and self.logs:
            logger.warning("lengths: %s", self.tally)


def _tokenize(
    answers: Sequence[tuple[Conversation, tuple[str, ...]]],
    fit: _Fit,
    places: Sequence[Place] | None,
    *,
    num_sides: int,
) -> list[Sequences]:
    ids = prompt_ids(prompt for prompt, _ in answers)
    rows: list[int] = []
    prompt_lengths: list[int] = []
    sides: list[list[Any]] = [[] for _ in range(num_sides)]
    ended: list[list[bool]] = [[] for _ in range(num_sides)]
    for row, prompt, responses in _encode(answers, fit.template, places):
        cut = fit.apply(prompt, responses, _place(places, row))
        if cut is None:
            continue
        rows.append(row)
        prompt_lengths.append(len(cut[0]))
        for side, (whole, kept) in enumerate(zip(responses, cut[1], strict=True)):
            sides[side].append(np.concatenate([cut[0], kept]))
            ended[side].append(len(kept) == len(whole))
    fit.finish()
    lengths = np.array(prompt_lengths, dtype=np.int64)
    kept_ids = ids[np.array(rows, dtype=np.int64)]
    return [
        Sequences(Ragged.from_list(sides[side]), lengths, kept_ids, np.array(ended[side], dtype=bool))
        for side in range(num_sides)
    ]


def _encode(
    answers: Iterable[tuple[Conversation, tuple[str, ...]]],
    template: Template,
    places: Sequence[Place] | None,
) -> Iterator[tuple[int, np.ndarray, list[np.ndarray]]]:
    """(row, prompt tokens, tokens of each response with its end), with many rows at once in the tokenizer."""
    first = 0
    for chunk in _chunks(answers):
        texts = [_render(prompt, template, _place(places, first + i)) for i, (prompt, _) in enumerate(chunk)]
        prompts = template.encode_prompts(texts)
        responses = iter(template.encode_responses([text for _, texts in chunk for text in texts]))
        for i, (_, texts_of_row) in enumerate(chunk):
            encoded = [np.array(next(responses), dtype=np.int64) for _ in texts_of_row]
            yield first + i, np.array(prompts[i], dtype=np.int64), encoded
        first += len(chunk)


def _chunks(rows: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _render(prompt: Conversation, template: Template, place: str) -> str:
    try:
        return template.prompt_text(prompt)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def _place(places: Sequence[Place] | None, row: int) -> str:
    return str(places[row]) if places is not None else f"row {row + 1}"

"""What a policy answered to the same held-out prompts after each round, with the reward of then: rounds.jsonl.

One line for each stage and number of rounds done (0: before the first):

    {"stage", "rounds_done", "step", "prompts": [{"prompt", "demonstration", "reward", "tokens",
        "answers": [{"response", "reward", "ended", "tokens"}]}]}

`reward` is null where there is none yet; `tokens`, [[text, reward], ...] of a response, where the reward is one of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayalign.data.template import Template
from rayalign.storage.jsonl import add_line, drop_lines
from rayalign.types import Scores, Sequences

COLUMNS = ("prompt", "demonstration", "response", "reward", "ended")
TABLE_PROMPTS = 16
ALL_ROUNDS, EVERY = 50, 10
UNFINISHED = "\ufffd"  # what the first bytes of a character are shown as


@dataclass(frozen=True)
class Probe:
    """Held-out demonstrations and samples for the same prompts, each with its scores where a reward gave any."""

    demonstrations: Sequences
    samples: Sequences
    demonstration_scores: Scores | None = None
    sample_scores: Scores | None = None


def keep_probe(
    file: Path, template: Template, probe: Probe, *, stage: str, rounds_done: int, step: int
) -> list[dict[str, Any]]:
    """Adds a line to `file`, in the place of one of the same round (of a run that went back to its last step).

    Of rounds after the fiftieth every tenth is kept, and the newest. Returns the line's `prompts`.
    """
    demonstrations = list(_responses(template, probe.demonstrations, probe.demonstration_scores))
    samples = list(_responses(template, probe.samples, probe.sample_scores))
    ids = probe.samples.prompt_ids
    prompts = [
        {
            "prompt": template.decode_prompt(prompt),
            "demonstration": own["response"],
            "reward": own["reward"],
            "tokens": own["tokens"],
            "answers": [samples[place] for place in np.flatnonzero(ids == number)],
        }
        for prompt, number, own in zip(
            probe.demonstrations.prompts(), probe.demonstrations.prompt_ids, demonstrations, strict=True
        )
    ]
    line = {"stage": stage, "rounds_done": rounds_done, "step": step, "prompts": prompts}

    def is_replaced(last: dict[str, Any]) -> bool:
        done = last["rounds_done"] if last.get("stage") == stage else -1
        return done >= rounds_done or (done > ALL_ROUNDS and done % EVERY != 0)

    add_line(file, line, instead_of=is_replaced)
    return prompts


def forget_probes(file: Path, stage: str, which: Callable[[dict[str, Any]], bool]) -> None:
    """Takes away the stage's lines that `which` says: those of a run that goes back to before them."""
    drop_lines(file, lambda old: old.get("stage") == stage and which(old))


def table_rows(prompts: list[dict[str, Any]]) -> list[list[Any]]:
    """The first few prompts with each answer, for the trackers: rows of COLUMNS."""
    return [
        [row["prompt"], row["demonstration"], answer["response"], answer["reward"], str(answer["ended"])]
        for row in prompts[:TABLE_PROMPTS]
        for answer in row["answers"]
    ]


def _responses(template: Template, sequences: Sequences, scores: Scores | None) -> Iterator[dict[str, Any]]:
    values: dict[int, float] = {}
    dense: dict[int, np.ndarray] = {}
    if scores is not None:
        values = dict(zip(scores.rows.tolist(), scores.values.tolist(), strict=True))
        if scores.token_values is not None:
            dense = dict(zip(scores.rows.tolist(), scores.token_values, strict=True))
    for row, (tokens, ended) in enumerate(zip(sequences.responses(), sequences.ended, strict=True)):
        yield {
            "response": template.decode_response(tokens),
            "reward": _finite(values.get(row)),
            "ended": bool(ended),
            "tokens": _pieces(template, tokens, dense[row]) if row in dense else None,
        }


def _pieces(template: Template, tokens: np.ndarray, rewards: np.ndarray) -> list[list[Any]]:
    """[text, reward] of each token, as what it adds to the text; tokens that make one character together are one piece.

    Decodes a few tokens at a time, from the piece before: some tokenizers write a space by what stands before it.
    """
    pieces: list[list[Any]] = []
    context, start, pending = 0, 0, 0.0
    for end, reward in enumerate(rewards.tolist(), start=1):
        pending += reward
        before, text = (template.decode_tokens(tokens[context:stop]) for stop in (start, end))
        if text.endswith(UNFINISHED) and end < len(tokens):
            continue
        pieces.append([text[len(before) :], _finite(pending)])
        context, start, pending = start, end, 0.0
    return pieces


def _finite(value: float | None) -> float | None:
    return round(value, 5) if value is not None and math.isfinite(value) else None

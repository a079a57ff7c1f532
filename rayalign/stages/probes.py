"""What a policy answered to the same held-out prompts after each round, with the reward of then: rounds.jsonl.

One line for each stage and number of rounds done (0: before the first):

    {"stage", "rounds_done", "step", "prompts": [{"prompt", "demonstration", "reward", "tokens",
        "answers": [{"response", "reward", "ended", "tokens"}]}]}

`reward` is null where there is none yet; `tokens`, [[text, reward], ...] of a response, where the reward is one of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayalign.data.template import Template
from rayalign.storage.jsonl import add_line
from rayalign.types import Scores, Sequences

ROUNDS_FILE = "rounds.jsonl"
COLUMNS = ("prompt", "demonstration", "response", "reward", "ended")
TABLE_PROMPTS = 16


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
    """Adds a line to `file`, in the place of those that the stage wrote of this round or a later one before it went back.

    Returns the line's `prompts`.
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
    add_line(file, line, lambda old: old.get("stage") == stage and not old.get("rounds_done", 0) < rounds_done)
    return prompts


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
    """Each token's own text, as what it adds to the text before it: a character may take several tokens."""
    pieces, before = [], ""
    for end, reward in enumerate(rewards.tolist(), start=1):
        text = template.decode_tokens(tokens[:end])
        pieces.append([text[len(before) :], _finite(reward)])
        before = text
    return pieces


def _finite(value: float | None) -> float | None:
    return round(value, 5) if value is not None and math.isfinite(value) else None

"""Pairs of sequences that answer one prompt: matched, laid side by side for a learner, and drawn for a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayalign.errors import RayalignError
from rayalign.types import Sequences


def rows_by_prompt(prompt_ids: np.ndarray) -> dict[int, np.ndarray]:
    """For each prompt the rows that answer it, ascending: prompt_ids [B] -> {id: rows}."""
    order = np.argsort(prompt_ids, kind="stable")
    ids, starts = np.unique(prompt_ids[order], return_index=True)
    return dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True))


def matched(better: Sequences, worse: Sequences) -> tuple[Sequences, Sequences]:
    """Rows of both sides paired within a prompt: each row of the side with more of them comes once, the other's in turn.

    Example: two better and four worse responses to a prompt make four pairs.
    """
    rows_better, rows_worse = rows_by_prompt(better.prompt_ids), rows_by_prompt(worse.prompt_ids)
    pairs: list[np.ndarray] = []
    for prompt in sorted(rows_better.keys() & rows_worse.keys()):
        first, second = rows_better[prompt], rows_worse[prompt]
        num = max(len(first), len(second))
        pairs.append(np.stack([np.resize(first, num), np.resize(second, num)], axis=1))
    rows = np.concatenate(pairs) if pairs else np.empty((0, 2), dtype=np.int64)
    return better.take(rows[:, 0]), worse.take(rows[:, 1])


def interleaved(better: Sequences, worse: Sequences) -> Sequences:
    """[better, worse, better, worse, ...]: the form in which pairs reach a learner, two consecutive rows a pair."""
    both = Sequences.concatenate([better, worse])
    return both.take(np.arange(2 * len(better)).reshape(2, -1).T.reshape(-1))


class PairDraw:
    """All (demonstration, sample) pairs that share a prompt, drawn evenly over demonstrations."""

    def __init__(self, demonstrations: Sequences, sources: Sequence[Sequences]) -> None:
        self._demonstrations = demonstrations
        self._samples = Sequences.concatenate(sources)
        self._of_prompt = rows_by_prompt(self._samples.prompt_ids)
        self._usable = np.flatnonzero(np.isin(demonstrations.prompt_ids, list(self._of_prompt)))
        if not len(self._usable):
            raise RayalignError("no sample answers the prompt of any demonstration; nothing to learn the reward from")

    def draw(self, random: np.random.Generator, num_pairs: int) -> Sequences:
        """[demo, agent, demo, agent, ...]: 2 * num_pairs sequences."""
        demos = random.choice(self._usable, size=num_pairs, replace=num_pairs > len(self._usable))
        ids = self._demonstrations.prompt_ids[demos]
        agents = np.array([random.choice(self._of_prompt[int(i)]) for i in ids])
        return interleaved(self._demonstrations.take(demos), self._samples.take(agents))


class FixedDraw:
    """Stored pairs, drawn without repetition within a step where there are enough."""

    def __init__(self, better: Sequences, worse: Sequences) -> None:
        self._better, self._worse = better, worse

    def __len__(self) -> int:
        return len(self._better)

    def draw(self, random: np.random.Generator, num_pairs: int) -> Sequences:
        """[better, worse, better, worse, ...]: 2 * num_pairs sequences."""
        rows = random.choice(len(self), size=num_pairs, replace=num_pairs > len(self))
        return interleaved(self._better.take(rows), self._worse.take(rows))

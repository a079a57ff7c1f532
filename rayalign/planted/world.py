"""The planted world as data: prompts, demonstrations, preferences, and the folder of files that a run reads.

Every draw has a random stream of its own, keyed by the world's seed, the kind of row and the call's seed. A
larger `num` with the same seeds begins with the same rows, so that learning curves over the number of
demonstrations nest.
"""

from __future__ import annotations

import functools
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayalign.errors import UserError
from rayalign.planted import words as w
from rayalign.planted.demonstrators import (
    VARIANTS,
    Demonstrator,
    Variant,
    expected_frequencies,
    expected_golden,
)
from rayalign.planted.golden import GOLDEN_POINTS, golden_reward
from rayalign.planted.grammar import NUM_PROMPTS, PROMPT_SHAPE, Prompt, prompt_at, render_response

Row = dict[str, str]

SPLITS = ("train", "heldout")
HELDOUT_ONE_IN = 10  # a tenth of all prompts is never trained on

# The number of a stream is part of its random key: append, never reorder.
_STREAMS = ("prompts", "demonstrations", "pretraining", "preferences", "shift")
_PROMPT_ORDER, _TEXTS = 0, 1  # apart, so that how many draws a text takes does not move the prompts


@dataclass(frozen=True, slots=True)
class PlantedWorld:
    """A world with known truth. `variant` names its cast (see `demonstrators.VARIANTS`); seeds are >= 0."""

    seed: int = 0
    variant: str = "low"

    def __post_init__(self) -> None:
        _known("variant", self.variant, VARIANTS)

    @property
    def cast(self) -> Variant:
        """The writers of this world."""
        return VARIANTS[self.variant]

    def prompts(self, num: int, seed: int = 0, split: str = "train") -> list[str]:
        """`num` different prompts of a split."""
        return [prompt.text for prompt in self._draw_prompts("prompts", num, seed, split)]

    def demonstrations(
        self, demonstrator: Demonstrator, num: int, seed: int = 0, split: str = "train"
    ) -> list[Row]:
        """`num` rows {prompt, response} by a demonstrator, on different prompts."""
        return self._responses("demonstrations", demonstrator, num, seed, split)

    def pretraining(self, num: int, seed: int = 0) -> list[Row]:
        """`num` rows {prompt, response} for training the base model from nothing."""
        return self._responses("pretraining", self.cast.pretraining, num, seed, "train")

    def shift(self, num: int, seed: int = 0) -> list[Row]:
        """`num` rows {prompt, response} by the base, to turn the pre-trained model into it in one epoch."""
        return self._responses("shift", self.cast.base, num, seed, "train")

    def preferences(self, num: int, kappa: float, seed: int = 0, split: str = "train") -> list[Row]:
        """`num` rows {prompt, chosen, rejected} between two different responses of the base.

        P(first is chosen) = sigmoid(kappa * (golden of first - golden of second)): Bradley-Terry.
        """
        prompts = self._draw_prompts("preferences", num, seed, split)
        rng = self._rng("preferences", seed, split, _TEXTS)
        return [_preference(prompt, self.cast.base, kappa, rng) for prompt in prompts]

    def _responses(self, stream: str, writer: Demonstrator, num: int, seed: int, split: str) -> list[Row]:
        prompts = self._draw_prompts(stream, num, seed, split)
        rng = self._rng(stream, seed, split, _TEXTS)
        return [{"prompt": prompt.text, "response": _respond(prompt, writer, rng)} for prompt in prompts]

    def _draw_prompts(self, stream: str, num: int, seed: int, split: str) -> list[Prompt]:
        indices = _split_indices(split)
        if not 0 <= num <= len(indices):
            raise UserError(f"planted world: {num} prompts asked of {split!r}, which has 0 to {len(indices)}")
        order = self._rng(stream, seed, split, _PROMPT_ORDER).permutation(indices)
        return [prompt_at(index) for index in order[:num]]

    def _rng(self, stream: str, seed: int, split: str, purpose: int) -> np.random.Generator:
        if min(self.seed, seed) < 0:
            raise UserError(f"planted world: seeds are 0 or more, not {min(self.seed, seed)}")
        key = [self.seed, _STREAMS.index(stream), seed, SPLITS.index(split), purpose]
        return np.random.default_rng(key)


def is_heldout(prompt_indices: np.ndarray) -> np.ndarray:
    """Which prompts (by number, [N]) are held out: [N] bool.

    A prompt is held out when the positions of its four words in their lists add up to a multiple of ten:
    exactly a tenth of all prompts, in which every word occurs, as it does in the rest.
    """
    digits = np.unravel_index(prompt_indices, PROMPT_SHAPE)
    heldout: np.ndarray = np.sum(digits, axis=0) % HELDOUT_ONE_IN == 0
    return heldout


def write_world(
    folder: str | Path,
    *,
    variant: str = "low",
    seed: int = 0,
    kappa: float = 10.0,
    num_pretrain: int = 34_000,
    num_shift: int = 2_500,
    num_demonstrations: int = 200,
    num_heldout_demonstrations: int = 200,
    num_preferences: int = 200,
    num_heldout_preferences: int = 400,
    num_prompts: int = 2_000,
    num_eval_prompts: int = 500,
) -> Path:
    """Writes a world's files into a new `folder` and returns it; same arguments, same bytes.

    `<kind>.jsonl` holds the rows, `world.json` the facts about them (probabilities, expected golden rewards,
    counts). The heldout and eval files use held-out prompts. `shift.jsonl` is there only where the base model needs it
    (`Variant.shifts`: the low world). All is written into a folder aside and renamed, so that a folder is
    complete or not there.
    """
    world = PlantedWorld(seed, variant)
    expert = world.cast.expert
    files: dict[str, Sequence[Mapping[str, str]]] = {
        "pretrain": world.pretraining(num_pretrain),
        "demonstrations": world.demonstrations(expert, num_demonstrations),
        "heldout_demonstrations": world.demonstrations(expert, num_heldout_demonstrations, split="heldout"),
        "preferences": world.preferences(num_preferences, kappa),
        "heldout_preferences": world.preferences(num_heldout_preferences, kappa, split="heldout"),
        "prompts": [{"prompt": prompt} for prompt in world.prompts(num_prompts)],
        "eval_prompts": [{"prompt": prompt} for prompt in world.prompts(num_eval_prompts, split="heldout")],
    }
    if world.cast.shifts:
        files["shift"] = world.shift(num_shift)
    counts = {name: len(rows) for name, rows in files.items()}
    texts = {f"{name}.jsonl": "".join(json.dumps(row) + "\n" for row in rows) for name, rows in files.items()}
    truth = _truth(world, expert, kappa, counts)
    return _write_aside(Path(folder), texts | {"world.json": json.dumps(truth, indent=2) + "\n"})


def _truth(world: PlantedWorld, expert: Demonstrator, kappa: float, counts: dict[str, int]) -> dict[str, Any]:
    """What world.json says."""
    return {
        "variant": world.variant,
        "seed": world.seed,
        "kappa": kappa,
        "pretraining": _describe(world.cast.pretraining),
        "base": _describe(world.cast.base),
        "expert": _describe(expert),
        "golden_points": GOLDEN_POINTS,
        "counts": counts,
        "max_response_tokens": w.MAX_RESPONSE_TOKENS,
    }


def _describe(demonstrator: Demonstrator) -> dict[str, Any]:
    return {
        "probabilities": asdict(demonstrator),
        "expected_frequencies": expected_frequencies(demonstrator),
        "expected_golden": expected_golden(demonstrator),
    }


def _write_aside(folder: Path, texts: Mapping[str, str]) -> Path:
    if folder.exists():
        raise UserError(f"planted world: {folder} exists already; remove it or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as aside:
        complete = Path(aside) / folder.name
        complete.mkdir()
        for name, text in texts.items():
            (complete / name).write_text(text, encoding="utf-8", newline="\n")
        complete.rename(folder)
    return folder


def _respond(prompt: Prompt, writer: Demonstrator, rng: np.random.Generator) -> str:
    return render_response(prompt, writer.draw_attributes(rng), rng)


def _preference(prompt: Prompt, base: Demonstrator, kappa: float, rng: np.random.Generator) -> Row:
    first = second = _respond(prompt, base, rng)
    while second == first:  # a text is never preferred to itself
        second = _respond(prompt, base, rng)
    margin = golden_reward(prompt.text, first) - golden_reward(prompt.text, second)
    if rng.random() >= _sigmoid(kappa * margin):
        first, second = second, first
    return {"prompt": prompt.text, "chosen": first, "rejected": second}


def _sigmoid(x: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * x))  # never overflows, whatever kappa


@functools.cache
def _split_indices(split: str) -> np.ndarray:
    """The numbers of a split's prompts: [172800] or [19200] int64."""
    _known("split", split, SPLITS)
    indices = np.arange(NUM_PROMPTS)
    inside: np.ndarray = indices[is_heldout(indices) == (split == "heldout")]
    return inside


def _known(what: str, key: str, table: Mapping[str, Any] | Sequence[str]) -> str:
    if key not in table:
        raise UserError(f"planted world: no {what} {key!r}; there are {', '.join(table)}")
    return key

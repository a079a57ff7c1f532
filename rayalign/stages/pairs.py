"""Pairs of a better and a worse response to one prompt: preferences, stored samples, or demonstrations against samples."""

from __future__ import annotations

import numpy as np

from rayalign.config.stage_base import DEMONSTRATIONS, PairSource
from rayalign.data.pairs import matched
from rayalign.data.splits import split_heldout
from rayalign.errors import DataError
from rayalign.stages.context import RunContext
from rayalign.stages.inputs import load_demonstrations, load_preferences, load_samples, with_shared_ids
from rayalign.types import Sequences

FAR_APART = 4.0  # how many times the other's weight one source may have before it is told
Pairs = tuple[Sequences, Sequences]  # better, worse: row i of both answers the same prompt, and has its id


def load_pairs(context: RunContext, stage: str, source: PairSource | None) -> Pairs:
    """The pairs of a source; data.preferences if there is none. Pairs of two equal responses are left out, and told.

    Raises DataError where nothing is left.
    """
    if source is None:
        preferences = context.config.data.preferences
        if preferences is None:
            raise DataError(f"stage {stage} needs preferences: set data.preferences")
        name, (better, worse) = preferences.path, load_preferences(context, preferences)
        better, worse = with_shared_ids([better, worse])
    else:
        name = f"pairs of {source.better} over {source.worse}"
        sides = [_side(context, stage, location) for location in (source.better, source.worse)]
        better, worse = matched(*with_shared_ids(sides))
        if not len(better):
            raise DataError(f"{name}: the two sides answer no prompt in common; sample them on the same prompts")
    return _different(context, name, better, worse)


def tell_balance(context: RunContext, stage: str, counts: tuple[int, int], weights: tuple[float, float]) -> None:
    """Says how far apart weighting by counts sets demonstrations and preferences, where that is far (T38)."""
    demos, preferences = (count * weight for count, weight in zip(counts, weights, strict=True))
    least = min(demos, preferences)
    if least and max(demos, preferences) > FAR_APART * least:
        context.progress.say(
            f"warning: stages.{stage}: weighting counts weighs {counts[0]} demonstrations to {counts[1]} preferences as "
            f"{demos / least:.3g} to {preferences / least:.3g} (T38): right where each row tells as much as another; if "
            "not, set weighting to means, or the weights"
        )


def split_pairs(better: Sequences, worse: Sequences, *, frac: float, seed: int) -> tuple[Pairs, Pairs]:
    """(pairs to learn from, pairs kept out): a prompt is never on both sides."""
    train, heldout = split_heldout(better.prompt_ids, frac=frac, seed=seed)
    return (better.take(train), worse.take(train)), (better.take(heldout), worse.take(heldout))


def _side(context: RunContext, stage: str, location: str) -> Sequences:
    if location == DEMONSTRATIONS:
        return load_demonstrations(context, stage).train
    return load_samples(context.locate(location))


def _different(context: RunContext, name: str, better: Sequences, worse: Sequences) -> Pairs:
    same = [a.tobytes() == b.tobytes() for a, b in zip(better.responses(), worse.responses(), strict=True)]
    keep = np.flatnonzero(~np.array(same, dtype=bool))
    if not len(keep):
        raise DataError(f"{name}: in every pair the two responses are the same; there is nothing to tell apart")
    if len(keep) < len(same):
        context.progress.say(f"{name}: {len(same) - len(keep)} of {len(same)} pairs are two equal responses; left out")
    return better.take(keep), worse.take(keep)

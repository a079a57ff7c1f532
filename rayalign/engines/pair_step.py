"""One optimiser step of a sequence reward on pairs, from one source or several: what every way of fitting it shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rayalign.engines.learner import Learner, LossOutput
from rayalign.models.batch import TokenBatch
from rayalign.objectives.reward import margin_demo_minus_agent, pair_accuracy_half_ties
from rayalign.ports import PairLossFn
from rayalign.telemetry.metrics import Mean, Metrics
from rayalign.types import Sequences


@dataclass(frozen=True)
class PairTerm:
    """A term of the loss: factor * sum over its pairs. `prefix` is put before its metrics' names."""

    loss: PairLossFn
    factor: float
    prefix: str


def pair_step(learner: Learner, parts: Sequence[tuple[PairTerm, Sequences]]) -> Metrics:
    """One step on the sum of the terms; each has pairs laid out [better, worse, better, worse, ...].

    The factors divide by counts over all ranks, so neither micro-batches nor ranks change the step.
    """
    sequences = Sequences.concatenate([pairs for _, pairs in parts])
    ends = torch.tensor([len(pairs) for _, pairs in parts]).cumsum(0).tolist()

    def loss(model: Any, batch: TokenBatch) -> LossOutput:
        scores = model(batch)
        rows = torch.from_numpy(batch.rows).to(scores.device)
        metrics: Metrics = {}
        total, start = scores.sum() * 0, 0  # every rank has a gradient, whatever terms fall to it
        for (term, _), end in zip(parts, ends, strict=True):
            own = scores[(rows >= start) & (rows < end)]
            start = end
            if not len(own):
                continue
            better, worse = own[0::2], own[1::2]
            loss_sum = term.loss(better, worse)
            total = total + term.factor * loss_sum
            metrics |= _metrics(term.prefix, float(loss_sum.detach()), better.detach(), worse.detach())
        return LossOutput(total, metrics)

    return learner.step(sequences, loss, denominator=1.0, group_sizes=np.full(len(sequences) // 2, 2))


def _metrics(prefix: str, loss_sum: float, better: torch.Tensor, worse: torch.Tensor) -> Metrics:
    num = len(better)
    margin = "margin_chosen_minus_rejected" if prefix else "margin_demo_minus_agent"
    return {
        f"{prefix}loss": Mean(loss_sum, num),
        f"{prefix}pair_accuracy": Mean(float(pair_accuracy_half_ties(better, worse)), num),
        margin: Mean(float(margin_demo_minus_agent(better, worse)), num),
    }

"""What a learner did with one step, read off its weights, beside the same by plain torch in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from rayalign.config.model import LearnerConfig, OptimizerConfig
from rayalign.engines.learner import Learner, LossOutput, init_distributed
from rayalign.models.batch import TokenBatch
from rayalign.models.policy import PolicyModel
from rayalign.telemetry.metrics import Mean, Sum, values
from rayalign.types import Sequences
from tests.models.tiny import learner_config, load_plain, model_config, plain_logprobs, random_sequences

# Adam without memory and with a huge eps moves by rate * gradient / eps: gradient descent at rate 100.
DESCENT = OptimizerConfig(learning_rate=1e10, betas=(0.0, 0.0), eps=1e8, clip_norm=1e9)
DESCENT_RATE = 100.0
# Everything that changes a step: the gradient's norm is about 40, so it is clipped. A large eps keeps Adam from
# dividing rounding errors by themselves.
ADAMW = OptimizerConfig(
    learning_rate=0.01,
    betas=(0.8, 0.9),
    eps=0.01,
    weight_decay=0.1,
    warmup_steps=1,
    schedule="cosine",
    clip_norm=5.0,
)
TOTAL_STEPS = 4
ODD = random_sequences(7, seed=11)
ONE = random_sequences(1, seed=12)  # on two ranks, one has no row

# Each differs from all others in something that must not matter.
LEARNERS: dict[str, LearnerConfig] = {
    "whole batch": learner_config(),
    "packed": learner_config(packing=True),
    "small micro-batches": learner_config(micro_batch_tokens=16),
    "small packed micro-batches": learner_config(micro_batch_tokens=16, packing=True),
    "one sequence a pass": learner_config(micro_batch_tokens=1),
    "small chunks": learner_config(logprob_chunk_tokens=2),
    "checkpointing": learner_config(gradient_checkpointing=True, micro_batch_tokens=16),
    "ZeRO-1": learner_config(zero_stage=1, micro_batch_tokens=16),
    "ZeRO-2": learner_config(zero_stage=2, micro_batch_tokens=16),
    "ZeRO-2 packed": learner_config(zero_stage=2, micro_batch_tokens=16, packing=True),
    "ZeRO-3": learner_config(zero_stage=3, micro_batch_tokens=16),
    "ZeRO-3, small chunks, checkpointing": learner_config(
        zero_stage=3, micro_batch_tokens=16, logprob_chunk_tokens=2, gradient_checkpointing=True
    ),
}


def coefficients(sequences: Sequences) -> torch.Tensor:
    """[T] weights of the tokens in the loss, all different, so that no exchange of tokens goes unseen."""
    return torch.from_numpy(np.random.default_rng(5).normal(size=sequences.num_response_tokens))


def weighted_loss(sequences: Sequences) -> Callable[..., LossOutput]:
    """Sum over tokens of coefficient times log-prob."""
    parts = coefficients(sequences).float().split(sequences.response_lengths.tolist())

    def loss(model, batch: TokenBatch) -> LossOutput:
        logprobs, _ = model(batch)
        loss_sum = (logprobs * torch.cat([parts[row] for row in batch.rows])).sum()
        return LossOutput(
            loss_sum, {"loss": Mean(float(loss_sum.detach()), len(batch.rows)), "sequences": Sum(len(batch.rows))}
        )

    return loss


def true_gradient(folder: str, sequences: Sequences) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss divided by the number of sequences, and its gradient: each sequence alone, in float64."""
    model = load_plain(folder).double()
    loss = (plain_logprobs(model, sequences) * coefficients(sequences)).sum() / len(sequences)
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters()}


def make_learner(folder: str, learner: LearnerConfig, optimizer: OptimizerConfig = DESCENT, **keys) -> Learner:
    """A learner over the policy in a folder."""
    init_distributed()
    policy = PolicyModel.load(folder, model_config(**keys), learner)
    return Learner(policy, optimizer, learner, total_steps=TOTAL_STEPS)


def snapshot(learner: Learner) -> dict[str, torch.Tensor]:
    """A copy of the whole weights."""
    return {name: tensor.clone() for name, tensor in learner.weights()}


def gradient_step(
    folder: str, sequences: Sequences, learner: LearnerConfig
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The gradient that one step of plain descent followed, and the step's metrics."""
    engine = make_learner(folder, learner)
    before = snapshot(engine)
    metrics = engine.step(sequences, weighted_loss(sequences), denominator=len(sequences))
    after = snapshot(engine)
    return {name: (before[name].double() - after[name].double()) / DESCENT_RATE for name in after}, values(metrics)


def adamw_steps(folder: str, sequences: Sequences, learner: LearnerConfig) -> tuple[dict[str, torch.Tensor], list]:
    """How far three steps of AdamW moved the weights, and the metrics of each step."""
    engine = make_learner(folder, learner, ADAMW)
    before = snapshot(engine)
    metrics = [
        values(engine.step(sequences, weighted_loss(sequences), denominator=len(sequences))) for _ in range(3)
    ]
    after = snapshot(engine)
    return {name: after[name].double() - before[name].double() for name in after}, metrics


def true_adamw_steps(folder: str, sequences: Sequences) -> tuple[dict[str, torch.Tensor], list[float], list[float]]:
    """The same by plain torch in float64, with the learning rates written out: also norms and rates of the steps."""
    model = load_plain(folder).double()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.8, 0.9), eps=0.01, weight_decay=0.1)
    norms, rates = [], [0.005, 0.01, 0.0075]  # half the peak, the peak, 1/2 + cos(pi / 3) / 2 of it
    for rate in rates:
        optimizer.zero_grad()
        loss = (plain_logprobs(model, sequences) * coefficients(sequences)).sum() / len(sequences)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}, norms, rates


def report(folder: str) -> dict[str, dict]:
    """Every learner's steps in this world: what the tests compare with the truth, whatever the number of ranks."""
    return {
        "odd": {name: gradient_step(folder, ODD, learner) for name, learner in LEARNERS.items()},
        "one": {name: gradient_step(folder, ONE, LEARNERS[name]) for name in ("whole batch", "ZeRO-2", "ZeRO-3")},
        "adamw": {
            name: adamw_steps(folder, ODD, LEARNERS[name])
            for name in ("small micro-batches", "ZeRO-1", "ZeRO-2", "ZeRO-3")
        },
    }


def distance(got: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    """The largest relative error of any weight's gradient."""
    assert got.keys() == truth.keys()
    return max(float((got[name] - truth[name]).norm() / truth[name].norm()) for name in truth)

"""Behaviour cloning: an actor's network fitted to the demonstrations' actions, vectors by least squares. The baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from rayalign.config.control import ControlPolicy
from rayalign.control.demonstrations import Demonstrations
from rayalign.control.environments import Task
from rayalign.control.policies import Network, network_of, scaled, sequential
from rayalign.errors import Diverged


def clone(
    demonstrations: Demonstrations,
    task: Task,
    policy: ControlPolicy,
    scale: np.ndarray,
    seed: int,
    tell: Callable[[int, float], None],
) -> Network:
    """A network as an actor has it, whose mean action fits the demonstrations' by least squares, or choices by likelihood.

    A Gaussian's deviations stay where they began: only the mean is used. `tell` is called with each epoch's number and loss.
    Raises Diverged for a loss that is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    num_actions = task.action_size
    layers = sequential([len(scale), *policy.hidden, num_actions if task.is_choice else 2 * num_actions], torch.nn.ReLU)
    optimizer = torch.optim.Adam(layers.parameters(), lr=policy.learning_rate, fused=True)
    inputs = scaled(torch.from_numpy(demonstrations.observations), torch.tensor(scale, dtype=torch.float32))
    wanted = torch.from_numpy(demonstrations.actions)
    for epoch in range(1, policy.cloning_epochs + 1):
        total = 0.0
        for rows in _batches(len(inputs), policy.batch_size, generator):
            found = layers(inputs[rows])
            if task.is_choice:
                loss = cross_entropy(found, wanted[rows])
            else:
                loss = (torch.tanh(found[:, :num_actions]) - wanted[rows]).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        if not math.isfinite(total):
            raise Diverged(f"cloning: the loss is not finite in epoch {epoch}; lower policy.learning_rate")
        tell(epoch, total / len(inputs))
    weights = {f"layers.{name}": value.detach().numpy() for name, value in layers.state_dict().items()}
    return network_of(weights | {"scale": np.asarray(scale)}, "layers", "relu")


def _batches(num: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    order = torch.randperm(num, generator=generator)
    yield from order.split(size)

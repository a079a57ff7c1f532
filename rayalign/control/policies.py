"""A finished policy or reward: plain networks in one safetensors file, which need neither RLlib nor the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rayalign.control.environments import Task
from rayalign.errors import UserError
from rayalign.storage.aside import written_aside

MAX_SCALED = 10.0  # of an observation: what no data has shown should not blow up a network
ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}


def scaled(observations: Tensor, scale: Tensor) -> Tensor:
    """observations[..., O] in units of the data's size."""
    return (observations / scale).clamp(-MAX_SCALED, MAX_SCALED)


@dataclass(frozen=True)
class Network:
    """Linear layers over scaled observations, and actions where it takes them.

    `tensors` holds `scale`, and `layers.N.weight` and `layers.N.bias` as in an nn.Sequential with activations between; an
    ensemble's are stacked, and its value is the mean.
    """

    tensors: Mapping[str, Tensor]
    activation: str
    takes_actions: bool = False
    clamp: float | None = None

    def __call__(self, observations: np.ndarray, actions: np.ndarray | None = None) -> np.ndarray:
        """observations[B, O], actions[B, A] in [-1, 1] -> [B, out], the last layer's values, cut to the clamp."""
        found = scaled(torch.as_tensor(np.asarray(observations, np.float32)), self.tensors["scale"])
        if self.takes_actions:
            found = torch.cat([found, torch.as_tensor(np.asarray(actions, np.float32))], dim=-1)
        numbers = sorted({int(name.split(".")[1]) for name in self.tensors if name.startswith("layers.")})
        for number in numbers:
            if number:
                found = ACTIVATIONS[self.activation](found)
            weight, bias = self.tensors[f"layers.{number}.weight"], self.tensors[f"layers.{number}.bias"]
            found = found @ weight.mT + bias.unsqueeze(-2)
        if self.clamp is not None:
            found = found.clamp(-self.clamp, self.clamp)
        return np.asarray((found.mean(dim=0) if found.ndim > 2 else found).numpy())


@dataclass(frozen=True)
class SavedPolicy:
    """A deterministic policy: the mean of the squashed Gaussian that was trained, or the likeliest choice."""

    network: Network
    is_choice: bool

    def act(self, observation: np.ndarray) -> np.ndarray:
        """observation[O] -> action[A], as `Task` has them."""
        found = self.network(observation[None])[0]
        if self.is_choice:
            return np.eye(len(found), dtype=np.float32)[found.argmax()]
        return np.asarray(np.tanh(found[: len(found) // 2]), dtype=np.float32)


def save_network(path: Path, network: Network, task: Task) -> None:
    """Writes it, whole or not at all, with what it is for."""
    about = {
        "environment": task.environment,
        "activation": network.activation,
        "takes_actions": network.takes_actions,
        "clamp": network.clamp,
    }
    with written_aside(path) as aside:
        tensors = {name: tensor.contiguous() for name, tensor in network.tensors.items()}
        save_file(tensors, aside, metadata={"rayalign": json.dumps(about)})


def load_network(path: Path, task: Task) -> Network:
    """Raises UserError for what `save_network` did not write, or wrote for another environment."""
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["rayalign"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; is the run finished?") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a network of a control run ({' '.join(str(error).split())[:100]})") from None
    if about["environment"] != task.environment:
        raise UserError(f"{path}: learned in {about['environment']}, and environment.id is {task.environment}")
    return Network(tensors, about["activation"], about["takes_actions"], about["clamp"])


def network_of(
    weights: Mapping[str, Any], prefix: str, activation: str, *, takes_actions: bool = False, clamp: float | None = None
) -> Network:
    """The network that lies under `prefix` (an nn.Sequential) in a module's weights, beside their `scale`."""
    found = {"scale": _tensor(weights["scale"])}
    layers: dict[int, dict[str, Tensor]] = {}
    for name, value in weights.items():
        if name.startswith(f"{prefix}."):
            place_text, part = name.removeprefix(f"{prefix}.").split(".")
            layers.setdefault(int(place_text), {})[part] = _tensor(value)
    for place, parts in enumerate(layers[number] for number in sorted(layers)):
        found |= {f"layers.{place}.{part}": tensor for part, tensor in parts.items()}
    return Network(found, activation, takes_actions, clamp)


def parallel_network_of(
    weights: Mapping[str, Any], activation: str, *, takes_actions: bool, clamp: float | None
) -> Network:
    """The network, or the ensemble, that lies under `members` (a `ParallelMlp`), beside its `scale`."""
    found = {"scale": _tensor(weights["scale"])}
    num = sum(name.startswith("members.weights.") for name in weights)
    for number in range(num):
        weight = _tensor(weights[f"members.weights.{number}"]).mT
        bias = _tensor(weights[f"members.biases.{number}"]).squeeze(-2)
        alone = len(weight) == 1
        found[f"layers.{number}.weight"] = (weight[0] if alone else weight).contiguous()
        found[f"layers.{number}.bias"] = bias[0] if alone else bias
    return Network(found, activation, takes_actions, clamp)


def sequential(sizes: list[int], activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers of sizes [in, ..., out] with activations between them."""
    layers: list[nn.Module] = []
    for before, after in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


def _tensor(value: Any) -> Tensor:
    return torch.from_numpy(np.array(value, dtype=np.float32))

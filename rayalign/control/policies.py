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

from rayalign.config.control import ControlReward
from rayalign.config.reward import Divergence
from rayalign.control.environments import Task
from rayalign.errors import UserError
from rayalign.objectives.reward import DIVERGENCES
from rayalign.storage.aside import written_aside

LINEAR = 10.0  # of a scaled observation: what no data has shown is still told apart, and does not blow up a network
ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}


def scaled(observations: Tensor, scale: Tensor) -> Tensor:
    """observations[..., O] in units of the data's size; beyond ten of them as x = 10 (1 + log(x / 10))."""
    found = observations / scale
    return found.clamp(-LINEAR, LINEAR) * (1.0 + (found.abs().clamp(min=LINEAR) / LINEAR).log())


def paid_of(values: Tensor, clamp: float | None, divergence: Divergence, pessimism: float) -> Tensor:
    """What a policy is paid for values[E, ...] of E networks: [...]. Cut to the clamp, the divergence's function of a logit,
    and the ensemble's mean less `pessimism` deviations."""
    paid = DIVERGENCES[divergence](values if clamp is None else values.clamp(-clamp, clamp))
    if not pessimism:
        return paid.mean(dim=0)
    return paid.mean(dim=0) - pessimism * paid.std(dim=0, correction=0)


@dataclass(frozen=True)
class Network:
    """Linear layers over scaled observations, and actions where it takes them.

    `tensors` holds `scale`, and `layers.N.weight` and `layers.N.bias` as in an nn.Sequential with activations between; an
    ensemble's are stacked. A reward's value is what the policy was paid (`paid_of`); of one network without clamp and
    divergence that is the last layer's.
    """

    tensors: Mapping[str, Tensor]
    activation: str
    takes_actions: bool = False
    clamp: float | None = None
    divergence: Divergence = "reverse_kl"
    pessimism: float = 0.0

    def __call__(self, observations: np.ndarray, actions: np.ndarray | None = None) -> np.ndarray:
        """observations[B, O], actions[B, A] in [-1, 1] -> [B, out], the last layer's values, or of a reward what it pays."""
        found = scaled(torch.as_tensor(np.asarray(observations, np.float32)), self.tensors["scale"])
        if self.takes_actions:
            found = torch.cat([found, torch.as_tensor(np.asarray(actions, np.float32))], dim=-1)
        numbers = sorted({int(name.split(".")[1]) for name in self.tensors if name.startswith("layers.")})
        for number in numbers:
            if number:
                found = ACTIVATIONS[self.activation](found)
            weight, bias = self.tensors[f"layers.{number}.weight"], self.tensors[f"layers.{number}.bias"]
            found = found @ weight.mT + bias.unsqueeze(-2)
        members = found if found.ndim > 2 else found[None]
        return np.asarray(paid_of(members, self.clamp, self.divergence, self.pessimism).numpy())


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
        "divergence": network.divergence,
        "pessimism": network.pessimism,
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
    paid: dict[str, Any] = {"divergence": "reverse_kl", "pessimism": 0.0} | about  # older files hold neither
    return Network(
        tensors, about["activation"], about["takes_actions"], about["clamp"], paid["divergence"], paid["pessimism"]
    )


def network_of(weights: Mapping[str, Any], prefix: str, activation: str) -> Network:
    """The network that lies under `prefix` (an nn.Sequential) in a module's weights, beside their `scale`."""
    found = {"scale": _tensor(weights["scale"])}
    layers: dict[int, dict[str, Tensor]] = {}
    for name, value in weights.items():
        if name.startswith(f"{prefix}."):
            place_text, part = name.removeprefix(f"{prefix}.").split(".")
            layers.setdefault(int(place_text), {})[part] = _tensor(value)
    for place, parts in enumerate(layers[number] for number in sorted(layers)):
        found |= {f"layers.{place}.{part}": tensor for part, tensor in parts.items()}
    return Network(found, activation)


def reward_network_of(weights: Mapping[str, Any], activation: str, reward: ControlReward) -> Network:
    """The network, or the ensemble, that lies under `members` (a `ParallelMlp`), beside its `scale`."""
    found = {"scale": _tensor(weights["scale"])}
    num = sum(name.startswith("members.weights.") for name in weights)
    for number in range(num):
        weight = _tensor(weights[f"members.weights.{number}"]).mT
        bias = _tensor(weights[f"members.biases.{number}"]).squeeze(-2)
        alone = len(weight) == 1
        found[f"layers.{number}.weight"] = (weight[0] if alone else weight).contiguous()
        found[f"layers.{number}.bias"] = bias[0] if alone else bias
    takes_actions = reward.inputs == "state_action"
    return Network(found, activation, takes_actions, reward.clamp, reward.divergence, reward.pessimism)


def sequential(sizes: list[int], activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers of sizes [in, ..., out] with activations between them."""
    layers: list[nn.Module] = []
    for before, after in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


def _tensor(value: Any) -> Tensor:
    return torch.from_numpy(np.array(value, dtype=np.float32))

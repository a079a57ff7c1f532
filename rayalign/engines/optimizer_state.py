"""The optimiser's state by parameter, whole, whatever ZeRO shards it: saved by one number of ranks, loaded by another.

Each parameter has a float32 master weight and Adam's two moments. DeepSpeed holds them in flat shards; its hooks for
universal checkpoints (`_hp_mapping` of ZeRO-1, ZeRO-2 and bfloat16, `_z3_optimizer` of ZeRO-3) give and take them by
parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

MOMENTS = ("exp_avg", "exp_avg_sq")
WEIGHT = "weight"


class OptimizerState:
    """Reads and writes the state of one learner. Every rank makes every call.

    Args:
        module: whose trainable parameters are meant.
        adam: torch's AdamW, that DeepSpeed steps.
        optimizer: DeepSpeed's around it, or `adam` itself.
        gathered: under ZeRO-3 a context in which a parameter is whole, and what rank 0 writes reaches all.
    """

    def __init__(
        self,
        module: nn.Module,
        adam: torch.optim.AdamW,
        optimizer: Any,
        gathered: Callable[[nn.Parameter], AbstractContextManager[Any]],
    ) -> None:
        self._module, self._adam, self._optimizer, self._gathered = module, adam, optimizer, gathered

    @property
    def num_steps(self) -> int:
        """Adam's own count, for its bias correction; 0 before the first step, when there are no moments."""
        return int(next((float(state["step"]) for state in self._adam.state.values()), 0))

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """("weight/NAME" and, after a first step, "exp_avg/NAME", "exp_avg_sq/NAME", whole float32 tensor). A collective."""
        keys = (None, *MOMENTS) if self.num_steps else (None,)
        for name, parameter in self._parameters():
            for key in keys:
                yield f"{key or WEIGHT}/{name}", self._full(parameter, key)

    def load(self, read: Callable[[str], torch.Tensor], *, num_steps: int) -> None:
        """Takes the tensors that `read(name)` gives. Raises KeyError where it has none of that name."""
        if num_steps:
            self._make_moments(num_steps)
        for name, parameter in self._parameters():
            whole = read(f"{WEIGHT}/{name}").to(parameter.device)
            with torch.no_grad(), self._gathered(parameter):
                parameter.data.copy_(whole.to(parameter.dtype))
            self._set(parameter, None, whole)
            for key in MOMENTS if num_steps else ():
                self._set(parameter, key, read(f"{key}/{name}").to(parameter.device))

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self._module.named_parameters() if p.requires_grad)

    def _full(self, parameter: Any, key: str | None) -> torch.Tensor:
        if self._optimizer is self._adam:
            held = parameter if key is None else self._adam.state[parameter][key]
            return held.detach().float()
        if hasattr(parameter, "ds_id"):
            return parameter._z3_optimizer.get_full_hp_param(parameter, key)
        return parameter.get_full_hp_param(key)

    def _set(self, parameter: Any, key: str | None, whole: torch.Tensor) -> None:
        if self._optimizer is self._adam:
            if key is not None:
                self._adam.state[parameter][key].copy_(whole)
        elif hasattr(parameter, "ds_id"):
            # DeepSpeed's own setter does not take a tensor whose last shard is padded.
            shard, _ = parameter._z3_optimizer._get_fp32_opt_state_partition(parameter, False, key)
            start = shard.numel() * parameter._z3_optimizer._get_param_partition_rank(parameter)
            own = whole.flatten()[start : start + shard.numel()]
            shard.data[: own.numel()].copy_(own)
        else:
            parameter.set_full_hp_param(whole, key)

    def _make_moments(self, num_steps: int) -> None:
        """Adam makes its state at its first step; here it is made for what is about to be loaded."""
        for held in self._shards():
            self._adam.state[held] = {
                "step": torch.tensor(float(num_steps), dtype=torch.float32, device=held.device),
                **{key: torch.zeros_like(held, dtype=torch.float32) for key in MOMENTS},
            }
        link = getattr(self._optimizer, "_lazy_init_hp_params_optimizer_state", None)
        if link is not None:
            self._optimizer._hp_optimizer_states_linked = False
            link()

    def _shards(self) -> list[torch.Tensor]:
        """What Adam steps on: the parameters, or this rank's flat shards of them."""
        if self._optimizer is self._adam:
            return [p for _, p in self._parameters()]
        for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
            if hasattr(self._optimizer, name):
                return list(getattr(self._optimizer, name))
        raise TypeError(f"{type(self._optimizer).__name__} keeps its shards where rayalign does not know")


def in_files(files: list[Any]) -> Callable[[str], torch.Tensor]:
    """Reads a tensor from whichever of the open safetensors files holds it."""
    place = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - they are no dictionaries
    return lambda name: place[name].get_tensor(name)

"""Weights as checkpoints and samplers know them: by their own names, whole, with adapters folded in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class WireWeight:
    """One weight of a checkpoint, made on demand so that the whole model never exists twice.

    `tensor()` reads `sources`; where they are sharded (ZeRO-3) the caller gathers them first. The first one gives
    dtype and shape. Nothing is changed in the model: folding an adapter in and out again would round its base.
    """

    name: str
    sources: list[nn.Parameter]
    tensor: Callable[[], torch.Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensor."""
        return self.sources[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor, also where it is sharded."""
        return tuple(getattr(self.sources[0], "ds_shape", self.sources[0].shape))


def plain_weight(name: str, parameter: nn.Parameter) -> WireWeight:
    """A parameter that a checkpoint holds as it is."""
    return WireWeight(name, [parameter], parameter.detach)

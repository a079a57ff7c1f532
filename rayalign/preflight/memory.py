"""The memory and the disk that a config's models will take, from files' headers or hub names: nothing is loaded.

What is counted is what stays: weights, gradients, AdamW's state, references, critics, scorers, vLLM's KV cache; and, where
it is more, what a worker holds while it loads. Activations come on top; they follow learner.micro_batch_tokens.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayalign.actors.plan import make_plan
from rayalign.config.base import stage_reference
from rayalign.config.run import RunConfig
from rayalign.config.service import is_service
from rayalign.config.stage_base import Held
from rayalign.config.stages import SftStage

GIB = 2**30
WEIGHT_BYTES = {"float32": 4, "bfloat16": 2}
# DeepSpeed keeps gradients in float32, and beside bfloat16 weights a float32 copy of them; AdamW two numbers a weight.
GRADIENT_BYTES = 4
OPTIMIZER_BYTES = {"float32": 8, "bfloat16": 12}
PROCESS_GIB = 0.6  # Python with torch, and vLLM or DeepSpeed: measured on the CPU


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """What one worker of a group holds, in GiB."""

    role: str
    num_workers: int
    parts: dict[str, float]  # that stay
    loading_gib: float = 0.0  # at most, before ZeRO-3 has shared out what was loaded whole

    @property
    def steady_gib(self) -> float:
        """Of one worker, while it works."""
        return sum(self.parts.values())

    @property
    def each_gib(self) -> float:
        """The most that one worker holds."""
        return max(self.steady_gib, self.loading_gib)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_amount(gib)}" for name, gib in self.parts.items() if gib)
        workers = f" on each of {self.num_workers} workers" if self.num_workers > 1 else ""
        if self.loading_gib > self.steady_gib:
            most, then = _amount(self.loading_gib), _amount(self.steady_gib)
            return f"{self.role} {most}{workers} while loading, then {then} ({parts})"
        return f"{self.role} {_amount(self.steady_gib)}{workers} ({parts})"


def group_memory(config: RunConfig) -> list[GroupMemory]:
    """The groups' memory where they hold most; groups whose models are not here yet are left out."""
    plan = make_plan(config.placement)
    phases = [held for stage in config.stages for held in stage.phases()]
    found = []
    for role in ("policy", "reward"):
        groups = [_trainer(config, held, role, plan.groups[role].num_workers) for held in phases]
        if most := max((group for group in groups if group.parts), key=lambda group: group.each_gib, default=None):
            found.append(most)
    rollout, tensor_parallel = plan.groups["rollout"], config.placement.rollout.tensor_parallel
    drawn = [_size(config, h) for held in phases for h in held if h.group == "rollout"]
    if largest := max(drawn, default=0):
        parts = {"weights": largest * WEIGHT_BYTES[config.model.dtype] / tensor_parallel / GIB}
        if not rollout.gpus:
            parts["KV cache"] = config.placement.kv_cache_gib
        found.append(GroupMemory("rollout", rollout.num_workers * tensor_parallel, parts))
    return found


def saved_gib(config: RunConfig) -> float:
    """What the run's model folders take on the disk: each is written beside the one that it replaces."""
    num_bytes, largest = 0, 0
    for stage in config.stages:
        sizes = [
            (num_parameters(config, f"stage:{stage.name}/{role}") or 0) * WEIGHT_BYTES[config.model.dtype]
            for role in stage.trains()
        ]
        num_bytes += sum(sizes)
        largest = max(largest, sum(sizes))
    return (num_bytes + largest) / GIB


def num_parameters(config: RunConfig, location: str, *, asked: frozenset[str] = frozenset()) -> int | None:
    """Weights of a model folder, or of the one that an artifact of the run starts from; None where nothing tells.

    `asked` are artifacts on the way here: what starts from itself (model.path: stage:sft/policy) has no size, and is
    refused before a run.
    """
    if location in asked or is_service(location):
        return None
    asked |= {location}
    reference = stage_reference(location)
    if reference is None:
        folder = Path(location).expanduser()
        return _in_folder(folder) if os.path.exists(folder) else _by_name(location)
    stage = next((s for s in config.stages if s.name == reference[0]), None)
    if isinstance(stage, SftStage):
        if stage.scratch is not None:
            return None if "vocab_size" not in stage.scratch else _of_architecture(stage.scratch)
        return num_parameters(config, stage.policy or config.model.path, asked=asked)
    sizes = [num_parameters(config, start, asked=asked) for start in (stage.made_of(reference[1]) if stage else [])]
    known = [size for size in sizes if size is not None]
    return sum(known) if known and len(known) == len(sizes) else None


def _trainer(config: RunConfig, held: list[Held], role: str, ranks: int) -> GroupMemory:
    """One worker of a group that trains or scores, with its share of these models, loaded one after the other."""
    dtype, zero_stage, lora = config.model.dtype, config.learner.zero_stage, config.model.lora is not None
    parts: dict[str, float] = {}
    loading = 0.0
    for model in (model for model in held if model.group == role):
        num = _size(config, model)
        whole = num * WEIGHT_BYTES[dtype] / GIB
        if not num or (lora and model.frozen == "reference"):  # the model without its adapter
            continue
        loading = max(loading, sum(parts.values()) + whole)
        if model.frozen:
            own = {model.frozen: whole / (ranks if zero_stage == 3 else 1)}
        else:
            adapter = lora and role == "policy" and not model.trained
            own = _training(num, dtype, zero_stage, ranks, adapter=adapter)
            own = {model.trained: sum(own.values())} if model.trained else own
        parts |= {name: parts.get(name, 0.0) + gib for name, gib in own.items()}
    return GroupMemory(role, ranks, parts, loading)


def _size(config: RunConfig, held: Held) -> int:
    """Parameters; 0 where nothing tells."""
    return num_parameters(config, held.location) or 0


def _training(num: int, dtype: str, zero_stage: int, ranks: int, *, adapter: bool = False) -> dict[str, float]:
    """GiB a rank, by part; ZeRO shares the optimiser from stage 1, gradients from 2, weights from 3."""
    shares = [ranks if zero_stage >= least else 1 for least in (3, 2, 1)]
    weights, gradients, optimizer = (
        num * size / share / GIB
        for size, share in zip((WEIGHT_BYTES[dtype], GRADIENT_BYTES, OPTIMIZER_BYTES[dtype]), shares, strict=True)
    )
    if adapter:  # a percent or so of the weights is trained
        return {"weights": weights}
    return {"weights": weights, "gradients": gradients, "optimiser": optimizer}


def _in_folder(folder: Path) -> int | None:
    """Elements of all tensors, by the headers of the safetensors files."""
    try:
        counts = [_in_file(file) for file in sorted(folder.glob("*.safetensors"))]
    except (OSError, ValueError, KeyError, struct.error):
        return None  # a damaged folder is told by whoever loads it
    return sum(counts) or None


def _by_name(hub_name: str) -> int | None:
    """The size that a name of the hub tells: 500 million for "Qwen/Qwen2.5-0.5B-Instruct"."""
    told = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", hub_name.lower())
    return int(float(told[1]) * {"b": 1e9, "m": 1e6}[told[2]]) if told else None


def _in_file(file: Path) -> int:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(min(length, file.stat().st_size)))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _of_architecture(scratch: dict[str, Any]) -> int | None:
    """Parameters of an architecture, built without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from rayalign.models.backbone import NO_ARCHITECTURE

    keys = dict(scratch)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(keys.pop("model_type", ""), **keys))
    except NO_ARCHITECTURE:
        return None  # told by whoever builds it
    return sum(parameter.numel() for parameter in model.parameters())


def _amount(gib: float) -> str:
    return f"{gib:.1f} GiB" if gib >= 0.1 else f"{gib * 1024:.0f} MiB"

"""The learner: one model under DeepSpeed, stepped on sums that are divided once by a global count.

DeepSpeed averages gradients over ranks and over its own accumulation steps. Here a step is a list of micro-batches of
any number and size, so accumulation is driven by hand and the loss is scaled to undo the average over ranks: the
gradient is (sum over all ranks and micro-batches) / denominator, whatever the split.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import nn

from rayalign.config.model import LearnerConfig, OptimizerConfig
from rayalign.engines.batching import MicroBatch, Rank, rank_micro_batches
from rayalign.engines.optimizer_state import OptimizerState, in_files
from rayalign.errors import Diverged, RayalignError
from rayalign.models.batch import TokenBatch, token_batch
from rayalign.models.wire import WireWeight
from rayalign.storage.checkpoints import STATE
from rayalign.storage.snapshot import Snapshot, read_values
from rayalign.telemetry.metrics import Last, Metrics, Sum, merge
from rayalign.types import Sequences

MAX_BUCKET = 500_000_000  # numbers that DeepSpeed reduces at a time
MAX_SKIPPED = 3  # optimiser steps in a row without a finite gradient


class WireModel(Protocol):
    """A module that knows its weights as a checkpoint has them."""

    def wire_weights(self) -> Iterator[WireWeight]:
        """Every weight, under its checkpoint's name."""

    def save(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        """Writes a Hugging Face folder."""


@dataclass(frozen=True)
class LossOutput:
    """What a loss gives back for one micro-batch: a sum, and metrics that know how they reduce."""

    loss_sum: torch.Tensor
    metrics: Metrics


LossFn = Callable[[Any, TokenBatch], LossOutput]


class Learner:
    """Trains one module under DeepSpeed. Every rank makes every call with the same global batch.

    Args:
        module: gives the loss function what it needs for a TokenBatch, and knows its weights' names.
        optimizer: AdamW's settings; `total_steps` ends its schedule.
        learner: ZeRO stage, micro-batch budget, packing.
    """

    def __init__(
        self,
        module: Any,
        optimizer: OptimizerConfig,
        learner: LearnerConfig,
        *,
        total_steps: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.module = module
        self.rank = Rank.from_environment()
        self.device = device
        self.steps_done = 0
        self._skipped_in_a_row = 0
        self._learner = learner
        self._optimizer_config = optimizer
        self._total_steps = total_steps
        deepspeed = _deepspeed()
        trainable = [p for p in module.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            trainable,
            lr=optimizer.learning_rate,
            betas=optimizer.betas,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=True,  # one pass over each tensor, without copies of it
        )
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=self._optimizer, config=_deepspeed_config(learner, optimizer, module)
        )
        self._state = OptimizerState(module, self._optimizer, self._engine.optimizer, self._whole)

    def step(
        self, sequences: Sequences, loss_fn: LossFn, *, denominator: float, group_sizes: np.ndarray | None = None
    ) -> Metrics:
        """One optimiser step on the gradient of (sum of losses over all sequences) / denominator.

        Each rank runs its share; `group_sizes` cut the rows into consecutive groups (the two sides of a pair) that are
        never torn apart. A loss or gradient that is not finite is never stepped on: the weights stay, the metrics
        are `num_skipped` alone. Raises Diverged when that happens MAX_SKIPPED times in a row.
        """
        batches = rank_micro_batches(sequences, self._learner, self.rank, group_sizes=group_sizes)
        scale = self.rank.world_size / denominator
        parts: list[Metrics] = []
        self._engine.zero_grad()
        for place, part in enumerate(batches):
            batch = self._token_batch(sequences, part)
            self._engine.set_gradient_accumulation_boundary(place == len(batches) - 1)
            output = loss_fn(self._engine, batch)
            loss = output.loss_sum * (scale * part.weight)
            # A loss that is not finite may have a gradient that is; no rank shall step on that.
            self._engine.backward(loss if torch.isfinite(loss) else loss * torch.nan)
            if part.weight:
                parts.append(output.metrics)
        self._set_learning_rate()
        norm = self._step_if_finite()
        if norm is None:
            return self._skipped()
        self.steps_done += 1
        self._skipped_in_a_row = 0
        rate = self._engine.optimizer.param_groups[0]["lr"]
        return self._gathered(merge(parts)) | {"grad_norm": Last(norm), "learning_rate": Last(rate)}

    @torch.no_grad()
    def map(
        self, sequences: Sequences, function: Callable[[Any, TokenBatch], torch.Tensor]
    ) -> list[tuple[np.ndarray, torch.Tensor]]:
        """Applies a function of (module, batch) to this rank's share: (rows, result) pairs.

        Without gradients, in evaluation mode (no adapter dropout).
        """
        results = []
        self._engine.eval()
        for part in rank_micro_batches(sequences, self._learner, self.rank):
            result = function(self._engine, self._token_batch(sequences, part))
            if part.weight:
                results.append((part.rows, result))
        self._engine.train()
        return results

    def all_gather(self, value: Any) -> list[Any]:
        """One small value from each rank, in rank order."""
        if self.rank.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.rank.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(checkpoint name, whole tensor) of every weight; a collective under ZeRO-3, so all ranks iterate."""
        for weight in self.module.wire_weights():
            with whole_parameters(weight.sources, self._learner):
                tensor = weight.tensor()
            yield weight.name, tensor

    def weight_shapes(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """(checkpoint name, dtype, whole shape) of every weight, without gathering anything."""
        return [(weight.name, weight.dtype, weight.shape) for weight in self.module.wire_weights()]

    def check_finite(self) -> None:
        """Raises RayalignError, on every rank, if a weight is not a finite number. Gathers no weights."""
        held = ((name, getattr(p, "ds_tensor", p)) for name, p in self.module.named_parameters())
        bad = next((name for name, tensor in held if not torch.isfinite(tensor).all()), None)
        if found := [name for name in self.all_gather(bad) if name is not None]:
            raise RayalignError(f"{found[0]} holds numbers that are not finite; lower the learning rate")

    def host_weights(self) -> dict[str, torch.Tensor]:
        """A copy of every weight in rank 0's host memory, by its checkpoint's name; nothing on other ranks. A collective."""
        pairs = self.weights()
        return {name: tensor.cpu().clone() for name, tensor in pairs if self.rank.rank == 0}

    def save(self, folder: Path) -> None:
        """Writes the model as a Hugging Face folder from rank 0; all ranks call it."""
        weights = self.host_weights()
        if self.rank.rank == 0:
            self.module.save(folder, weights)

    def snapshot(self, name: str) -> Snapshot:
        """This rank's share of weights, moments and counters, copied to host memory: whole tensors, in turn over ranks.

        A collective. Another number of ranks can restore it.
        """
        own = self._state.tensors()
        size, number = self.rank.world_size, self.rank.rank
        tensors = {key: t.cpu().clone() for place, (key, t) in enumerate(own) if place % size == number}
        counters = {
            "steps_done": self.steps_done,
            "adam_steps": self._state.num_steps,
            "skipped_in_a_row": self._skipped_in_a_row,
        }
        return Snapshot({f"{STATE}/{name}-{number}": tensors}, {f"{STATE}/{name}": counters} if number == 0 else {})

    def restore(self, folder: Path, name: str) -> None:
        """Goes on from a checkpoint's folder, where `snapshot(name)` was written. All ranks call it.

        The learning rate and the end of its schedule stay as this learner was given them.
        """
        counters = read_values(folder / STATE / f"{name}.json")
        with ExitStack() as stack:
            paths = sorted((folder / STATE).glob(f"{name}-*.safetensors"))
            files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
            self._state.load(in_files(files), num_steps=counters["adam_steps"])
        self.steps_done, self._skipped_in_a_row = counters["steps_done"], counters["skipped_in_a_row"]

    def restart_schedule(self, *, learning_rate: float, total_steps: int) -> None:
        """The learning rate begins anew, with another peak and end; the optimiser's moments stay."""
        self.set_schedule(learning_rate=learning_rate, total_steps=total_steps)
        self.steps_done = 0

    def set_schedule(self, *, learning_rate: float, total_steps: int) -> None:
        """The learning rate has another peak and end; where it is between them stays."""
        self._optimizer_config = self._optimizer_config.model_copy(update={"learning_rate": learning_rate})
        self._total_steps = total_steps

    def close(self) -> None:
        """Gives the memory back. Hooks of DeepSpeed's keep its engine alive, so what it holds is let go by name."""
        self._engine.destroy()
        held, self._engine.optimizer = self._engine.optimizer, None
        self._optimizer.state.clear()
        vars(held).clear()
        for parameter in self.module.parameters():
            for tensor in (parameter, getattr(parameter, "ds_tensor", parameter)):
                tensor.data = tensor.data.new_empty(0)
            parameter.grad = None
        gc.collect()

    def _whole(self, parameter: nn.Parameter) -> AbstractContextManager[Any]:
        return whole_parameters([parameter], self._learner, written=True)

    def _token_batch(self, sequences: Sequences, part: MicroBatch) -> TokenBatch:
        return token_batch(
            sequences,
            part.rows,
            packing=self._learner.packing,
            device=self.device,
            most_labels=part.most_response_tokens,
        )

    def _set_learning_rate(self) -> None:
        rate = self._optimizer_config.learning_rate * schedule_factor(
            self._optimizer_config, self.steps_done, self._total_steps
        )
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate

    def _gathered(self, metrics: Metrics) -> Metrics:
        """Metrics of all ranks, merged."""
        return merge(self.all_gather(metrics))

    def _step_if_finite(self) -> float | None:
        """Steps, and gives the gradient's norm before clipping; None where it is not finite, and nothing was changed.

        DeepSpeed sees to that by itself under ZeRO-1 and 2. Without ZeRO it keeps no norm, under ZeRO-3 it does not look.
        """
        optimizer, norm = self._engine.optimizer, None
        if optimizer is self._optimizer:
            norm = float(nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None]))
            if not np.isfinite(norm):
                self._engine.zero_grad()
                return None
        elif self._learner.zero_stage == 3:
            shards = (g for group in optimizer.averaged_gradients.values() for g in group or ())
            if not all(self.all_gather(all(bool(torch.isfinite(g).all()) for g in shards))):
                optimizer._overflow_clean_up(1.0)
                optimizer.micro_step_id = 0
                return None
        self._engine.step()
        found = self._engine.get_global_grad_norm() if norm is None else norm
        return float(found) if found is not None and np.isfinite(float(found)) else None

    def _skipped(self) -> Metrics:
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED:
            raise Diverged(
                f"loss or gradient is not finite at optimiser step {self.steps_done}, for the {MAX_SKIPPED}. time in a row; "
                "the weights are those before. Lower the learning rate, or look at the rows and rewards of these steps"
            )
        return {"num_skipped": Sum(1)}


def frozen_reference(module: nn.Module, learner: LearnerConfig) -> Any:
    """A module for inference only, sharded like the trained one under ZeRO-3."""
    module.eval().requires_grad_(False)
    if learner.zero_stage < 3:
        return module
    # DeepSpeed keeps small weights gathered from one pass to the next, and those would miss `move_reference`.
    zero = {"stage": 3, **learner.deepspeed.get("zero_optimization", {}), "stage3_param_persistence_threshold": 0}
    zero.pop("offload_optimizer", None)
    engine, *_ = _deepspeed().initialize(
        model=module,
        config={"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, **_precision(_dtype(module))},
    )
    engine.eval()  # gives nothing back, unlike torch's
    return engine


def whole_parameters(
    parameters: list[Any], learner: LearnerConfig, *, written: bool = False
) -> AbstractContextManager[Any]:
    """A context in which parameters are whole under ZeRO-3; with `written` what rank 0 puts there reaches all ranks."""
    return _deepspeed().zero.GatheredParameters(
        parameters, modifier_rank=0 if written else None, enabled=learner.zero_stage == 3
    )


def schedule_factor(optimizer: OptimizerConfig, step: int, total_steps: int) -> float:
    """The learning rate at `step` (from 0) as a share of its peak: linear warm-up, then the schedule to the end."""
    if step < optimizer.warmup_steps:
        return (step + 1) / (optimizer.warmup_steps + 1)
    if optimizer.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - optimizer.warmup_steps) / max(1, total_steps - optimizer.warmup_steps))
    return 1.0 - progress if optimizer.schedule == "linear" else 0.5 * (1.0 + float(np.cos(np.pi * progress)))


def local_device() -> str:
    """The device of this process: the one GPU it sees, or the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def seed_everything(seed: int) -> None:
    """Seeds torch and numpy in this process."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)


def init_distributed() -> None:
    """Joins the group named by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or makes a group of one."""
    defaults = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for key, value in defaults.items():
        os.environ.setdefault(key, value)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if not torch.distributed.is_initialized() and "MASTER_PORT" not in os.environ:
        # A group of one meets in memory; there is no port to collide on.
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    deepspeed = _deepspeed()
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=backend, verbose=False, auto_mpi_discovery=False)
    _forget_ended_groups(deepspeed.utils.groups)


def _forget_ended_groups(groups: Any) -> None:
    """DeepSpeed keeps the groups that it has made; vLLM ends all of a process when an engine in it is closed.

    Where that has happened (a second run in one process) they are made anew.
    """
    if groups._WORLD_GROUP is None:
        return
    try:
        torch.distributed.get_global_rank(groups._WORLD_GROUP, 0)
    except ValueError:
        importlib.reload(groups)


def _deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    # This op speeds up tensor-parallel inference, which is not used here; building it takes half a minute and a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _precision(dtype: torch.dtype) -> dict[str, Any]:
    return {"bf16": {"enabled": True}} if dtype == torch.bfloat16 else {}


def _deepspeed_config(learner: LearnerConfig, optimizer: OptimizerConfig, module: nn.Module) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": learner.zero_stage}
    if learner.zero_stage:
        # Buffers of this many numbers are held, however small the model: two GB each at DeepSpeed's own size.
        zero["reduce_bucket_size"] = min(MAX_BUCKET, sum(parameter.numel() for parameter in module.parameters()))
    further = {**learner.deepspeed}
    zero |= further.pop("zero_optimization", {})
    return {
        "train_micro_batch_size_per_gpu": 1,  # bookkeeping only; micro-batches are made here
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        **_precision(_dtype(module)),
        **further,
    }

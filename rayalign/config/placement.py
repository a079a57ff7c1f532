"""Who runs where: three groups, each with devices of its own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayalign.config.base import NonNegativeInt, Positive, PositiveInt, Strict
from rayalign.config.service import RewardServiceConfig


class GroupPlacement(Strict):
    """Resources of one group. One worker a GPU, or `workers` processes of `cpus` threads without GPUs."""

    gpus: NonNegativeInt = Field(0, description="GPUs of the whole group")
    workers: PositiveInt | None = Field(None, description="processes; by default one for each GPU, or one")
    cpus: PositiveInt = Field(1, description="cores, and so threads, of each worker")


class RolloutPlacement(GroupPlacement):
    """The vLLM group: gpus / tensor_parallel replicas."""

    tensor_parallel: PositiveInt = 1

    @model_validator(mode="after")
    def _replicas_are_whole(self) -> RolloutPlacement:
        if self.gpus % self.tensor_parallel:
            raise ValueError(
                f"gpus ({self.gpus}) must be a multiple of tensor_parallel ({self.tensor_parallel}); change one of them"
            )
        if self.tensor_parallel > 1 and not self.gpus:
            raise ValueError(f"tensor_parallel ({self.tensor_parallel}) splits a model over GPUs; set gpus, or leave it 1")
        return self


Seconds = Annotated[Positive, Field(le=10_000_000)]  # 115 days; timers of the system take not much more


class DeadlineConfig(Strict):
    """Seconds after which a call counts as lost. Nothing waits for ever."""

    start_s: Seconds = Field(600.0, description="placing and starting the workers of a group")
    call_s: Seconds = Field(1800.0, description="one generation, update, scoring or save")
    sync_s: Seconds = Field(300.0, description="one weight sync")


class PlacementConfig(Strict):
    """Where the three groups run. `inprocess` runs the same engines in this process, for a debugger."""

    backend: Literal["ray", "inprocess"] = "ray"
    address: str | None = Field(None, description='a running cluster\'s address or "auto"; else a local one is started')
    rollout: RolloutPlacement = RolloutPlacement()
    reward: GroupPlacement = GroupPlacement()
    policy: GroupPlacement = GroupPlacement()
    colocate: bool = Field(False, description="all groups on the same GPUs, taking turns through vLLM's sleep mode")
    share_cores: bool | None = Field(
        None, description="groups that take turns may use the same cores; by default yes where no group has a GPU"
    )
    weight_sync: Literal["auto", "nccl", "ipc", "gloo"] = Field(
        "auto", description="auto: nccl between GPUs, ipc when colocated, gloo on CPU"
    )
    gpu_memory_frac: Positive = Field(0.85, le=1, description="of a GPU's memory, for vLLM")
    kv_cache_gib: Positive = Field(0.5, ge=1 / 1024, description="memory for vLLM's KV cache where there is no GPU")
    object_store_mib: PositiveInt = Field(256, ge=75, description="of a Ray started here")
    deadlines: DeadlineConfig = DeadlineConfig()
    max_restarts: NonNegativeInt = Field(
        3, description="how often a stage whose worker died or hung goes on from its last checkpoint, before the run ends"
    )
    reward_service: RewardServiceConfig = RewardServiceConfig()

    @model_validator(mode="after")
    def _colocation_has_one_size(self) -> PlacementConfig:
        gpus = {self.rollout.gpus, self.reward.gpus, self.policy.gpus}
        if self.colocate and (0 in gpus or len(gpus) > 1):
            raise ValueError("colocate needs the same number of gpus (at least 1) in rollout, reward and policy")
        if self.colocate and self.rollout.tensor_parallel > 1:
            raise ValueError("colocate puts one worker of each group on a GPU; set rollout.tensor_parallel to 1")
        return self

    @model_validator(mode="after")
    def _groups_are_on_one_kind_of_device(self) -> PlacementConfig:
        gpus = {"policy": self.policy.gpus, "rollout": self.rollout.gpus, "reward": self.reward.gpus}
        if bool(self.policy.gpus) != bool(self.rollout.gpus) or (self.reward.gpus and not self.policy.gpus):
            raise ValueError(
                f"{', '.join(f'{role}.gpus is {n}' for role, n in gpus.items())}: policy and rollout run both on GPUs "
                "or both without, and reward has GPUs only where they have"
            )
        return self

    @model_validator(mode="after")
    def _weights_can_travel(self) -> PlacementConfig:
        if self.weight_sync == "nccl" and (self.colocate or not self.policy.gpus):
            raise ValueError("weight_sync nccl is for groups on GPUs of their own; leave it at auto")
        if self.weight_sync == "ipc" and not self.colocate:
            raise ValueError("weight_sync ipc is for colocated groups; set colocate, or leave it at auto")
        return self

    @model_validator(mode="after")
    def _in_process_is_alone(self) -> PlacementConfig:
        if self.backend != "inprocess":
            return self
        if self.address is not None:
            raise ValueError("backend inprocess joins no cluster; remove address, or set backend to ray")
        for role, group in (("policy", self.policy), ("reward", self.reward), ("rollout", self.rollout)):
            if group.gpus > 1 or (group.workers or 1) > 1:
                raise ValueError(
                    f"backend inprocess runs one worker a group; set {role}.gpus and {role}.workers to at most 1, "
                    "or backend to ray"
                )
        return self

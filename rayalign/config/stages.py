"""The stages a run is made of, as a union on `kind`; those that only make data or fit it stand here."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rayalign.config.ava import AvaStage
from rayalign.config.base import Location, NonNegativeInt, Positive, PositiveInt
from rayalign.config.data import DataConfig, DataSource
from rayalign.config.fits import FitRewardStage, LogRatioStage
from rayalign.config.loops import ImplicitStage, IrlStage, RlStage
from rayalign.config.model import OptimizerConfig
from rayalign.config.selection import BestOfNStage, EvaluateStage
from rayalign.config.stage_base import (
    Held,
    Input,
    SamplingConfig,
    StageBase,
    demonstrations_of,
    prompts_or_demonstrations,
    set_inputs,
)

MAX_SIZE, MAX_LAYERS = 2**24, 1000  # of a model from scratch: more is a slip, and would be built before it is refused


class PlantedStage(StageBase):
    """Writes a small text world with a known expert and a known reward. Artifacts: data files and `tokenizer`."""

    ARTIFACTS: ClassVar[tuple[str, ...]] = (
        "pretrain.jsonl", "shift.jsonl", "demonstrations.jsonl", "heldout_demonstrations.jsonl", "preferences.jsonl",
        "heldout_preferences.jsonl", "prompts.jsonl", "eval_prompts.jsonl", "world.json", "tokenizer",
    )  # fmt: skip

    kind: Literal["planted"] = "planted"
    name: str = "world"
    variant: Literal["low", "half", "styled"] = Field("low", description="who writes: see planted/demonstrators.py")
    seed: NonNegativeInt = Field(0, description="of the texts; the world itself is always the same")
    num_pretrain: PositiveInt = 34000
    num_demonstrations: PositiveInt = 200
    num_preferences: PositiveInt = 200
    num_prompts: PositiveInt = 2000
    num_eval_prompts: PositiveInt = 500
    kappa: Positive = Field(10.0, description="how sharply preferences follow the golden reward")

    def artifacts(self) -> tuple[str, ...]:
        """Only the low base is shifted."""
        return tuple(name for name in self.ARTIFACTS if self.variant == "low" or name != "shift.jsonl")


class SftStage(StageBase):
    """Maximum likelihood on demonstrations (forward KL), or on stored samples (RAFT). Artifact: `policy`."""

    ARTIFACTS: ClassVar[tuple[str, ...]] = ("policy",)

    kind: Literal["sft"] = "sft"
    name: str = "sft"
    policy: Location | None = Field(None, description="the weights to start from; model.path if unset")
    scratch: dict[str, str | int | float | bool] | None = Field(
        None, description="start from random weights of this architecture: model_type and its config's keys"
    )
    data: DataSource | None = Field(None, description="rows to fit, also stored samples; data.demonstrations if unset")
    epochs: PositiveInt = 1
    batch_size: PositiveInt = Field(32, description="sequences of one optimiser step")
    max_steps: PositiveInt | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    cache: bool = Field(False, description="keep the result for other runs with the same inputs and settings")

    @model_validator(mode="after")
    def _one_start(self) -> SftStage:
        if self.policy is not None and self.scratch is not None:
            raise ValueError("set policy (weights to start from) or scratch (random weights), not both")
        return self

    @model_validator(mode="after")
    def _sizes_are_counts(self) -> SftStage:
        for key, value in (self.scratch or {}).items():
            counts = key.startswith("num_") or key.endswith("_size") or key == "max_position_embeddings"
            most = MAX_LAYERS if key.endswith("_layers") else MAX_SIZE
            if counts and (type(value) is not int or not 0 < value <= most):
                raise ValueError(f"scratch.{key}: expected a whole number from 1 to {most} (got {value!r})")
        return self

    def inputs(self) -> dict[str, Input]:
        return set_inputs(policy=Input("model", self.policy), data=Input("demonstrations", self.data))

    def shared_inputs(self, data: DataConfig) -> dict[str, Input]:
        return {} if self.data else dict(demonstrations_of(data))

    def trains(self) -> dict[Literal["policy", "reward"], Location]:
        return {"policy": f"stage:{self.name}/policy"}


class SampleStage(StageBase):
    """Draws n responses per prompt. Artifact: `samples.jsonl` (prompt, response, ended, logprob)."""

    ARTIFACTS: ClassVar[tuple[str, ...]] = ("samples.jsonl",)

    kind: Literal["sample"] = "sample"
    name: str = "sample"
    policy: Location
    prompts: DataSource | None = Field(None, description="data.prompts, or the demonstrations' prompts, if unset")
    num_prompts: PositiveInt | None = None
    num_per_prompt: PositiveInt = 1
    sampling: SamplingConfig = SamplingConfig()

    @property
    def longest_draw(self) -> int | None:
        """As long as what it samples."""
        return self.sampling.max_new_tokens

    def inputs(self) -> dict[str, Input]:
        return set_inputs(policy=Input("model", self.policy), prompts=Input("prompts", self.prompts))

    def holds(self) -> list[Held]:
        return [Held("rollout", self.policy, frozen="weights")]

    def shared_inputs(self, data: DataConfig) -> dict[str, Input]:
        return {} if self.prompts else dict(prompts_or_demonstrations(data))


Stage = Annotated[
    PlantedStage
    | SftStage
    | SampleStage
    | FitRewardStage
    | LogRatioStage
    | AvaStage
    | IrlStage
    | RlStage
    | ImplicitStage
    | BestOfNStage
    | EvaluateStage,
    Field(discriminator="kind"),
]

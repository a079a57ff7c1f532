"""The stages a run is made of, as a union on `kind`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from rayalign.config.base import (
    Location,
    NonNegative,
    NonNegativeInt,
    Number,
    Positive,
    PositiveInt,
    Strict,
)
from rayalign.config.data import DataSource
from rayalign.config.model import OptimizerConfig

RESERVED = ("tensorboard", "wandb", "mlflow")  # folders that the trackers write beside the stages'


class SamplingConfig(Strict):
    """How responses are drawn. Training needs the policy's own distribution: temperature 1, no truncation."""

    temperature: Positive = 1.0
    top_p: Positive = Field(1.0, le=1)
    max_new_tokens: PositiveInt = 256
    ignore_eos: bool = Field(False, description="go on past the end token to the limit; for measuring speed")


class StageBase(Strict):
    """A stage writes artifacts into RUN/NAME; later stages refer to them as stage:NAME/ARTIFACT."""

    ARTIFACTS: ClassVar[tuple[str, ...]] = ()

    name: str = Field(pattern="^[a-z0-9][a-z0-9_-]*$")

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, name: str) -> str:
        if name in RESERVED:
            raise ValueError(f"{name} is a folder of the run's own; give the stage another name")
        return name

    def artifacts(self) -> tuple[str, ...]:
        """What this stage writes, as stage:NAME/ARTIFACT names it."""
        return self.ARTIFACTS

    def locations(self) -> dict[str, str]:
        """Every artifact or path this stage reads, by the key that names it."""
        return {}


class PlantedStage(StageBase):
    """Writes a small text world with a known expert and a known reward. Artifacts: data files and `tokenizer`."""

    ARTIFACTS = (
        "pretrain.jsonl", "shift.jsonl", "demonstrations.jsonl", "heldout_demonstrations.jsonl", "preferences.jsonl",
        "heldout_preferences.jsonl", "prompts.jsonl", "eval_prompts.jsonl", "world.json", "tokenizer",
    )  # fmt: skip

    kind: Literal["planted"] = "planted"
    name: str = "world"
    variant: Literal["low", "half"] = "low"
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
    """Maximum likelihood on demonstrations (forward KL). Artifact: `policy`."""

    ARTIFACTS = ("policy",)

    kind: Literal["sft"] = "sft"
    name: str = "sft"
    policy: Location | None = Field(None, description="the weights to start from; model.path if unset")
    scratch: dict[str, str | int | float | bool] | None = Field(
        None, description="start from random weights of this architecture: model_type and its config's keys"
    )
    data: DataSource | None = Field(None, description="rows to fit; data.demonstrations if unset")
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

    def locations(self) -> dict[str, str]:
        found = {"policy": self.policy, "data.path": self.data.path if self.data else None}
        return {key: value for key, value in found.items() if value}


class SampleStage(StageBase):
    """Draws n responses per prompt. Artifact: `samples.jsonl` (prompt, response, ended, logprob)."""

    ARTIFACTS = ("samples.jsonl",)

    kind: Literal["sample"] = "sample"
    name: str = "sample"
    policy: Location
    prompts: DataSource | None = Field(None, description="the demonstrations' prompts if unset")
    num_prompts: PositiveInt | None = None
    num_per_prompt: PositiveInt = 1
    sampling: SamplingConfig = SamplingConfig()

    def locations(self) -> dict[str, str]:
        found = {"policy": self.policy, "prompts.path": self.prompts.path if self.prompts else None}
        return {key: value for key, value in found.items() if value}


class RewardConfig(Strict):
    """The reward model and one round of learning it."""

    init: Location = Field(description="the backbone to start from, usually the base model")
    pooling: Literal["last", "mean"] = Field("last", description="of the response's hidden states, before the head")
    link: Literal["bradley_terry", "linear"] = Field(
        "bradley_terry", description="linear: the exact IRL gradient (1.1); bradley_terry: its bounded surrogate (1.2)"
    )
    start: Literal["fresh", "warm"] = Field("warm", description="each round from `init` again, or from the last round")
    steps: PositiveInt = Field(40, description="optimiser steps a round")
    batch_size: PositiveInt = Field(32, description="pairs of one optimiser step")
    num_prompts: PositiveInt | None = Field(None, description="demonstrations sampled against a round; all if unset")
    num_per_prompt: PositiveInt = Field(4, description="the policy's samples for each demonstration")
    replay: Literal["none", "cumulative", "two_sets"] = Field(
        "none", description="which rounds' samples are negatives: this one, all, or the first and this one"
    )
    negatives: list[Location] = Field(
        default_factory=list, description="stored samples (stage:STAGE/samples.jsonl) that are negatives beside the policy's"
    )
    normalise: Literal["none", "demonstrations", "samples"] = Field(
        "samples", description="shift and scale scores to mean 0 and deviation 1 on these, after each round"
    )
    optimizer: OptimizerConfig = OptimizerConfig()


class ImportanceConfig(Strict):
    """Correction for the difference between the sampler's and the trainer's probabilities."""

    level: Literal["token", "sequence"] = "token"
    mode: Literal["off", "truncate", "mask"] = "truncate"
    cap: Number = Field(2.0, ge=1, description="weights above it are cut to it (truncate) or to 0 (mask)")


class PolicyStepConfig(Strict):
    """One round of improving the policy on the reward, without a critic."""

    steps: PositiveInt = Field(20, description="batches of rollouts a round")
    prompts_per_step: PositiveInt = 16
    samples_per_prompt: PositiveInt = Field(8, ge=2, description="a group; its mean is the baseline")
    loss: Literal["policy_gradient", "clipped"] = Field(
        "clipped", description="plain REINFORCE, or PPO's clipped ratio to the policy that the batch found"
    )
    epochs: PositiveInt = Field(1, description="passes over a batch")
    minibatches: PositiveInt = Field(1, description="optimiser steps of a pass")
    clip_low: Positive = 0.2
    clip_high: Positive = 0.2
    kl_coef: NonNegative = Field(0.05, description="beta: weight of KL(policy || reference) in the reward")
    reference: Literal["start", "round"] = Field("start", description="fixed, or moved to the policy at every round")
    missing_end_score: Number | None = Field(
        None, description="replaces the score of a response that did not end by itself"
    )
    importance: ImportanceConfig = ImportanceConfig()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6)

    @model_validator(mode="after")
    def _a_minibatch_holds_a_prompt(self) -> PolicyStepConfig:
        if self.minibatches > self.prompts_per_step:
            raise ValueError(
                f"minibatches ({self.minibatches}) are more than prompts_per_step ({self.prompts_per_step}), and a "
                "prompt's group is never torn apart; lower the one or raise the other"
            )
        return self


class IrlStage(StageBase):
    """The alternation: the reward learns to tell demonstrations from the policy's samples, the policy follows it.

    RFT, From Demonstrations to Rewards. Artifacts: `policy`, `reward`.
    """

    ARTIFACTS = ("policy", "reward")

    kind: Literal["irl"] = "irl"
    name: str = "irl"
    policy: Location = Field(description="the weights to start from, usually stage:sft/policy")
    rounds: PositiveInt = 1
    reward: RewardConfig
    improve: PolicyStepConfig = PolicyStepConfig()
    sampling: SamplingConfig = SamplingConfig()
    max_staleness: NonNegativeInt = Field(0, le=1, description="policy versions a sample may lag behind the update")
    canary_every: PositiveInt = Field(10, description="steps between checks that sampler and policy agree")
    canary_tolerance: Positive | None = Field(
        None, description="mean |log-prob difference| allowed; 1e-3 in float32, 5e-2 in bfloat16 if unset"
    )
    probe_size: PositiveInt = Field(64, description="held-out demonstrations that the round's health is measured on")
    golden: Literal["planted"] | None = Field(None, description="a known reward, shown and never trained on")
    save_every: PositiveInt = Field(1, description="rounds between saved models")

    @model_validator(mode="after")
    def _samples_are_the_policys(self) -> IrlStage:
        if self.sampling.top_p < 1:
            raise ValueError(
                f"sampling.top_p ({self.sampling.top_p:g}) cuts the distribution that the policy is trained on; "
                "set it to 1 here (evaluate may have its own)"
            )
        return self

    def locations(self) -> dict[str, str]:
        found = {"policy": self.policy, "reward.init": self.reward.init}
        return found | {f"reward.negatives.{i}": path for i, path in enumerate(self.reward.negatives)}


class EvaluateStage(StageBase):
    """Samples each model on held-out prompts, at each temperature. Artifacts: `results.json`, `samples.jsonl`."""

    ARTIFACTS = ("results.json", "samples.jsonl")

    kind: Literal["evaluate"] = "evaluate"
    name: str = "evaluate"
    models: dict[str, Location] = Field(min_length=1)
    prompts: DataSource | None = Field(None, description="data.prompts if unset")
    num_prompts: PositiveInt = 500
    num_per_prompt: PositiveInt = Field(1, description="two or more tell how well the reward ranks a model's samples")
    temperatures: list[Positive] = Field(default=[1.0], min_length=1)
    sampling: SamplingConfig = SamplingConfig()
    num_examples: NonNegativeInt = 3
    reward: Location | None = Field(None, description="a learned reward that scores the samples too")
    preferences: DataSource | None = Field(None, description="held-out pairs for the reward's accuracy")
    golden: Literal["planted"] | None = Field(None, description="a known reward, shown and never trained on")

    @model_validator(mode="after")
    def _preferences_have_a_judge(self) -> EvaluateStage:
        if self.preferences is not None and self.reward is None:
            raise ValueError("preferences are for the learned reward's accuracy; set reward, or remove preferences")
        return self

    def locations(self) -> dict[str, str]:
        found = {f"models.{name}": path for name, path in self.models.items()}
        optional = {
            "prompts.path": self.prompts.path if self.prompts else None,
            "reward": self.reward,
            "preferences.path": self.preferences.path if self.preferences else None,
        }
        return found | {key: value for key, value in optional.items() if value}


Stage = Annotated[
    PlantedStage | SftStage | SampleStage | IrlStage | EvaluateStage, Field(discriminator="kind")
]

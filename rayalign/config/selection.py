"""The stages that draw samples to judge or to choose among: best of n, and evaluation."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from rayalign.config.base import Location, NonNegativeInt, Positive, PositiveInt, Strict
from rayalign.config.data import DataConfig, DataSource
from rayalign.config.service import RewardLocation
from rayalign.config.stage_base import (
    Held,
    Input,
    SamplingConfig,
    StageBase,
    Temperature,
    prompts_or_demonstrations,
    set_inputs,
)

MAX_CANDIDATES = 16_384  # all candidates of a prompt are one request to vLLM, which takes no more of them
Candidates = Annotated[PositiveInt, Field(le=MAX_CANDIDATES)]


class BestOfNStage(StageBase):
    """Selection by a reward among n samples of a policy (AfD, section 2.3), without training.

    Artifacts: `best.jsonl`, the best of the largest n (rows that `sft` fits: RAFT); `curve.json`, reward and KL by n, and
    its picture, `curve.png`.
    """

    ARTIFACTS: ClassVar[tuple[str, ...]] = ("best.jsonl", "curve.json", "curve.png")

    kind: Literal["best_of_n"] = "best_of_n"
    name: str = "best_of_n"
    policy: Location
    reward: RewardLocation
    n: list[Candidates] = Field(default=[1, 2, 4, 8, 16], min_length=1, description="how many to choose among")
    prompts: DataSource | None = Field(None, description="data.prompts, or the demonstrations' prompts, if unset")
    num_prompts: PositiveInt | None = None
    sampling: SamplingConfig = SamplingConfig()
    golden: Literal["planted"] | None = Field(None, description="a known reward, shown and never chosen by")

    @property
    def longest_draw(self) -> int | None:
        """As long as what it samples."""
        return self.sampling.max_new_tokens

    def inputs(self) -> dict[str, Input]:
        found = {"policy": Input("model", self.policy), "reward": Input("reward", self.reward)}
        return found | set_inputs(prompts=Input("prompts", self.prompts))

    def holds(self) -> list[Held]:
        return [Held("rollout", self.policy, frozen="weights"), Held("reward", self.reward, frozen="weights")]

    def shared_inputs(self, data: DataConfig) -> dict[str, Input]:
        return {} if self.prompts else dict(prompts_or_demonstrations(data))


class BestOf(Strict):
    """Answers with the best of n samples by a reward."""

    policy: Location
    reward: RewardLocation
    best_of: Candidates


class Extrapolated(Strict):
    """Answers drawn token by token from policy^power / reference^(power - 1), renormalised: no training (AfD, T22)."""

    policy: Location = Field(description="usually stage:sft/policy")
    reference: Location = Field(description="usually the base model")
    power: Positive = Field(2.0, description="1 is the policy itself, above it extrapolates past it; 1/beta of KL-RL")
    min_prob: Positive = Field(0.01, lt=1, description="tokens that the policy finds less likely are never drawn")


def _kind_of_answerer(value: object) -> str:
    """Which of the three is meant, so that a fault is told of that one alone."""
    if isinstance(value, dict):
        return "best_of" if {"best_of", "reward"} & value.keys() else "extrapolated"
    if isinstance(value, BestOf):
        return "best_of"
    return "extrapolated" if isinstance(value, Extrapolated) else "model"


Answerer = Annotated[
    Annotated[Location, Tag("model")] | Annotated[BestOf, Tag("best_of")] | Annotated[Extrapolated, Tag("extrapolated")],
    Discriminator(_kind_of_answerer),
]


class EvaluateStage(StageBase):
    """Samples each model on held-out prompts, at each temperature. Artifacts: `results.json`, `samples.jsonl`."""

    ARTIFACTS: ClassVar[tuple[str, ...]] = ("results.json", "samples.jsonl")

    kind: Literal["evaluate"] = "evaluate"
    name: str = "evaluate"
    models: dict[str, Answerer] = Field(
        min_length=1, description="a model; {policy, reward, best_of}; or {policy, reference, power}"
    )
    prompts: DataSource | None = Field(None, description="data.prompts if unset")
    num_prompts: PositiveInt = 500
    num_per_prompt: PositiveInt = Field(1, description="two or more tell how well the reward ranks a model's samples")
    temperatures: list[Temperature] = Field(default=[1.0], min_length=1)
    sampling: SamplingConfig = SamplingConfig()
    num_examples: NonNegativeInt = 3
    reward: RewardLocation | None = Field(None, description="a learned reward or a service that scores the samples too")
    preferences: DataSource | None = Field(None, description="held-out pairs for the reward's accuracy")
    golden: Literal["planted"] | None = Field(None, description="a known reward, shown and never trained on")

    @model_validator(mode="after")
    def _candidates_are_one_request(self) -> EvaluateStage:
        for name, model in self.models.items():
            if isinstance(model, BestOf) and model.best_of * self.num_per_prompt > MAX_CANDIDATES:
                raise ValueError(
                    f"models.{name}.best_of ({model.best_of}) times num_per_prompt ({self.num_per_prompt}) is more than "
                    f"vLLM draws for one prompt ({MAX_CANDIDATES}); lower one of them"
                )
        return self

    @model_validator(mode="after")
    def _preferences_have_a_judge(self) -> EvaluateStage:
        if self.preferences is not None and self.reward is None:
            raise ValueError("preferences are for the learned reward's accuracy; set reward, or remove preferences")
        return self

    @property
    def longest_draw(self) -> int | None:
        """As long as what it samples."""
        return self.sampling.max_new_tokens

    def inputs(self) -> dict[str, Input]:
        found: dict[str, Input] = {}
        for name, model in self.models.items():
            match model:
                case BestOf():
                    found[f"models.{name}.policy"] = Input("model", model.policy)
                    found[f"models.{name}.reward"] = Input("reward", model.reward)
                case Extrapolated():
                    found[f"models.{name}.policy"] = Input("model", model.policy)
                    found[f"models.{name}.reference"] = Input("model", model.reference)
                case _:
                    found[f"models.{name}"] = Input("model", model)
        return found | set_inputs(
            prompts=Input("prompts", self.prompts),
            reward=Input("reward", self.reward),
            preferences=Input("preferences", self.preferences),
        )

    def phases(self) -> list[list[Held]]:
        """One model after the other, then the reward."""
        found = [[Held("reward", self.reward, frozen="weights")]] if self.reward else []
        for model in self.models.values():
            match model:
                case Extrapolated():
                    both = (model.policy, model.reference)
                    found.append([Held("reward", location, frozen="weights") for location in both])
                case BestOf():
                    judge = Held("reward", model.reward, frozen="weights")
                    found.append([Held("rollout", model.policy, frozen="weights"), judge])
                case _:
                    found.append([Held("rollout", model, frozen="weights")])
        return found

    def shared_inputs(self, data: DataConfig) -> dict[str, Input]:
        return {} if self.prompts else {"data.prompts": Input("prompts", data.prompts)}

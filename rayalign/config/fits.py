"""The stages that make a reward from stored data: fitted to pairs, or written down in closed form."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rayalign.config.base import Fraction, Location, Positive, PositiveInt, Strict
from rayalign.config.data import DataConfig
from rayalign.config.model import OptimizerConfig
from rayalign.config.stage_base import Held, Input, PairSource, StageBase, demonstrations_of, set_inputs

LOG_RATIO = "log_ratio.json"  # the file of a reward that is two policies: see models.rewards


class HeterogeneityConfig(Strict):
    """Stored samples that tell whether a reward separates writers rather than good from bad (AfD, section 2.2)."""

    policy_samples: Location = Field(description="samples of the policy that the reward is meant to rank")
    base_samples: Location = Field(description="samples of the model that this policy was trained from")


class FitRewardStage(StageBase):
    """A sequence reward from stored pairs: preferences (RLHF), or AfD's choices of the two sides. Artifact: `reward`."""

    ARTIFACTS: ClassVar[tuple[str, ...]] = ("reward", "report.json")

    kind: Literal["fit_reward"] = "fit_reward"
    pair_loss: ClassVar[Literal["reward_loss"]] = "reward_loss"
    name: str = "reward"
    init: Location = Field(description="the backbone to start from")
    pooling: Literal["last", "mean"] = Field("last", description="of the response's hidden states, before the head")
    pairs: PairSource | None = Field(None, description="stored samples as pairs; data.preferences if unset")
    loss: Literal["bradley_terry", "linear", "logistic"] = Field(
        "bradley_terry", description="logistic: AfD's discriminator (2.3), whose optimum is the log density ratio"
    )
    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    batch_size: PositiveInt = Field(32, description="pairs of one optimiser step")
    heldout_frac: Fraction = Field(0.1, description="share of the prompts kept out, on which the accuracy is reported")
    normalise: Literal["none", "better", "worse"] = Field(
        "none", description="shift and scale scores to mean 0 and deviation 1 on this side"
    )
    heterogeneity: HeterogeneityConfig | None = Field(None, description="samples for the diagnosis; none if unset")
    optimizer: OptimizerConfig = OptimizerConfig()

    def inputs(self) -> dict[str, Input]:
        found = {"init": Input("model", self.init)}
        if self.pairs:
            found |= self.pairs.inputs("pairs")
        if self.heterogeneity:
            found |= set_inputs(
                heterogeneity__policy_samples=Input("samples", self.heterogeneity.policy_samples),
                heterogeneity__base_samples=Input("samples", self.heterogeneity.base_samples),
            )
        return found

    def shared_inputs(self, data: DataConfig) -> dict[str, Input]:
        if self.pairs is None:
            found = {"data.preferences": Input("preferences", data.preferences)}
        else:
            found = dict(demonstrations_of(data)) if self.pairs.reads_demonstrations else {}
        return found | (dict(demonstrations_of(data)) if self.heterogeneity else {})

    def trains(self) -> dict[Literal["policy", "reward"], Location]:
        return {"reward": self.init}

    def holds(self) -> list[Held]:
        return [Held("policy", self.init)]  # Ray Train runs on the policy's resources


class LogRatioStage(StageBase):
    """The closed-form reward scale * log(policy / reference), AfD's optimum (2.3), untrained. Artifact: `reward`."""

    ARTIFACTS: ClassVar[tuple[str, ...]] = ("reward",)

    kind: Literal["log_ratio"] = "log_ratio"
    name: str = "log_ratio"
    policy: Location = Field(description="what raises the reward, usually stage:sft/policy")
    reference: Location = Field(description="what lowers it, usually the base model")
    scale: Positive = 1.0

    def inputs(self) -> dict[str, Input]:
        return {"policy": Input("model", self.policy), "reference": Input("model", self.reference)}

    def made_of(self, artifact: str) -> list[Location]:
        return [self.policy, self.reference]

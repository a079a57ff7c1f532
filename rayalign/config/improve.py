"""How the policy is improved on a reward: advantages, losses, the critic, and the KL to the reference."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rayalign.config.base import Location, NonNegative, Number, Positive, PositiveInt, Strict
from rayalign.config.model import OptimizerConfig

Advantage = Literal["rloo", "grpo", "grpo_no_std", "reinforce_pp", "gae"]
GROUPED = ("rloo", "grpo", "grpo_no_std")  # a prompt's samples are each other's baseline


class ImportanceConfig(Strict):
    """Correction for the difference between the sampler's and the trainer's probabilities."""

    level: Literal["token", "sequence"] = "token"
    mode: Literal["off", "truncate", "mask"] = "truncate"
    cap: Number = Field(2.0, ge=1, description="weights above it are cut to it (truncate) or to 0 (mask)")


class CriticConfig(Strict):
    """PPO's value model: one value a token, learned by the policy group beside the policy."""

    init: Location | None = Field(
        None, description="the model to start from; if unset, the reward model of the round with its head (paper 1)"
    )
    gae_lambda: Number = Field(0.95, ge=0, le=1)
    value_clip: Positive = Field(0.2, description="how far a value may move from the one the batch found")
    optimizer: OptimizerConfig = OptimizerConfig()


class PolicyStepConfig(Strict):
    """One round of improving the policy on the reward."""

    steps: PositiveInt = Field(20, description="batches of rollouts a round")
    prompts_per_step: PositiveInt = 16
    samples_per_prompt: PositiveInt = Field(8, description="a group; rloo and grpo need at least 2")
    advantage: Advantage = Field(
        "rloo",
        description="rloo: minus the mean of the prompt's others; grpo: minus the group's mean, over its deviation; "
        "grpo_no_std: without that; reinforce_pp: rewards to go, whitened over the batch; gae: with the critic",
    )
    critic: CriticConfig | None = Field(None, description="for advantage gae")
    gamma: Number = Field(1.0, gt=0, le=1, description="discount of later tokens' rewards, for gae and reinforce_pp")
    loss: Literal["policy_gradient", "clipped", "squared"] = Field(
        "clipped",
        description="plain REINFORCE; PPO's clipped ratio to the policy that the batch found; APA's regression of the "
        "log-ratio on the advantage",
    )
    squared_scale: Positive = Field(10.0, description="lambda of APA: the log-ratio is drawn to advantage / lambda")
    epochs: PositiveInt = Field(1, description="passes over a batch")
    minibatches: PositiveInt = Field(1, description="optimiser steps of a pass")
    clip_low: Positive = 0.2
    clip_high: Positive = 0.2
    kl_coef: NonNegative = Field(0.05, description="beta: weight of KL(policy || reference)")
    kl_in: Literal["reward", "loss"] = Field(
        "reward", description="where beta counts: in the reward of the samples, or as GRPO's k3 term in the loss"
    )
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

    @model_validator(mode="after")
    def _baselines_have_what_they_need(self) -> PolicyStepConfig:
        if self.advantage in GROUPED and self.samples_per_prompt < 2:
            raise ValueError(
                f"samples_per_prompt ({self.samples_per_prompt}): the baseline of {self.advantage} is the prompt's other "
                "samples; set it to 2 or more, or advantage to gae or reinforce_pp"
            )
        if (self.advantage == "gae") != (self.critic is not None):
            raise ValueError("advantage gae and critic go together; set both, or neither")
        return self

    @model_validator(mode="after")
    def _what_is_set_counts(self) -> PolicyStepConfig:
        if self.gamma != 1 and not self.dense:
            raise ValueError(
                f"gamma ({self.gamma:g}): {self.advantage} gives a whole response one advantage and discounts nothing; set "
                "it to 1, or advantage to gae or reinforce_pp"
            )
        if self.loss == "policy_gradient" and self.epochs * self.minibatches > 1:
            raise ValueError(
                "loss policy_gradient holds for one step on samples of the very policy; set epochs and minibatches to 1, "
                "or loss to clipped"
            )
        return self

    @property
    def dense(self) -> bool:
        """Whether rewards of single tokens reach their own advantages (else a sequence's rewards are summed)."""
        return self.advantage not in GROUPED

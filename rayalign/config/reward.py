"""How a reward model is learned: inside the alternation, from stored pairs, or token by token."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rayalign.config.base import Location, NonNegative, Positive, PositiveInt, Strict
from rayalign.config.model import OptimizerConfig

PairLoss = Literal["bradley_terry", "linear", "logistic"]
Divergence = Literal["reverse_kl", "jensen_shannon", "jensen_shannon_softplus", "forward_kl", "forward_kl_exp"]
Weighting = Literal["counts", "means"]


class RewardConfig(Strict):
    """The reward model of the alternation, and one round of learning it."""

    init: Location = Field(description="the backbone to start from, usually the base model")
    pooling: Literal["last", "mean"] = Field("last", description="of the response's hidden states, before the head")
    loss: PairLoss = Field(
        "bradley_terry",
        description="linear: the exact IRL gradient (1.1); bradley_terry: its bounded surrogate (1.2); logistic: AfD's "
        "discriminator (2.3), unpaired",
    )
    divergence: Divergence = Field(
        "reverse_kl",
        description="what the policy is paid for the logit h (AfD 2.4): h, log sigmoid(h), softplus(h), the published "
        "-h exp(h), whose policy gradient points the other way (T24), or exp(h), whose does not",
    )
    demonstration_weight: NonNegative = Field(
        1.0, description="w1 of AIHF (5.1); 0 leaves the preferences alone (RLHF)"
    )
    preference_weight: NonNegative = Field(0.0, description="w2 of AIHF (5.1), on data.preferences; 0 is RFT")
    preference_temperature: Positive = Field(
        1.0, description="kappa: how sharply annotators follow the reward; it must fit beta (T39)"
    )
    weighting: Weighting = Field(
        "counts", description="counts: w1 and w2 weigh sums of log-likelihoods; means: each source's own mean (T38)"
    )
    start: Literal["fresh", "warm"] = Field("warm", description="each round from `init` again, or from the last round")
    steps: PositiveInt = Field(40, description="optimiser steps a round")
    batch_size: PositiveInt = Field(32, description="pairs of one optimiser step, from each source that has any")
    num_prompts: PositiveInt | None = Field(None, description="demonstrations sampled against a round; all if unset")
    num_per_prompt: PositiveInt = Field(4, description="the policy's samples for each demonstration")
    replay: Literal["none", "cumulative", "two_sets"] = Field(
        "none", description="which rounds' samples are negatives: this one, all, or the first and this one"
    )
    negatives: list[Location] = Field(
        default_factory=list,
        description="stored samples (stage:STAGE/samples.jsonl) that are negatives beside the policy's",
    )
    normalise: Literal["none", "demonstrations", "samples"] = Field(
        "samples", description="shift and scale scores to mean 0 and deviation 1 on these, after each round"
    )
    optimizer: OptimizerConfig = OptimizerConfig()

    @model_validator(mode="after")
    def _something_is_learned_from(self) -> RewardConfig:
        if not self.demonstration_weight and not self.preference_weight:
            raise ValueError("demonstration_weight and preference_weight are both 0; give one of them a weight")
        if not self.demonstration_weight and (self.negatives or self.replay != "none"):
            raise ValueError(
                "negatives and replay stand against demonstrations, and demonstration_weight is 0; remove them, or give "
                "demonstrations a weight"
            )
        if not self.demonstration_weight and self.normalise == "samples":
            raise ValueError(
                "normalise samples: with demonstration_weight 0 the policy is never sampled for the reward; set it to "
                "demonstrations or none"
            )
        return self

    @model_validator(mode="after")
    def _divergences_are_of_logits(self) -> RewardConfig:
        if self.divergence == "reverse_kl":
            return self
        if self.loss != "logistic":
            raise ValueError(
                f"divergence {self.divergence} is a function of a discriminator's logit; set loss to logistic"
            )
        if self.normalise != "none":
            raise ValueError(f"divergence {self.divergence} needs the logit as it is; set normalise to none")
        return self

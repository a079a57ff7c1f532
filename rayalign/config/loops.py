"""The stages in which a policy learns from its own samples: with a learned reward, a fixed one, or an implicit one."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from rayalign.config.base import Fraction, Location, NonNegative, NonNegativeInt, Positive, PositiveInt, Strict
from rayalign.config.data import DataConfig
from rayalign.config.improve import PolicyStepConfig
from rayalign.config.model import OptimizerConfig
from rayalign.config.reward import RewardConfig, Weighting
from rayalign.config.service import RewardLocation, is_service
from rayalign.config.stage_base import (
    Held,
    Input,
    PairSource,
    SamplingConfig,
    StageBase,
    demonstrations_of,
    prompts_or_demonstrations,
    set_inputs,
)
from rayalign.config.watch import WatchConfig


class SampledStage(StageBase):
    """A policy, what it draws, and how that is watched."""

    policy: Location = Field(description="the weights to start from, usually stage:sft/policy")
    sampling: SamplingConfig = SamplingConfig()
    canary_tolerance: Positive | None = Field(
        None, description="mean |log-prob difference| allowed; 1e-3 in float32, 5e-2 in bfloat16 if unset"
    )
    probe_size: PositiveInt = Field(64, description="held-out demonstrations that the round's health is measured on")
    golden: Literal["planted"] | None = Field(None, description="a known reward, shown and never trained on")
    watch: WatchConfig = Field(WatchConfig(), description="the alarms for a policy that exploits its reward")

    @property
    def room(self) -> int | None:
        """As long as what it samples."""
        return self.sampling.max_new_tokens

    @model_validator(mode="after")
    def _samples_are_the_policys(self) -> SampledStage:
        if self.sampling.top_p < 1:
            raise ValueError(
                f"sampling.top_p ({self.sampling.top_p:g}) cuts the distribution that the policy is trained on; "
                "set it to 1 here (evaluate may have its own)"
            )
        return self


class LoopStage(SampledStage):
    """Rounds of policy steps on a reward: what `irl` and `rl` share."""

    rounds: PositiveInt = 1
    improve: PolicyStepConfig = PolicyStepConfig()
    max_staleness: NonNegativeInt = Field(0, le=1, description="policy versions a sample may lag behind the update")
    canary_every: PositiveInt = Field(10, description="steps between checks that sampler and policy agree")
    save_every: PositiveInt = Field(1, description="rounds between saved models")

    def _critic(self) -> dict[str, Input]:
        critic = self.improve.critic
        return set_inputs(improve__critic__init=Input("model", critic.init if critic else None))

    def _policy_held(self, reward: Location | None) -> list[Held]:
        """The policy, its reference and its critic, which may start as the reward; and the sampler's copy."""
        held = [Held("rollout", self.policy, frozen="weights"), Held("policy", self.policy)]
        if self.improve.kl_coef:
            held.append(Held("policy", self.policy, frozen="reference"))
        start = (self.improve.critic.init or reward) if self.improve.critic else None
        return [*held, Held("policy", start, trained="critic")] if start else held


class IrlStage(LoopStage):
    """The alternation: the reward learns to tell demonstrations from the policy's samples, the policy follows it.

    RFT, From Demonstrations to Rewards, adversarial AfD, AIHF. Artifacts: `policy`, `reward`.
    """

    ARTIFACTS: ClassVar[tuple[str, ...]] = ("policy", "reward")

    kind: Literal["irl"] = "irl"
    name: str = "irl"
    reward: RewardConfig

    @model_validator(mode="after")
    def _a_critic_starts_as_what_is_paid(self) -> IrlStage:
        critic, divergence = self.improve.critic, self.reward.divergence
        if critic is not None and critic.init is None and divergence != "reverse_kl":
            raise ValueError(
                f"improve.critic.init: with divergence {divergence} the policy is paid a function of the logit, and a "
                "critic that starts as that reward begins elsewhere; name a model to start from"
            )
        return self

    @property
    def pair_loss(self) -> Literal["reward_loss"] | None:
        """Of (demonstration, sample) pairs, where those count."""
        return "reward_loss" if self.reward.demonstration_weight else None

    def inputs(self) -> dict[str, Input]:
        stored = {f"reward.negatives.{i}": Input("samples", path) for i, path in enumerate(self.reward.negatives)}
        return set_inputs(policy=Input("model", self.policy), reward__init=Input("model", self.reward.init)) | {
            **stored,
            **self._critic(),
        }

    def shared_inputs(self, data: DataConfig) -> dict[str, Input]:
        found = dict(demonstrations_of(data))
        if data.prompts:
            found["data.prompts"] = Input("prompts", data.prompts)
        if self.reward.preference_weight:
            found["data.preferences"] = Input("preferences", data.preferences)
        return found

    def trains(self) -> dict[Literal["policy", "reward"], Location]:
        return {"policy": self.policy, "reward": self.reward.init}

    def holds(self) -> list[Held]:
        return [*self._policy_held(self.reward.init), Held("reward", self.reward.init)]


class RlStage(LoopStage):
    """Policy optimisation against a fixed reward: RLHF, AVA's dense rewards, the closed-form rewards. Artifact: `policy`."""

    ARTIFACTS: ClassVar[tuple[str, ...]] = ("policy",)

    kind: Literal["rl"] = "rl"
    name: str = "rl"
    reward: RewardLocation | None = Field(
        None, description="a saved reward, or a service's http(s) address; unset where Python gives one of your own"
    )
    token_rewards: bool = Field(
        False, description="each token earns its own (rewards of ava, log_ratio, implicit); else the sum at the end"
    )

    @model_validator(mode="after")
    def _token_rewards_reach_tokens(self) -> RlStage:
        if self.token_rewards and not self.improve.dense:
            raise ValueError(
                f"token_rewards: advantage {self.improve.advantage} gives a response one advantage; set "
                "improve.advantage to reinforce_pp or gae, or token_rewards to false"
            )
        if self.token_rewards and is_service(self.reward):
            raise ValueError("token_rewards: a service gives a response one number; set it to false")
        return self

    @model_validator(mode="after")
    def _a_critic_has_a_start(self) -> RlStage:
        critic = self.improve.critic
        if critic is not None and critic.init is None and (self.reward is None or is_service(self.reward)):
            given = "a service" if self.reward else "a reward of your own"
            raise ValueError(f"improve.critic.init: {given} gives the critic no weights; name a model to start from")
        return self

    def inputs(self) -> dict[str, Input]:
        own = set_inputs(policy=Input("model", self.policy), reward=Input("reward", self.reward))
        return own | self._critic()

    def shared_inputs(self, data: DataConfig) -> dict[str, Input]:
        found = dict(prompts_or_demonstrations(data))
        if data.demonstrations:  # to measure on
            found |= dict(demonstrations_of(data))
        return found

    def trains(self) -> dict[Literal["policy", "reward"], Location]:
        return {"policy": self.policy}

    def holds(self) -> list[Held]:
        scorer = [Held("reward", self.reward, frozen="weights")] if self.reward else []
        return [*self._policy_held(self.reward), *scorer]


class DemonstrationTerm(Strict):
    """What the demonstrations ask of the implicit reward beta log(policy / reference)."""

    loss: Literal["log_sigmoid", "hinge", "linear", "likelihood", "gsil", "dft"] = Field(
        "log_sigmoid",
        description="a link on (demonstration, sample) pairs: IRFT and SPIN; likelihood: plain fine-tuning (direct AIHF); "
        "gsil: density ratios, unpaired; dft: the partition by importance sampling",
    )
    weight: Positive = Field(1.0, description="w1 of AIHF")
    num_per_prompt: PositiveInt = Field(1, description="samples of the policy for each demonstration")
    negatives: list[Location] = Field(
        default_factory=list,
        description="stored samples (stage:STAGE/samples.jsonl) that are negatives beside the policy's",
    )
    gsil_link: Literal["logistic", "hinge", "brier", "exp"] = Field("logistic", description="l of GSIL's two terms")
    dft_tau: Positive = Field(1.0, description="temperature of DFT's partition")
    dft_decay: Fraction = Field(0.85, description="share of the newest estimate in DFT's moving average")

    @property
    def draws(self) -> bool:
        """Whether the policy is sampled."""
        return self.loss != "likelihood"


class PreferenceTerm(Strict):
    """What preference pairs ask of the implicit reward; their reference is the stage's first model."""

    loss: Literal["dpo", "hinge", "ipo"] = "dpo"
    weight: Positive = Field(1.0, description="w2 of AIHF")
    beta: Positive | None = Field(None, description="the stage's if unset")
    pairs: PairSource | None = Field(None, description="stored samples as pairs; data.preferences if unset")


class ImplicitStage(SampledStage):
    """The reward folded into the policy: IRFT, SPIN, DPO, IPO, GSIL, DFT, direct and self-play AIHF.

    Artifacts: `policy`, and `reward`: beta log(policy / first model), which any stage scores with.
    """

    ARTIFACTS: ClassVar[tuple[str, ...]] = ("policy", "reward")

    kind: Literal["implicit"] = "implicit"
    name: str = "implicit"
    rounds: PositiveInt = Field(1, description="T: how often the policy's samples are drawn anew")
    slices: bool = Field(False, description="each round trains on its own share of the demonstrations, not on all")
    keep_previous: bool = Field(False, description="also train on the pairs of the round before (SPIN)")
    on_policy: bool = Field(False, description="draw anew for every step: K = 1")
    epochs: PositiveInt = Field(1, description="passes over a round's rows")
    max_steps: PositiveInt | None = Field(None, description="at most this many optimiser steps a round")
    batch_size: PositiveInt = Field(32, description="pairs of one optimiser step, from each source that has any")
    beta: Positive | list[Positive] = Field(0.1, description="of the implicit reward; a list has one for each round")
    learning_rates: list[Positive] | None = Field(
        None, description="one for each round, in the place of optimizer.learning_rate"
    )
    reference: Literal["round", "start"] = Field(
        "round", description="of the demonstrations' term: the policy as the round began, or the stage's first model"
    )
    demonstrations: DemonstrationTerm | None = DemonstrationTerm()
    preferences: PreferenceTerm | None = None
    weighting: Weighting = Field(
        "counts", description="counts: w1 and w2 weigh sums of log-likelihoods; means: each source's own mean (T38)"
    )
    likelihood_weight: NonNegative = Field(
        0.0, description="of the demonstrations' own log-likelihood, against collapse"
    )
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-7)

    @model_validator(mode="after")
    def _something_is_learned_from(self) -> ImplicitStage:
        if self.demonstrations is None and self.preferences is None:
            raise ValueError("demonstrations and preferences are both unset; set one of them")
        if self.demonstrations is None and (self.rounds > 1 or self.on_policy or self.likelihood_weight):
            raise ValueError("rounds, on_policy and likelihood_weight are about demonstrations; set demonstrations too")
        return self

    @model_validator(mode="after")
    def _a_round_has_one_of_each(self) -> ImplicitStage:
        for key, values in (("beta", self.beta), ("learning_rates", self.learning_rates)):
            if isinstance(values, list) and len(values) != self.rounds:
                raise ValueError(
                    f"{key} has {len(values)} values and there are {self.rounds} rounds; give one for each"
                )
        return self

    @model_validator(mode="after")
    def _samples_are_what_the_loss_takes_them_for(self) -> ImplicitStage:
        term = self.demonstrations
        if term is None:
            return self
        if self.draws and self.sampling.temperature != 1:
            raise ValueError(
                f"sampling.temperature ({self.sampling.temperature:g}): the implicit reward is that of the policy at "
                "temperature 1, and its samples must be drawn so; set it to 1"
            )
        if term.negatives and (term.loss in ("likelihood", "dft", "gsil") or self.on_policy):
            other = "on_policy, which draws all of them" if self.on_policy else term.loss
            raise ValueError(
                f"demonstrations.negatives are for a pair loss on drawn samples, not for {other}; remove them"
            )
        if self.on_policy and term.loss in ("likelihood", "dft", "gsil"):
            why = "draws nothing" if term.loss == "likelihood" else "takes its samples for draws of the reference"
            raise ValueError(f"on_policy: {term.loss} {why}; set it to false")
        if self.keep_previous and (self.rounds == 1 or self.on_policy or not term.draws):
            raise ValueError("keep_previous needs rounds whose samples are drawn at once; set it to false")
        if term.loss in ("dft", "gsil") and (self.keep_previous or (self.reference == "start" and self.rounds > 1)):
            raise ValueError(
                f"{term.loss} takes its samples for draws of the reference (their likelihood under it is part of the loss); "
                "set keep_previous to false and reference to round"
            )
        return self

    @property
    def draws(self) -> bool:
        """Whether the policy is sampled."""
        return self.demonstrations is not None and self.demonstrations.draws

    @property
    def keeps_reference(self) -> bool:
        """Whether a second model is held: where the reference is older than the round, or samples come while it runs."""
        return self.on_policy or (self.reference == "start" and self.rounds > 1 and self.draws)

    @property
    def room(self) -> int | None:
        """As long as what it samples, if it does."""
        return self.sampling.max_new_tokens if self.draws else None

    @property
    def pair_loss(self) -> Literal["implicit_loss"] | None:
        """Of (demonstration, sample) pairs."""
        term = self.demonstrations
        return "implicit_loss" if term is not None and term.loss not in ("likelihood", "dft") else None

    def beta_of(self, round_number: int) -> float:
        """The round's beta."""
        return self.beta[round_number] if isinstance(self.beta, list) else self.beta

    def inputs(self) -> dict[str, Input]:
        found = {"policy": Input("model", self.policy)}
        for i, path in enumerate(self.demonstrations.negatives if self.demonstrations else []):
            found[f"demonstrations.negatives.{i}"] = Input("samples", path)
        if self.preferences and self.preferences.pairs:
            found |= self.preferences.pairs.inputs("preferences.pairs")
        return found

    def shared_inputs(self, data: DataConfig) -> dict[str, Input]:
        pairs = self.preferences.pairs if self.preferences else None
        wanted = self.demonstrations is not None or (pairs is not None and pairs.reads_demonstrations)
        found = dict(demonstrations_of(data)) if wanted or data.demonstrations else {}
        if self.preferences and pairs is None:
            found["data.preferences"] = Input("preferences", data.preferences)
        return found

    def trains(self) -> dict[Literal["policy", "reward"], Location]:
        return {"policy": self.policy}

    def holds(self) -> list[Held]:
        sampler = [Held("rollout", self.policy, frozen="weights")] if self.draws else []
        older = [Held("policy", self.policy, frozen="reference")] if self.keeps_reference else []
        return [*sampler, Held("policy", self.policy), *older]

    def made_of(self, artifact: str) -> list[Location]:
        return [self.policy] * (2 if artifact == "reward" else 1)

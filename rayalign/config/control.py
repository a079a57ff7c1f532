"""The configuration of a control run: an environment, data, a reward and a policy learned on it, round by round."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayalign.config.base import Fraction, NonNegative, NonNegativeInt, Number, PathText, Positive, PositiveInt, Strict
from rayalign.config.checkpoints import CheckpointConfig
from rayalign.config.credentials import WithoutCredentials
from rayalign.config.placement import PlacementConfig
from rayalign.config.reward import Divergence, Weighting
from rayalign.config.telemetry import TelemetryConfig

Method = Literal["ml_irl", "aihf", "preferences", "behaviour_cloning"]
LearnedFrom = Literal["demonstrations", "preferences"]
Schedule = Literal["constant", "linear"]
Layers = Annotated[list[PositiveInt], Field(min_length=1)]

USES: dict[Method, tuple[LearnedFrom, ...]] = {
    "ml_irl": ("demonstrations",),
    "aihf": ("demonstrations", "preferences"),
    "preferences": ("preferences",),
    "behaviour_cloning": ("demonstrations",),
}


class EnvironmentConfig(Strict):
    """A Gymnasium environment with vectors as observations and actions."""

    id: str = Field(min_length=1, description="a registered environment, such as Hopper-v5")
    options: dict[str, bool | int | float | str | list[float]] = Field(
        default_factory=dict, description="arguments of its constructor, such as terminate_when_unhealthy: false"
    )
    max_episode_steps: PositiveInt | None = Field(None, description="cuts episodes there; its own limit if unset")
    allow_variable_horizon: bool = Field(
        False,
        description="episodes that may end early tell the sign of the reward by their length: a learned reward that is "
        "positive or negative everywhere then does well or badly for no reason of its own. Refused unless set",
    )
    observation_scale: list[Positive] | None = Field(
        None, description="what observations are divided by in all networks; unset: root mean squares over the data"
    )


class TrajectoryData(Strict):
    """A file of demonstrations or of preferences (docs/control.md has the layout)."""

    path: PathText
    num: PositiveInt | None = Field(None, description="the first so many trajectories, or pairs; all if unset")


class ControlOptimizer(Strict):
    """Adam."""

    learning_rate: Positive = Field(1e-3, le=1e12)
    schedule: Schedule = Field(
        "constant", description="linear: it falls from the end of the warm-up on, to 0 after the last of `rounds`"
    )
    weight_decay: NonNegative = 0.0


class RewardOptimizer(ControlOptimizer):
    """Adam, with the decay of ML-IRL's code."""

    weight_decay: NonNegative = 1e-3


class ControlReward(Strict):
    """The reward network, and how a round teaches it."""

    inputs: Literal["state", "state_action"] = "state_action"
    hidden: Layers = [64, 64]
    ensemble: PositiveInt = Field(1, le=64, description="networks that begin differently; the reward is their mean")
    pessimism: NonNegative = Field(
        0.0, description="times the ensemble's deviation, taken from what the policy is paid: it stays where they agree"
    )
    clamp: Positive | None = Field(10.0, description="rewards are cut to [-clamp, clamp]; unset: not cut")
    loss: Literal["linear", "logistic"] = Field(
        "linear", description="linear: ML-IRL's gradient; logistic: a discriminator, as in GAIL and AIRL"
    )
    divergence: Divergence = Field(
        "reverse_kl",
        description="what the policy is paid for a discriminator's logit; jensen_shannon_softplus is GAIL's",
    )
    gradient_penalty: NonNegative = Field(
        0.0,
        description="of slopes other than 1 between demonstrations and the policy's steps, in a step's reward: keeps the "
        "reward from running to its clamp ahead of the policy. 10 in WGAN-GP and DAC",
    )
    demonstration_weight: NonNegative = Field(1.0, description="w1 of AIHF (5.1)")
    preference_weight: NonNegative = Field(1.0, description="w2 of AIHF (5.1)")
    preference_temperature: Positive = Field(
        1.0,
        description="kappa: how sharply annotators follow the reward; the inverse of `expert.label_temperature`",
    )
    weighting: Weighting = Field(
        "counts", description="counts: w1 and w2 weigh sums of log-likelihoods; means: each source's own mean (T38)"
    )
    steps: PositiveInt = Field(1, description="optimiser steps a round")
    pretrain_steps: NonNegativeInt = Field(0, description="steps on the preferences alone, before the first round")
    demonstration_batch: PositiveInt | None = Field(None, description="transitions of one step; all if unset")
    agent_window: PositiveInt = Field(
        400, description="the newest transitions of the policy stand against demonstrations"
    )
    preference_batch: PositiveInt = Field(64, description="pairs of one step")
    optimizer: RewardOptimizer = RewardOptimizer()

    @model_validator(mode="after")
    def _divergences_are_of_logits(self) -> ControlReward:
        if self.divergence != "reverse_kl" and self.loss != "logistic":
            raise ValueError(
                f"divergence {self.divergence} is a function of a discriminator's logit; set loss to logistic"
            )
        return self

    @model_validator(mode="after")
    def _one_network_agrees_with_itself(self) -> ControlReward:
        if self.pessimism and self.ensemble == 1:
            raise ValueError("pessimism: one network has no deviation; set ensemble to 2 or more, or pessimism to 0")
        return self


class PpoConfig(Strict):
    """What PPO asks for beside `policy`'s own keys."""

    epochs: PositiveInt = Field(10, description="passes over a fragment")
    clip: Positive = Field(0.2, lt=1, description="of the ratio to the policy that sampled")
    gae_lambda: Number = Field(0.95, ge=0, le=1)
    value_coef: Positive = 0.5
    entropy_coef: NonNegative = 0.0


# Of `ControlPolicy`: what only one of the two algorithms reads.
OF_SAC = (
    "tau", "entropy_coef", "initial_entropy_coef", "warmup_steps", "updates_per_step", "start", "demonstration_share",
    "cloning_weight", "ema_decay",
)
OF_PPO = ("ppo",)


class ControlPolicy(Strict):
    """SAC or PPO, or in behaviour cloning the network alone."""

    algorithm: Literal["sac", "ppo"] = Field("sac", description="PPO where actions are choices, as in CartPole-v1")
    hidden: Layers = [256, 256]
    learning_rate: Positive = Field(3e-4, le=1e12, description="of actor, critics and entropy coefficient")
    schedule: Schedule = Field("constant", description="of the learning rate, as `reward.optimizer.schedule`")
    ema_decay: Fraction = Field(
        0.0,
        description="of an average of the actor's weights over its updates, which is what is measured and saved: each round "
        "follows another reward, and so the newest actor swings. 0.9999, say; 0: the newest",
    )
    batch_size: PositiveInt = 256
    discount: Fraction = 0.99
    tau: Positive = Field(0.005, le=1, description="the targets' step towards the critics, each update")
    entropy_coef: Positive | Literal["auto"] = Field("auto", description="a number keeps it fixed")
    initial_entropy_coef: Positive = Field(1.0, description="where auto begins")
    replay_size: PositiveInt = 1_000_000
    warmup_steps: NonNegativeInt = Field(400, description="random steps before the first update")
    steps_per_round: PositiveInt = Field(200, description="environment steps between two lessons of the reward")
    updates_per_step: Positive = Field(1.0, le=100, description="gradient steps per environment step")
    max_episode_steps: PositiveInt | None = Field(
        None,
        description="cuts episodes of training there, and not those that are measured: where a policy falls and stays down, "
        "most of a long episode teaches nothing",
    )
    max_unhealthy_steps: PositiveInt | None = Field(
        None,
        description="cuts an episode of training after so many steps in a row in which a MuJoCo environment calls itself "
        "unhealthy: it is truncated and not ended, so its length tells nothing of the reward's sign. What is healthy is the "
        "environment's knowledge, and in Hopper-v5, Walker2d-v5 and Ant-v5 a term of the true reward too",
    )
    fragment: PositiveInt = Field(50, description="environment steps between two rows of updates; PPO's batch")
    ppo: PpoConfig = PpoConfig()
    start: Literal["random", "cloned"] = Field(
        "random",
        description="cloned: a clone of the demonstrations, as a language model is fine-tuned on them first; it makes the "
        "warm-up's steps, from which the reward and then the critics learn before the actor moves",
    )
    cloning_epochs: PositiveInt = Field(
        200, description="passes over the demonstrations, in behaviour cloning and for `start: cloned`"
    )
    demonstration_share: Fraction = Field(
        0.0, description="of a batch: steps of the demonstrations, paid the newest reward like the policy's own"
    )
    cloning_weight: NonNegative = Field(
        0.0,
        description="of the actor's squared distance to the actions of `demonstration_share`, in units of the mean |Q| as "
        "in TD3+BC, whose own is 0.4: keeps it a clone where the demonstrations say what to do",
    )

    @model_validator(mode="after")
    def _keys_are_of_the_algorithm(self) -> ControlPolicy:
        foreign = OF_SAC if self.algorithm == "ppo" else OF_PPO
        fields = type(self).model_fields
        for name in foreign:
            if getattr(self, name) != fields[name].default:
                raise ValueError(
                    f"{name}: {self.algorithm} does not read it; leave it out, or set algorithm to the other"
                )
        if self.entropy_coef != "auto" and self.initial_entropy_coef != fields["initial_entropy_coef"].default:
            raise ValueError(f"initial_entropy_coef: entropy_coef is fixed at {self.entropy_coef}; leave one of them out")
        if self.start == "cloned" and not self.warmup_steps:
            raise ValueError("warmup_steps: from a clone's the reward and the critics learn first; set it to 5000, say")
        if self.cloning_weight and not self.demonstration_share:
            raise ValueError("cloning_weight: no batch holds demonstrations; set demonstration_share to 0.25, say")
        if self.algorithm == "sac" and self.replay_size < self.warmup_steps:
            raise ValueError(f"replay_size: {self.replay_size} does not hold the {self.warmup_steps} of warmup_steps")
        if self.algorithm == "ppo" and self.fragment < self.batch_size:
            raise ValueError(
                f"fragment: PPO makes its batches of {self.batch_size} (batch_size) from a fragment of {self.fragment} "
                "steps; raise fragment (2048 is usual), or lower batch_size"
            )
        last = self.steps_per_round % self.fragment
        if self.algorithm == "ppo" and (self.steps_per_round < self.fragment or 0 < last < self.batch_size):
            raise ValueError(
                f"steps_per_round: {self.steps_per_round} steps are no fragments of {self.fragment}, and what is left over "
                f"fills no batch of {self.batch_size}; set it to a multiple of fragment"
            )
        return self


class ControlEvaluation(Strict):
    """The true return, which no loss ever sees."""

    every: PositiveInt = Field(10, description="rounds between two")
    num_episodes: PositiveInt = Field(20, description="of the deterministic policy")
    seed: NonNegativeInt = Field(10_000, description="of the first episode; the others follow")


class ExpertConfig(Strict):
    """`rayalign control expert`: the policy on the true reward, and what is rolled out from the best policy found."""

    steps: PositiveInt = Field(20_000, description="environment steps at most")
    max_s: Positive = Field(1800.0, description="seconds at most")
    evaluate_every: PositiveInt = Field(2000, description="environment steps between two looks; the best is kept")
    num_trajectories: PositiveInt = Field(10, description="demonstrations of each tier")
    tiers: list[Fraction] = Field(
        default_factory=list,
        description="further experts, named by their share of the way from the first return to the best: [0.5] is one of "
        "half the quality",
    )
    action_noise: NonNegative = Field(
        0.0,
        description="of demonstrations: deviation, as a share of half the bounds; of choices, the share of random ones",
    )
    num_preferences: NonNegativeInt = Field(300, description="pairs of segments, from all tiers and random actions")
    segment_length: PositiveInt = 20
    label_temperature: NonNegative = Field(
        1.0,
        description="of Bradley-Terry answers on true returns; 0: always right. Inverse of `reward.preference_temperature`",
    )


class ControlPlacement(Strict):
    """Where RLlib runs: all in this process, or env runners and learners as Ray actors."""

    address: str | None = Field(None, description="a Ray cluster to join; HOST:PORT or auto")
    object_store_mib: PositiveInt = Field(100, ge=75)
    num_env_runners: NonNegativeInt = 0
    num_learners: NonNegativeInt = 0
    gpus_per_learner: NonNegative = 0.0

    @property
    def remote(self) -> bool:
        """Whether anything runs outside this process."""
        return bool(self.num_env_runners or self.num_learners)

    def cluster(self) -> PlacementConfig:
        """What joining or starting Ray asks for."""
        return PlacementConfig(address=self.address, object_store_mib=self.object_store_mib)


class ControlConfig(WithoutCredentials):
    """A control run."""

    name: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=128)
    run_dir: PathText = Field("runs", description="holds run folders; this run writes to RUN_DIR/NAME")
    seed: NonNegativeInt = 0
    method: Method = Field("ml_irl", description="which sources are learned from; the other is not read")
    environment: EnvironmentConfig
    demonstrations: TrajectoryData | None = None
    preferences: TrajectoryData | None = None
    reward: ControlReward = ControlReward()
    policy: ControlPolicy = ControlPolicy()
    rounds: PositiveInt = 40
    max_s: Positive | None = Field(None, description="seconds of this start, after which no further round begins")
    evaluation: ControlEvaluation = ControlEvaluation()
    expert: ExpertConfig = ExpertConfig()
    placement: ControlPlacement = ControlPlacement()
    telemetry: TelemetryConfig = TelemetryConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    resume: Literal["auto", "anew"] = Field("auto", description="an interrupted run goes on from its newest checkpoint")

    @property
    def uses_demonstrations(self) -> bool:
        """Whether the reward, or the clone, is learned from them."""
        return "demonstrations" in USES[self.method]

    @property
    def uses_preferences(self) -> bool:
        """Whether the reward is learned from them."""
        return "preferences" in USES[self.method]

    @model_validator(mode="after")
    def _weights_are_of_the_method(self) -> ControlConfig:
        reward = self.reward
        if self.method == "aihf" and not (reward.demonstration_weight and reward.preference_weight):
            raise ValueError("reward: with a weight of 0 it is not aihf; set method to ml_irl or preferences")
        own = {"ml_irl": "demonstration_weight", "preferences": "preference_weight"}.get(self.method)
        if own is not None and not getattr(reward, own):
            raise ValueError(f"reward.{own}: with a weight of 0 {self.method} learns no reward; set it to 1")
        if self.method == "preferences" and reward.loss != "linear":
            raise ValueError("reward.loss: preferences have no discriminator; set it to linear")
        for key, off in (("start", "random"), ("demonstration_share", 0.0)):
            if getattr(self.policy, key) != off and not self.uses_demonstrations:
                raise ValueError(f"policy.{key}: {self.method} reads no demonstrations; leave it out")
        if reward.pretrain_steps and not self.uses_preferences:
            raise ValueError(
                f"reward.pretrain_steps: {self.method} reads no preferences; set it to 0, or method to aihf"
            )
        return self

    @model_validator(mode="after")
    def _checkpoints_are_of_one_run(self) -> ControlConfig:
        for key in ("best", "mirror"):
            if getattr(self.checkpoints, key) is not None:
                raise ValueError(f"checkpoints.{key}: control runs have none; leave it out")
        return self

    @model_validator(mode="after")
    def _learners_have_equal_shares(self) -> ControlConfig:
        num, reward = max(1, self.placement.num_learners), self.reward
        if reward.agent_window > self.policy.replay_size:
            raise ValueError(
                f"reward.agent_window: {reward.agent_window} steps, and policy.replay_size keeps {self.policy.replay_size}; "
                "lower the one or raise the other"
            )
        shared = {name: getattr(reward, name) for name in ("agent_window", "demonstration_batch", "preference_batch")}
        if self.policy.steps_per_round < num:
            raise ValueError(
                f"policy.steps_per_round: {self.policy.steps_per_round} does not divide among placement.num_learners "
                f"({num}); raise it"
            )
        for name, size in shared.items():
            if size is not None and size < num:
                raise ValueError(f"reward.{name}: {size} does not divide among placement.num_learners ({num}); raise it")
        if self.policy.batch_size % num:
            raise ValueError(
                f"policy.batch_size ({self.policy.batch_size}) does not divide among placement.num_learners ({num}); change "
                "one of them"
            )
        return self

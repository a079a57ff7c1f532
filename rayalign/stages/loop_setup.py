"""What a loop starts from: data, three groups, and the weights on their way between them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayalign.config.loops import IrlStage, LoopStage, RlStage
from rayalign.config.reward import RewardConfig
from rayalign.data.fingerprint import fingerprint
from rayalign.data.pairs import interleaved
from rayalign.data.tokenize import prompts_of
from rayalign.engines.policy import PolicyEngine
from rayalign.engines.reward import RewardEngine
from rayalign.errors import DataError, UserError
from rayalign.ports import PolicySetup, RewardSetup, ScorerSetup, ServiceSetup, Workers
from rayalign.stages.context import RunContext
from rayalign.stages.groups import PolicyGroup, RewardGroup, RolloutGroup, StoredRollouts
from rayalign.stages.inputs import (
    DemonstrationSplit,
    load_demonstrations,
    load_prompts,
    load_samples,
    locate_model,
    matched_to,
)
from rayalign.stages.pairs import Pairs, load_pairs, tell_balance
from rayalign.stages.scoring import fixed_reward
from rayalign.storage.aside import written_aside
from rayalign.telemetry.clock import Clock
from rayalign.telemetry.metrics import Metrics
from rayalign.types import Sequences, TokenizedPrompts

HELD_OUT = "held-out demonstrations"


@dataclass
class LoopGroups:
    """The three groups of one `irl` or `rl` stage, with the data they work on."""

    context: RunContext
    stage: LoopStage
    rollout: RolloutGroup
    reward: RewardGroup
    policy: PolicyGroup
    demonstrations: DemonstrationSplit | None  # `rl` need not have any
    prompts: TokenizedPrompts  # that the policy is improved on
    data: dict[str, str]  # fingerprints of what is learned from, by name
    _rounds_sampled: int = 0

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.context.config.seed

    def seed_of(self, purpose: str, number: int) -> int:
        """A seed of its own for each time samples are drawn."""
        return self.context.seed_of(self.stage.name, purpose, number)

    def saved(self) -> dict[str, Workers[Any]]:
        """The groups that a checkpoint is made of; a reward that learns nothing needs none."""
        learns = isinstance(self.stage, IrlStage) and self.context.components.reward_learns
        return {"policy": self.policy.workers} | ({"reward": self.reward.workers} if learns else {})

    def state(self) -> dict[str, Any]:
        """Plain values; `restore` goes on from here."""
        return {"rounds_sampled": self._rounds_sampled, "policy_version": self.policy.version}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken; the workers have taken theirs."""
        self._rounds_sampled, self.policy.version = state["rounds_sampled"], state["policy_version"]

    def update_reward(self, clock: Clock) -> Metrics:
        """One round of reward learning against the policy's own answers; nothing where the reward is fixed."""
        stage = self.stage
        if not isinstance(stage, IrlStage) or not self.context.components.reward_learns:
            return {}
        agent: StoredRollouts = []
        if stage.reward.demonstration_weight:
            with clock.phase("generate"):
                agent = self._sample_against_demonstrations(stage.reward)
        with clock.phase("reward_update"):
            return self.reward.update(agent)

    def start_critic(self, round_number: int) -> None:
        """Where there is a critic: from a model once, or from the newest reward at every round that has one (paper 1)."""
        stage, critic = self.stage, self.stage.improve.critic
        if critic is None or (round_number and (critic.init is not None or isinstance(stage, RlStage))):
            return
        if critic.init is not None:
            self.policy.start_critic(locate_model(self.context, critic.init))
        elif isinstance(stage, RlStage) and stage.reward is not None:
            self.policy.start_critic(self.context.locate(stage.reward))
        else:
            with written_aside(self.context.stage_folder(stage.name) / ".critic") as folder:
                self.reward.save(str(folder))
                self.policy.start_critic(str(folder))

    def _sample_against_demonstrations(self, config: RewardConfig) -> StoredRollouts:
        """The policy's own answers to the prompts of demonstrations: the negatives of this round."""
        assert self.demonstrations is not None
        prompts = prompts_of(self.demonstrations.train)
        number = self._rounds_sampled
        self._rounds_sampled += 1
        if config.num_prompts is not None and config.num_prompts < len(prompts):
            random = np.random.default_rng(self.seed_of("choose", number))
            prompts = prompts.take(np.sort(random.choice(len(prompts), config.num_prompts, replace=False)))
        return self.rollout.generate(
            prompts,
            self.stage.sampling,
            num_per_prompt=config.num_per_prompt,
            seed=self.seed_of("against", number),
        )

    def save(self) -> None:
        """Writes policy and reward of this round; both appear together, in the place of an earlier round's."""
        with written_aside(self.context.stage_folder(self.stage.name)) as folder:
            folder.mkdir()
            for name in self.stage.artifacts():
                self._save_one(name, folder / name)

    def save_from(self, checkpoint: Path) -> None:
        """As `save`, with the models of a checkpoint; a reward that it does not hold (one of the user's own) as it is."""
        with written_aside(self.context.stage_folder(self.stage.name)) as folder:
            folder.mkdir()
            for name in self.stage.artifacts():
                if (checkpoint / name / "config.json").exists():
                    shutil.copytree(checkpoint / name, folder / name)
                else:
                    self._save_one(name, folder / name)

    def _save_one(self, name: str, folder: Path) -> None:
        group = self.policy if name == "policy" else self.reward
        group.save(str(folder))
        self.context.template().save_tokenizer(folder)


@contextlib.contextmanager
def start_groups(context: RunContext, stage: LoopStage) -> Iterator[LoopGroups]:
    """Loads the data, starts the groups, connects policy and samplers; ends reward and policy at the end."""
    policy_path = locate_model(context, stage.policy)
    demonstrations = None
    if isinstance(stage, IrlStage) or context.config.data.demonstrations is not None:
        demonstrations = load_demonstrations(context, stage.name)
    prompts = _improvement_prompts(context, stage, demonstrations)
    factory, setup = _reward(context, stage, demonstrations)
    rollout = context.rollout_group(policy_path)
    rollout.sleep()  # where it shares GPUs, the trainers load next
    with contextlib.ExitStack() as stack:
        with context.progress.stage("starting the reward group"):
            reward = context.fleet.start("reward", factory, [setup] * context.fleet.num_workers("reward"))
            stack.callback(reward.close)
        with context.progress.stage("starting the policy group"):
            policy = context.fleet.start(
                "policy", PolicyEngine, [_policy_setup(context, stage)] * context.fleet.num_workers("policy")
            )
            stack.callback(policy.close)
            group = PolicyGroup(policy, rollout, lambda: context.fleet.connect(policy, rollout.workers))
        data = {"prompts": fingerprint(prompts)}
        if isinstance(setup, RewardSetup):
            data |= fingerprints(demonstrations, setup.negatives, setup.preferences)
        yield LoopGroups(context, stage, rollout, RewardGroup(reward), group, demonstrations, prompts, data)


def fingerprints(
    split: DemonstrationSplit | None, negatives: list[Sequences], preferences: Pairs | None
) -> dict[str, str]:
    """Of what a reward is learned from and measured on, by name."""
    found = {}
    if split is not None:
        found = {"demonstrations": split.train, HELD_OUT: split.heldout}
    if negatives:
        found["negatives"] = Sequences.concatenate(negatives)
    if preferences is not None:
        found["preferences"] = interleaved(*preferences)
    return {name: fingerprint(sequences) for name, sequences in found.items()}


def _improvement_prompts(
    context: RunContext, stage: LoopStage, split: DemonstrationSplit | None
) -> TokenizedPrompts:
    if context.config.data.prompts is None:
        if split is None:
            raise DataError(f"stage {stage.name} needs prompts: set data.prompts, or data.demonstrations")
        prompts = prompts_of(split.train)
    else:
        prompts = load_prompts(context, context.config.data.prompts, room=stage.sampling.max_new_tokens)
    needed = stage.improve.prompts_per_step
    if len(prompts) < needed:
        raise DataError(
            f"stage {stage.name}: {len(prompts)} prompts are fewer than improve.prompts_per_step ({needed}); "
            "lower it or give more in data.prompts"
        )
    return prompts


def load_negatives(context: RunContext, location: str, demonstrations: Sequences) -> Sequences:
    """Stored samples that answer a demonstration's prompt, with its id. Raises DataError where none does."""
    stored = load_samples(context.locate(location))
    samples = matched_to(demonstrations, stored)
    if not len(samples):
        raise DataError(f"{location}: no sample answers the prompt of a demonstration; sample on their prompts")
    if len(samples) < len(stored):
        context.progress.say(
            f"{location}: {len(stored) - len(samples)} of {len(stored)} samples answer no training demonstration's "
            "prompt; left out"
        )
    return samples


def _reward(
    context: RunContext, stage: LoopStage, split: DemonstrationSplit | None
) -> tuple[Callable[[Any], Any], RewardSetup | ScorerSetup | ServiceSetup]:
    """What builds a reward worker, and from what: a learned one, a fixed one, or one of the user's own."""
    own = context.components.reward is not RewardEngine
    if isinstance(stage, RlStage) and not own:
        if stage.reward is None:
            raise UserError(f"stage {stage.name} needs a reward: set its reward, or pass train(reward=...)")
        critic = stage.improve.critic
        from_reward = critic is not None and critic.init is None
        return fixed_reward(context, stage.reward, token_rewards=stage.token_rewards, starts_critic=from_reward)
    config = stage.reward if isinstance(stage, IrlStage) else RewardConfig(init=stage.policy)
    if not own:
        locate_model(context, config.init)
    train = split.train if split else None
    negatives = [load_negatives(context, location, train) for location in config.negatives if train is not None]
    preferences = load_pairs(context, stage.name, None) if config.preference_weight else None
    if preferences and train and config.weighting == "counts":
        weights = config.demonstration_weight, config.preference_weight
        tell_balance(context, stage.name, (len(train), len(preferences[0])), weights)
    setup = RewardSetup(
        path=context.locate(config.init),
        tokenizer=context.tokenizer_path,
        chat_template=context.config.data.chat_template,
        model=context.config.model.model_copy(update={"lora": None}),
        learner=context.config.learner,
        config=config,
        rounds=stage.rounds,
        seed=context.config.seed,
        demonstrations=train,
        negatives=negatives,
        preferences=preferences,
        loss=context.components.reward_loss,
    )
    return context.components.reward, setup


def _policy_setup(context: RunContext, stage: LoopStage) -> PolicySetup:
    steps, critic = stage.improve.steps * stage.improve.epochs * stage.improve.minibatches, stage.improve.critic
    anew = critic is not None and critic.init is None and isinstance(stage, IrlStage)
    return PolicySetup(
        path=context.locate(stage.policy),
        model=context.config.model,
        learner=context.config.learner,
        config=stage.improve,
        temperature=stage.sampling.temperature,
        total_steps=stage.rounds * steps,
        max_staleness=stage.max_staleness,
        seed=context.config.seed,
        critic_steps=steps if anew else stage.rounds * steps,
    )

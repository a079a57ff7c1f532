"""What the alternation starts from: data, three groups, and the weights on their way between them."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rayalign.config.stages import IrlStage
from rayalign.data.tokenize import prompts_of
from rayalign.engines.policy import PolicyEngine
from rayalign.engines.reward import RewardEngine
from rayalign.errors import DataError
from rayalign.ports import PolicySetup, RewardSetup
from rayalign.stages.context import RunContext, written_aside
from rayalign.stages.groups import PolicyGroup, RewardGroup, RolloutGroup, StoredRollouts
from rayalign.stages.inputs import (
    DemonstrationSplit,
    load_demonstrations,
    load_prompts,
    load_samples,
    locate_model,
    matched_to,
)
from rayalign.types import Sequences, TokenizedPrompts


@dataclass
class IrlGroups:
    """The three groups of one `irl` stage, with the data they work on."""

    context: RunContext
    stage: IrlStage
    rollout: RolloutGroup
    reward: RewardGroup
    policy: PolicyGroup
    demonstrations: DemonstrationSplit
    prompts: TokenizedPrompts  # that the policy is improved on
    _rounds_sampled: int = 0

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.context.config.seed

    def seed_of(self, purpose: str, number: int) -> int:
        """A seed of its own for each time samples are drawn."""
        entropy = [self.seed, zlib.crc32(f"{self.stage.name}/{purpose}".encode()), number]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def sample_against_demonstrations(self) -> StoredRollouts:
        """The policy's own answers to the prompts of demonstrations: the negatives of this round."""
        prompts = prompts_of(self.demonstrations.train)
        number, config = self._rounds_sampled, self.stage.reward
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
            for group, path in ((self.policy, folder / "policy"), (self.reward, folder / "reward")):
                group.save(str(path))
                self.context.template().save_tokenizer(path)


@contextlib.contextmanager
def start_groups(context: RunContext, stage: IrlStage) -> Iterator[IrlGroups]:
    """Loads the data, starts the groups, connects policy and samplers; ends reward and policy at the end."""
    policy_path = locate_model(context, stage.policy)
    if context.components.reward is RewardEngine:  # one of the user's own need not read the model
        locate_model(context, stage.reward.init)
    demonstrations = load_demonstrations(context, stage.name)
    prompts = _improvement_prompts(context, stage, demonstrations)
    negatives = [_negatives(context, location, demonstrations.train) for location in stage.reward.negatives]
    rollout = context.rollout_group(policy_path)
    rollout.sleep()  # where it shares GPUs, the trainers load next
    with contextlib.ExitStack() as stack:
        with context.progress.stage("starting the reward group"):
            setup = _reward_setup(context, stage, demonstrations.train, negatives)
            reward = context.fleet.start(
                "reward", context.components.reward, [setup] * context.fleet.num_workers("reward")
            )
            stack.callback(reward.close)
        with context.progress.stage("starting the policy group"):
            policy = context.fleet.start(
                "policy", PolicyEngine, [_policy_setup(context, stage)] * context.fleet.num_workers("policy")
            )
            stack.callback(policy.close)
            context.fleet.connect(policy, rollout.workers)
        yield IrlGroups(
            context, stage, rollout, RewardGroup(reward), PolicyGroup(policy, rollout), demonstrations, prompts
        )


def _improvement_prompts(context: RunContext, stage: IrlStage, split: DemonstrationSplit) -> TokenizedPrompts:
    if context.config.data.prompts is None:
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


def _negatives(context: RunContext, location: str, demonstrations: Sequences) -> Sequences:
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


def _reward_setup(
    context: RunContext, stage: IrlStage, demonstrations: Sequences, negatives: list[Sequences]
) -> RewardSetup:
    return RewardSetup(
        path=context.locate(stage.reward.init),
        tokenizer=context.tokenizer_path,
        chat_template=context.config.data.chat_template,
        model=context.config.model.model_copy(update={"lora": None}),
        learner=context.config.learner,
        config=stage.reward,
        rounds=stage.rounds,
        seed=context.config.seed,
        demonstrations=demonstrations,
        negatives=negatives,
    )


def _policy_setup(context: RunContext, stage: IrlStage) -> PolicySetup:
    steps = stage.rounds * stage.improve.steps * stage.improve.epochs * stage.improve.minibatches
    return PolicySetup(
        path=context.locate(stage.policy),
        model=context.config.model,
        learner=context.config.learner,
        config=stage.improve,
        temperature=stage.sampling.temperature,
        total_steps=steps,
        max_staleness=stage.max_staleness,
        seed=context.config.seed,
    )



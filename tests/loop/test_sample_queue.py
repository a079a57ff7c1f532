"""Which prompts a batch has, and how old its samples may be: the controller's queue over a rollout worker that echoes."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rayalign.actors.local_workers import LocalWorkers
from rayalign.config.loops import IrlStage
from rayalign.config.stage_base import SamplingConfig
from rayalign.errors import StaleSamples
from rayalign.stages.groups import RolloutGroup
from rayalign.stages.irl import _SampleQueue
from rayalign.telemetry.clock import Clock
from rayalign.types import Ragged, Rollout, Sequences, TokenizedPrompts


class Echo:
    """Answers each prompt with its first token, as whatever version it holds."""

    version = 0

    def generate(
        self, prompts: TokenizedPrompts, sampling: SamplingConfig, *, num_per_prompt: int, seed: int
    ) -> Rollout:
        """Rows in the order of the prompts."""
        ids = np.repeat(prompts.prompt_ids, num_per_prompt)
        tokens = Ragged.from_list([[int(t[0])] * 2 for t in prompts.tokens for _ in range(num_per_prompt)])
        sequences = Sequences(tokens, np.ones(len(ids), dtype=np.int64), ids, np.ones(len(ids), dtype=bool))
        return Rollout(sequences, Ragged.from_list([[0.0]] * len(ids), np.float32), self.version)


class World:
    """A queue over `num_prompts` prompts, and the versions that sampler and policy hold."""

    def __init__(self, num_prompts: int, per_step: int, *, steps: int, seed: int = 0, max_staleness: int = 0) -> None:
        values = {
            "policy": "p", "reward": {"init": "p"}, "max_staleness": max_staleness,
            "improve": {"steps": steps, "prompts_per_step": per_step, "samples_per_prompt": 2},
        }  # fmt: skip
        workers = LocalWorkers("rollout")
        workers.build(Echo, [()])
        self.sampler, self.policy = workers.engine, SimpleNamespace(version=0)
        groups: Any = SimpleNamespace(
            prompts=TokenizedPrompts(Ragged.from_list([[i] for i in range(num_prompts)]), np.arange(num_prompts)),
            rollout=RolloutGroup(workers),
            policy=self.policy,
            seed=seed,
            seed_of=lambda purpose, number: number,
        )
        never = SimpleNamespace(should_stop=lambda: False)
        self.watch: Any = SimpleNamespace(clock=Clock(), hacking=never)
        self.queue = _SampleQueue(IrlStage.model_validate(values), groups)

    def rounds(self, num: int) -> list[list[int]]:
        """The prompts of each batch, over `num` rounds."""
        return [
            stored.ref.sequences.prompt_ids[::2].tolist()
            for _ in range(num)
            for (stored,) in self.queue.batches(self.watch)
        ]


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_whole_epochs_use_every_prompt_once(max_staleness: int) -> None:
    """Six prompts, three a step: each pair of steps is all six, in another order each time, also over rounds."""
    batches = World(6, 3, steps=5, max_staleness=max_staleness).rounds(4)
    epochs = [first + second for first, second in zip(batches[::2], batches[1::2], strict=True)]
    assert len(epochs) == 10
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5


@pytest.mark.parametrize(("num_prompts", "per_step"), [(5, 3), (5, 4), (7, 3), (4, 4)])
def test_a_batch_over_the_end_of_an_epoch_has_no_prompt_twice(num_prompts: int, per_step: int) -> None:
    """Whatever divides: different prompts in each batch, and never is one used more than two times ahead of another."""
    batches = World(num_prompts, per_step, steps=100).rounds(5)
    assert all(len(set(batch)) == len(batch) == per_step for batch in batches)
    counts = np.bincount(np.concatenate(batches), minlength=num_prompts)
    assert counts.sum() == 500 * per_step
    running = np.cumsum([np.bincount(batch, minlength=num_prompts) for batch in batches], axis=0)
    assert np.ptp(running, axis=1).max() <= 2  # an epoch's last ones, while the next has begun
    for prompt in range(num_prompts):
        used = [-1, *[step for step, batch in enumerate(batches) if prompt in batch], len(batches)]
        assert max(np.diff(used)) <= 2 * num_prompts // per_step + 1  # two epochs, and the step they begin in


def test_prompts_follow_from_the_seed() -> None:
    """The same in another run and whether or not batches are asked for ahead; another seed gives another order."""
    batches = World(5, 3, steps=8, seed=3).rounds(2)
    assert World(5, 3, steps=8, seed=3).rounds(2) == batches
    assert World(5, 3, steps=8, seed=3, max_staleness=1).rounds(2) == batches
    assert World(5, 3, steps=8, seed=4).rounds(2) != batches


def test_batches_are_asked_for_as_late_as_they_may_be() -> None:
    """One ahead at most, none over the end of a round; a batch that is older than it may be stops the run."""
    for max_staleness, drawn_with in ((0, [0, 1, 2, 3, 4, 5]), (1, [0, 0, 1, 3, 3, 4])):
        world = World(5, 3, steps=3, max_staleness=max_staleness)
        versions = []
        for _ in range(2):
            for (stored,) in world.queue.batches(world.watch):
                versions.append(stored.summary.policy_version)
                world.policy.version += 1
                world.sampler.version += 1
        assert versions == drawn_with

    world = World(5, 3, steps=3, max_staleness=1)
    batches = world.queue.batches(world.watch)
    next(batches)
    world.policy.version += 2  # twice updated, and never synced
    with pytest.raises(StaleSamples, match="a batch of policy v0 came for the update of v2"):
        next(batches)


@pytest.mark.parametrize("max_staleness", [0, 1])
@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_queue_that_is_taken_up_goes_on_with_the_next_batch(max_staleness: int, step: int) -> None:
    """After any step, also with a batch on its way: it is asked for again, and none is skipped or used twice."""
    whole = World(5, 3, steps=8, max_staleness=max_staleness).rounds(1)
    stopped = World(5, 3, steps=8, max_staleness=max_staleness)
    batches = stopped.queue.batches(stopped.watch)
    before = [next(batches)[0].ref.sequences.prompt_ids[::2].tolist() for _ in range(step)]
    taken_up = World(5, 3, steps=8, max_staleness=max_staleness)
    taken_up.queue.restore(json.loads(json.dumps(stopped.queue.state())))
    after = taken_up.queue.batches(taken_up.watch, done=step)
    assert before + [stored.ref.sequences.prompt_ids[::2].tolist() for (stored,) in after] == whole

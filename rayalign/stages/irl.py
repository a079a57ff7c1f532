"""The alternation: the reward learns to tell demonstrations from the policy's samples, the policy follows the reward.

This file is the algorithm (RFT, Algorithm 1; From Demonstrations to Rewards, section 4); what a phase does on the
workers is in `engines/`, how it reaches them in `stages/groups.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from rayalign.config.loops import LoopStage
from rayalign.data.cursor import Cursor
from rayalign.data.fingerprint import fingerprint
from rayalign.errors import StaleSamples
from rayalign.stages.context import RunContext, last_good_kept
from rayalign.stages.groups import PendingRollouts, StoredRollouts
from rayalign.stages.loop_setup import LoopGroups, start_groups
from rayalign.stages.watch import LoopWatch
from rayalign.telemetry.metrics import prefixed


def run_loop(context: RunContext, stage: LoopStage) -> None:
    """Artifacts: `policy`, and of `irl` also `reward`: Hugging Face folders of one round, the last that was saved."""
    with start_groups(context, stage) as groups:
        with last_good_kept(groups.save):
            alternate(context, stage, groups)


def alternate(context: RunContext, stage: LoopStage, groups: LoopGroups) -> None:
    """Rounds of reward learning (`irl`; a fixed reward, `rl`, has none) and policy improvement."""
    watch = LoopWatch(context, stage, groups)
    samples = _SampleQueue(stage, groups)
    groups.policy.sync()
    watch.check_canary()
    watch.log_start()
    with context.progress.stage(stage.name, total=stage.rounds * stage.improve.steps) as bar:
        for round_number in range(stage.rounds):
            if stage.improve.reference == "round" and round_number > 0:
                groups.policy.move_reference()

            watch.log_round(round_number, groups.update_reward(watch.clock))
            groups.start_critic(round_number)

            for batch in samples.batches(watch):
                with watch.clock.phase("score"):
                    scores = groups.reward.score(batch)
                with watch.clock.phase("policy_update"):
                    metrics = groups.policy.improve(batch, scores)
                with watch.clock.phase("generate"):
                    samples.settle()
                with watch.clock.phase("sync"):
                    groups.policy.sync()
                note = watch.log_step(round_number, batch, prefixed(metrics, "policy"))
                bar.update(advance=1, round=(round_number + 1, stage.rounds), note=note)
                if watch.hacking.should_stop():
                    break

            watch.log_health(round_number)
            if watch.should_stop(round_number):
                if round_number < stage.save_every:  # nothing is saved yet, and the stage must leave something
                    groups.save()
                break
            if (round_number + 1) % stage.save_every == 0 or round_number + 1 == stage.rounds:
                groups.save()


class _SampleQueue:
    """Batches of samples, drawn at most `max_staleness` policy versions ahead of the update that uses them.

    With 0 a batch is asked for when the weights it needs are in place; with 1 the next batch is drawn while the
    policy learns from this one.
    """

    def __init__(self, stage: LoopStage, groups: LoopGroups) -> None:
        self._stage, self._groups = stage, groups
        self._cursor = Cursor(len(groups.prompts), seed=groups.seed, fingerprint=fingerprint(groups.prompts))
        self._again: list[int] = []  # rows that wait for the next batch
        self._asked = 0
        self._waiting: deque[PendingRollouts] = deque()

    def settle(self) -> None:
        """Waits for what is being drawn: weights never change under a generation, nor wait for one on their deadline."""
        for pending in self._waiting:
            pending.result()

    def batches(self, watch: LoopWatch) -> Iterator[StoredRollouts]:
        """One round's batches. Raises StaleSamples for one that is older than it may be."""
        for step in range(self._stage.improve.steps):
            ahead = min(self._stage.max_staleness, self._stage.improve.steps - 1 - step)
            while len(self._waiting) <= ahead:
                self._waiting.append(self._ask())
            with watch.clock.phase("generate"):
                batch = self._waiting.popleft().result()
            self._admit(batch)
            yield batch

    def _ask(self) -> PendingRollouts:
        step = self._stage.improve
        prompts = self._groups.prompts.take(self._different_prompts(step.prompts_per_step))
        self._asked += 1
        return self._groups.rollout.submit(
            prompts,
            self._stage.sampling,
            num_per_prompt=step.samples_per_prompt,
            seed=self._groups.seed_of("improve", self._asked),
        )

    def _different_prompts(self, num: int) -> np.ndarray:
        """Rows of the next prompts, none twice: a prompt's seed and its group are its own within a batch.

        A row that comes a second time, over an epoch's end, waits for the next batch: all are used equally often.
        """
        coming, self._again = self._again, []
        rows: dict[int, None] = {}
        while True:
            for row in coming:
                if row in rows:
                    self._again.append(row)
                else:
                    rows[row] = None
            if len(rows) == num:
                return np.array(list(rows))
            coming = self._cursor.take(num - len(rows)).tolist()

    def _admit(self, batch: StoredRollouts) -> None:
        oldest = min(stored.summary.policy_version for stored in batch)
        lag = self._groups.policy.version - oldest
        if lag > self._stage.max_staleness:
            raise StaleSamples(f"a batch of policy v{oldest} came for the update of v{self._groups.policy.version}")

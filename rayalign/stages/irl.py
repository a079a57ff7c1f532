"""The alternation: the reward learns to tell demonstrations from the policy's samples, the policy follows the reward.

This file is the algorithm (RFT, Algorithm 1; From Demonstrations to Rewards, section 4); what a phase does on the
workers is in `engines/`, how it reaches them in `stages/groups.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from rayalign.config.loops import LoopStage
from rayalign.data.cursor import Cursor
from rayalign.data.fingerprint import fingerprint
from rayalign.errors import StaleSamples
from rayalign.stages.checkpoints import LoopCheckpoints, Place, end_early
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
    watch, samples, at = LoopWatch(context, stage, groups), _SampleQueue(stage, groups), Place()
    checkpoints = LoopCheckpoints(context, stage.name, groups.saved(), groups.data)

    def state() -> dict[str, Any]:
        return {"at": asdict(at), "groups": groups.state(), "samples": samples.state(), "watch": watch.state()}

    saved = checkpoints.resume()
    if saved is not None:
        at = Place(**saved["at"])
        groups.restore(saved["groups"])
        if "prompts" not in checkpoints.changed:
            samples.restore(saved["samples"])
        watch.restore(saved["watch"])
    groups.policy.sync()
    watch.check_canary(log=saved is None)
    if saved is None:
        watch.log_start()
    with context.progress.stage(stage.name, total=stage.rounds * stage.improve.steps) as bar:
        bar.update(advance=watch.step)
        while at.round < stage.rounds:
            if not at.done:
                watch.begin_round(at.round)
                if stage.improve.reference == "round" and at.round > 0:
                    groups.policy.move_reference()
                watch.log_round(at.round, groups.update_reward(watch.clock))
                groups.start_critic(at.round)

            for batch in samples.batches(watch, done=at.done):
                with watch.clock.phase("score"):
                    scores = groups.reward.score(batch)
                with watch.clock.phase("policy_update"):
                    metrics = groups.policy.improve(batch, scores)
                with watch.clock.phase("generate"):
                    samples.settle()
                with watch.clock.phase("sync"):
                    groups.policy.sync()
                note = watch.log_step(at.round, batch, prefixed(metrics, "policy"))
                bar.update(advance=1, round=(at.round + 1, stage.rounds), note=note)
                at.done += 1
                checkpoints.after_step(watch.step, state)

            watch.log_health(at.round)
            if watch.should_stop(at.round):
                end_early(checkpoints, groups, saved=at.round >= stage.save_every)
                return
            if (at.round + 1) % stage.save_every == 0 or at.round + 1 == stage.rounds:
                groups.save()
            at.round, at.done = at.round + 1, 0
            checkpoints.after_round(watch.step, state, watch.newest)
    checkpoints.finish()


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
        self._waiting: deque[tuple[PendingRollouts, dict[str, Any]]] = deque()  # with the state before each was asked for

    def state(self) -> dict[str, Any]:
        """Plain values; what is being drawn is asked for again, with the weights of then."""
        return self._waiting[0][1] if self._waiting else self._place()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken. Raises DataError over other prompts."""
        self._cursor = Cursor.restore(state["cursor"], fingerprint=fingerprint(self._groups.prompts))
        self._again, self._asked = list(state["again"]), state["asked"]

    def _place(self) -> dict[str, Any]:
        return {"cursor": self._cursor.state(), "again": list(self._again), "asked": self._asked}

    def settle(self) -> None:
        """Waits for what is being drawn: weights never change under a generation, nor wait for one on their deadline."""
        for pending, _ in self._waiting:
            pending.result()

    def batches(self, watch: LoopWatch, *, done: int = 0) -> Iterator[StoredRollouts]:
        """A round's batches after its first `done`. Raises StaleSamples for one that is older than it may be."""
        for step in range(done, self._stage.improve.steps):
            if watch.hacking.should_stop():
                return
            ahead = min(self._stage.max_staleness, self._stage.improve.steps - 1 - step)
            while len(self._waiting) <= ahead:
                before = self._place()
                self._waiting.append((self._ask(), before))
            with watch.clock.phase("generate"):
                batch = self._waiting.popleft()[0].result()
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

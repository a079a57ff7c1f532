"""The reward folded into the policy: rounds of sampling, and steps on what demonstrations and samples, or pairs, say.

This file is the algorithm (IRFT, Algorithm 2 of paper 3; SPIN; DPO has one round and no samples); the terms are in
`engines/implicit_terms.py`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rayalign.config.loops import ImplicitStage
from rayalign.data.cursor import Cursor
from rayalign.data.fingerprint import fingerprint
from rayalign.data.tokenize import prompts_of
from rayalign.engines.implicit import ImplicitEngine
from rayalign.errors import DataError, UserError
from rayalign.models.rewards import write_log_ratio
from rayalign.ports import ImplicitSetup
from rayalign.stages.checkpoints import LoopCheckpoints, Place, end_early
from rayalign.stages.context import RunContext, last_good_kept
from rayalign.stages.groups import ImplicitGroup, RolloutGroup, StoredRollouts
from rayalign.stages.inputs import DemonstrationSplit, load_demonstrations, locate_model
from rayalign.stages.loop_setup import HELD_OUT, fingerprints, load_negatives
from rayalign.stages.pairs import load_pairs, tell_balance
from rayalign.stages.watch import Watch
from rayalign.storage.aside import written_aside
from rayalign.telemetry.metrics import prefixed
from rayalign.telemetry.shown import key_numbers
from rayalign.types import TokenizedPrompts


@dataclass
class ImplicitGroups:
    """The groups of one `implicit` stage; without samples of the policy there is no rollout group."""

    context: RunContext
    stage: ImplicitStage
    rollout: RolloutGroup | None
    policy: ImplicitGroup
    demonstrations: DemonstrationSplit | None
    start: str  # the stage's first model
    data: dict[str, str]  # fingerprints of what is learned from, by name

    @property
    def prompts(self) -> TokenizedPrompts:
        """Of the demonstrations, for the canary."""
        assert self.demonstrations is not None
        return prompts_of(self.demonstrations.train)

    def seed_of(self, purpose: str, number: int) -> int:
        """A seed of its own for each time samples are drawn."""
        return self.context.seed_of(self.stage.name, purpose, number)

    def slice_of(self, round_number: int) -> np.ndarray:
        """The rows of the demonstrations that a round trains on: all, or its own share of them (T15)."""
        if self.stage.demonstrations is None or self.demonstrations is None:
            return np.empty(0, dtype=np.int64)
        num = len(self.demonstrations.train)
        if not self.stage.slices:
            return np.arange(num)
        order = np.random.default_rng(self.seed_of("slices", 0)).permutation(num)
        return np.sort(np.array_split(order, self.stage.rounds)[round_number])

    def sample(self, rows: np.ndarray, number: int) -> StoredRollouts:
        """The policy's own answers to the prompts of demonstrations."""
        assert self.rollout is not None and self.demonstrations is not None and self.stage.demonstrations is not None
        return self.rollout.generate(
            prompts_of(self.demonstrations.train.take(rows)),
            self.stage.sampling,
            num_per_prompt=self.stage.demonstrations.num_per_prompt,
            seed=self.seed_of("agent", number),
        )

    def save(self) -> None:
        """Writes the policy, and the reward whose Gibbs policy over the FIRST model it is, at the last round's beta.

        Rounds telescope (T16): with one beta this is the sum of the rounds' rewards; with one for each it is not.
        """
        with written_aside(self.context.stage_folder(self.stage.name)) as folder:
            folder.mkdir()
            self.policy.save(str(folder / "policy"))
            self.context.template().save_tokenizer(folder / "policy")
            self._write_reward(folder)

    def save_from(self, checkpoint: Path) -> None:
        """As `save`, with the policy of a checkpoint."""
        with written_aside(self.context.stage_folder(self.stage.name)) as folder:
            shutil.copytree(checkpoint / "policy", folder / "policy")
            self._write_reward(folder)

    def _write_reward(self, folder: Path) -> None:
        scale = self.stage.beta_of(self.stage.rounds - 1)
        write_log_ratio(folder / "reward", str(folder / "policy"), self.start, scale=scale)
        self.context.template().save_tokenizer(folder / "reward")


def run_implicit(context: RunContext, stage: ImplicitStage) -> None:
    """Artifacts: `policy`, a Hugging Face folder, and `reward`, which names it and the stage's first model."""
    with _start_groups(context, stage) as groups, last_good_kept(groups.save):
        learn(context, stage, groups)


def learn(context: RunContext, stage: ImplicitStage, groups: ImplicitGroups) -> None:
    """Rounds: sample the policy as it is, make it the reference, take steps."""
    watch, at = Watch(context, stage, groups), Place()
    checkpoints = LoopCheckpoints(context, stage.name, {"policy": groups.policy.workers}, groups.data)

    def state() -> dict[str, Any]:
        return {"at": asdict(at), "watch": watch.state()}

    saved = checkpoints.resume()
    if others := [name for name in checkpoints.changed if name != HELD_OUT]:
        raise UserError(
            f"stage {stage.name}: a round keeps its rows with their log-probs, so it cannot go on with other "
            f"{' and '.join(others)}; set resume=anew to begin the stage again, or name= for a new run"
        )
    if saved is not None:
        at = Place(**saved["at"])
        watch.restore(saved["watch"])
        groups.policy.version = watch.step
    if groups.rollout is not None:
        groups.policy.sync()
        watch.check_canary(log=saved is None)
    if saved is None:
        watch.log_start()
    with context.progress.stage(stage.name) as bar:
        bar.update(advance=watch.step)
        while at.round < stage.rounds:
            rows = groups.slice_of(at.round)
            if not at.done:
                watch.begin_round(at.round)
                drawn = groups.sample(rows, at.round) if stage.draws and not stage.on_policy else []
                at.num_steps = groups.policy.begin_round(at.round, rows, drawn)
            batches = islice(_batches(groups, rows, at.round), at.done, None)
            while at.done < at.num_steps and not watch.hacking.should_stop():
                fresh: StoredRollouts = []
                if stage.on_policy:
                    groups.policy.sync()
                    fresh = groups.sample(next(batches), stage.rounds + watch.step)
                metrics = groups.policy.fit_step(fresh)
                watch.log(at.round, prefixed(metrics, "policy"))
                bar.update(advance=1, round=(at.round + 1, stage.rounds), note=key_numbers(watch.newest))
                at.done += 1
                checkpoints.after_step(watch.step, state)
            if groups.rollout is not None:
                groups.policy.sync()
                watch.check_canary()
            watch.log_health(at.round)
            if watch.should_stop(at.round):
                end_early(checkpoints, groups, saved=at.round > 0)
                return
            groups.save()
            at.round, at.done = at.round + 1, 0
            checkpoints.after_round(watch.step, state, watch.newest)
    checkpoints.finish()


@contextlib.contextmanager
def _start_groups(context: RunContext, stage: ImplicitStage) -> Iterator[ImplicitGroups]:
    path = locate_model(context, stage.policy)
    needed = stage.demonstrations is not None or context.config.data.demonstrations is not None
    split = load_demonstrations(context, stage.name) if needed else None
    if split and stage.slices and len(split.train) < stage.rounds:
        raise DataError(
            f"stages.{stage.name}.slices: {len(split.train)} demonstrations are fewer than {stage.rounds} rounds; lower "
            "rounds, or set slices to false"
        )
    pairs = load_pairs(context, stage.name, stage.preferences.pairs) if stage.preferences else None
    if split and pairs and stage.demonstrations and stage.preferences and stage.weighting == "counts":
        weights = stage.demonstrations.weight, stage.preferences.weight
        tell_balance(context, stage.name, (len(split.train), len(pairs[0])), weights)
    stored = stage.demonstrations.negatives if stage.demonstrations else []
    setup = ImplicitSetup(
        path=path,
        model=context.config.model,
        learner=context.config.learner,
        config=stage,
        seed=context.config.seed,
        demonstrations=split.train if split and stage.demonstrations else None,
        negatives=[load_negatives(context, location, split.train) for location in stored] if split else [],
        preferences=pairs,
        loss=context.components.implicit_loss,
    )
    rollout = context.rollout_group(path) if stage.draws else None
    if rollout is not None:
        rollout.sleep()  # where it shares GPUs, the trainer loads next
    with context.progress.stage("starting the policy group"):
        workers = context.fleet.start("policy", ImplicitEngine, [setup] * context.fleet.num_workers("policy"))
    try:
        group = ImplicitGroup(workers, rollout)
        if rollout is not None:
            replicas = rollout.workers
            group = ImplicitGroup(workers, rollout, lambda: context.fleet.connect(workers, replicas))
        yield ImplicitGroups(context, stage, rollout, group, split, path, fingerprints(split, setup.negatives, pairs))
    finally:
        workers.close()


def _batches(groups: ImplicitGroups, rows: np.ndarray, round_number: int) -> Iterator[np.ndarray]:
    """The demonstrations of each on-policy step, in shuffled epochs; over an epoch's end none comes twice in a step."""
    order = Cursor(len(rows), seed=groups.seed_of("order", round_number), fingerprint=fingerprint(rows))
    while True:
        yield rows[np.unique(order.take(min(groups.stage.batch_size, len(rows))))]

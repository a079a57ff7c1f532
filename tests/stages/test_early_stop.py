"""A loop that ends at an alarm: it is told, what was saved last stays, and a stage that saved nothing leaves what it has."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rayalign.actors.local_workers import LocalWorkers
from rayalign.config.checkpoints import CheckpointConfig
from rayalign.config.loops import RlStage
from rayalign.stages.groups import RolloutGroup
from rayalign.stages.irl import alternate
from rayalign.telemetry.metrics import Last, Mean, Metrics
from rayalign.telemetry.progress import Progress
from rayalign.types import Ragged, TokenizedPrompts
from tests.loop.test_sample_queue import Echo

STEPS = 8


class Policy:
    """A policy group whose updates find what a script says."""

    def __init__(self, entropies: list[float], sampler: Echo) -> None:
        self.workers, self.version = SimpleNamespace(role="policy", busy_s=0.0), 0
        self._entropies, self._sampler = entropies, sampler

    def sync(self) -> None:
        """The sampler has the newest version."""
        self._sampler.version = self.version

    def mismatch(self, rollouts: Any) -> Metrics:
        """None."""
        return {"mismatch_mean": Mean(0.0), "mismatch_max": Last(0.0)}

    def improve(self, rollouts: Any, scores: Any) -> Metrics:
        """One update."""
        self.version += 1
        return {"entropy": Mean(self._entropies[self.version - 1]), "reward_mean": Mean(float(self.version))}


class Alternation:
    """The controller's loop of three rounds on stand-ins; `saved` are the versions that were saved."""

    def __init__(
        self,
        folder: Path,
        entropies: list[float],
        *,
        early_stop: bool = True,
        save_every: int = 1,
        on_disk: bool = True,
    ) -> None:
        self.records: list[dict[str, Any]] = []
        self.said = io.StringIO()
        self.saved: list[int] = []
        workers = LocalWorkers("rollout")
        workers.build(Echo, [()])
        self.policy = Policy(entropies, workers.engine)

        def save() -> None:
            self.saved.append(self.policy.version)
            if on_disk:
                (folder / "rl" / "policy").mkdir(parents=True, exist_ok=True)

        groups: Any = SimpleNamespace(
            policy=self.policy,
            rollout=RolloutGroup(workers),
            reward=SimpleNamespace(workers=SimpleNamespace(role="reward", busy_s=0.0), score=lambda batch: []),
            prompts=TokenizedPrompts(Ragged.from_list([[i] for i in range(4)]), np.arange(4)),
            demonstrations=None,
            seed=0,
            seed_of=lambda purpose, number: number,
            update_reward=lambda clock: {},
            start_critic=lambda number: None,
            save=save,
            saved=lambda: {},
            data={},
        )
        context: Any = SimpleNamespace(
            config=SimpleNamespace(
                model=SimpleNamespace(dtype="float32"), resume="auto", checkpoints=CheckpointConfig(every_s=None)
            ),
            folder=folder,
            stage_folder=lambda name: folder / name,
            settings={},
            restarted=False,
            stopping=False,
            tracker=SimpleNamespace(
                log=lambda stage, round, step, metrics: self.records.append(dict(metrics)),
                keep=lambda stage, num: None,
                count=lambda stage: 0,
            ),
            progress=Progress(False, self.said),
        )
        improve = {"steps": STEPS, "prompts_per_step": 2, "samples_per_prompt": 2}
        watch = {"early_stop": early_stop}
        values = {"policy": "p", "rounds": 3, "save_every": save_every, "improve": improve, "watch": watch}
        alternate(context, RlStage.model_validate(values), groups)


def collapsing_at(step: int) -> list[float]:
    """Entropies of three rounds."""
    return [1.0 if place < step else 0.01 for place in range(3 * STEPS)]


@pytest.mark.parametrize(
    ("step", "save_every", "versions", "saved"),
    [
        (3, 1, 6, [6]),  # in the first round: a stage leaves something
        (10, 1, 12, [STEPS]),  # in the second: that of the first stays
        (10, 2, 12, [12]),
        (18, 2, 20, [2 * STEPS]),
        (99, 1, 3 * STEPS, [STEPS, 2 * STEPS, 3 * STEPS]),
    ],
)
def test_a_loop_ends_at_a_collapse(step, save_every, versions, saved, tmp_path):
    """As soon as two of the last three entropies are low, and the first three are behind them."""
    loop = Alternation(tmp_path, collapsing_at(step), save_every=save_every)
    assert loop.policy.version == versions
    assert loop.saved == saved
    assert ("stops early" in loop.said.getvalue()) == (step < 99)


def test_a_stage_whose_earlier_models_are_gone_leaves_what_it_has(tmp_path):
    """It goes on from a checkpoint on another machine, and the models of its rounds did not come with it."""
    assert Alternation(tmp_path, collapsing_at(10), on_disk=False).saved == [STEPS, 12]


def test_a_warning_stands_once_whatever_follows_and_its_measure_in_every_record(tmp_path):
    loop = Alternation(tmp_path, collapsing_at(3), early_stop=False)
    assert loop.policy.version == 3 * STEPS and loop.saved == [8, 16, 24]
    warnings = [line for line in loop.said.getvalue().splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: stage rl, round 1: the policy's entropy went from 1 to 0.01 nats a token: it says ever the same, and "
        "learns nothing from what it no longer says; lower improve.optimizer.learning_rate, take fewer steps or raise "
        "improve.kl_coef"
    ]
    measures = [record["watch/entropy_ratio"] for record in loop.records if "watch/entropy_ratio" in record]
    assert measures == pytest.approx([0.01] * (3 * STEPS - 5))

"""When a loop is saved, what is kept besides, and what happens with a worker that cannot be saved."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayalign.actors.local_workers import LocalWorkers
from rayalign.config.checkpoints import CheckpointConfig
from rayalign.engines.checkpointed import Checkpointed
from rayalign.errors import Stopped, UserError
from rayalign.stages.checkpoints import LoopCheckpoints, end_early
from rayalign.storage.checkpoints import STATE
from rayalign.storage.differences import differences
from rayalign.storage.snapshot import Snapshot, read_values
from rayalign.telemetry.progress import Progress


class Counter(Checkpointed):
    """An engine whose state is a number."""

    def __init__(self) -> None:
        self.number = 0

    def load_state(self, folder: str) -> None:
        """Takes the number back."""
        self.number = read_values(Path(folder) / STATE / "counter.json")

    def _snapshot(self) -> Snapshot:
        def save(folder: Path) -> None:
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text("{}")

        return Snapshot(values={f"{STATE}/counter": self.number}, models={"policy": save})


class World:
    """The checkpoints of a loop whose one worker is an `engine`."""

    def __init__(self, folder: Path, engine: Any = Counter, **config: Any) -> None:
        self.said, self.saved = io.StringIO(), []
        self.workers = LocalWorkers("policy")
        self.workers.build(engine, [()])
        self.context: Any = SimpleNamespace(
            config=SimpleNamespace(resume="auto", checkpoints=CheckpointConfig(every_s=None, **config)),
            folder=folder,
            settings={"lr": 1},
            restarted=False,
            stopping=False,
            tracker=SimpleNamespace(keep=lambda stage, num: None, count=lambda stage: 0),
            progress=Progress(False, self.said),
            template=lambda: SimpleNamespace(save_tokenizer=lambda folder: folder.mkdir(parents=True)),
        )
        self.checkpoints = LoopCheckpoints(self.context, "rft", {"policy": self.workers}, {})

    def steps(self) -> list[int]:
        """Of the checkpoints that are there."""
        folder = self.context.folder / "checkpoints" / "rft"
        return sorted(int(path.name) for path in folder.glob("0*")) if folder.exists() else []

    def run(self, num: int, scores: dict[int, float] | None = None) -> None:
        """Steps, each a round where it has a score."""
        for step in range(1, num + 1):
            self.workers.engine.number = step
            self.checkpoints.after_step(step, lambda step=step: {"at": step})
            if scores and step in scores:
                self.checkpoints.after_round(step, lambda step=step: {"at": step}, {"health/x": scores[step]})
        self.checkpoints.finish()


def test_it_is_saved_every_so_many_steps_and_goes_on_from_the_newest(tmp_path):
    World(tmp_path, every_steps=3).run(8)
    again = World(tmp_path, every_steps=3)
    assert again.steps() == [3, 6]
    assert again.checkpoints.resume() == {"at": 6}
    assert again.workers.engine.number == 6
    assert "rft: goes on after step 6" in again.said.getvalue()


def test_the_best_round_stays_and_is_what_an_early_end_leaves(tmp_path):
    world = World(tmp_path, keep=1, best="health/x")
    world.run(8, {2: 0.3, 4: 0.7, 6: 0.5, 8: float("nan")})
    assert world.steps() == [4, 6]
    groups = SimpleNamespace(save=lambda: pytest.fail("the present models are not the best"), save_from=world.saved.append)
    end_early(world.checkpoints, groups, saved=False)
    assert world.saved == [tmp_path / "checkpoints" / "rft" / "00000004"]
    assert "step 4, where health/x was 0.7" in world.said.getvalue()


def test_a_worker_that_cannot_be_saved_is_told_and_the_loop_runs(tmp_path):
    world = World(tmp_path, engine=lambda: SimpleNamespace(), every_steps=1, best="health/x")
    world.run(3, {2: 1.0})
    assert world.steps() == []
    assert "your policy actor has no save_state" in world.said.getvalue()
    world.context.stopping = True
    with pytest.raises(Stopped, match="begins again at the next start"):
        world.run(1)


def test_a_loop_that_is_asked_to_stop_is_saved_first(tmp_path):
    world = World(tmp_path)
    world.run(4)
    assert world.steps() == []
    world.context.stopping = True
    with pytest.raises(Stopped, match="is saved after step 1"):
        world.run(1)
    assert world.steps() == [1]


def test_a_metric_that_the_round_did_not_measure_is_told_once(tmp_path):
    world = World(tmp_path, best="health/y")
    world.run(4, {2: 0.3, 4: 0.7})
    assert world.steps() == []
    assert world.said.getvalue().count("has measured no health/y in this round") == 1
    assert "there are health/x" in world.said.getvalue()


def test_other_data_is_refused_and_where_it_may_be_told(tmp_path):
    World(tmp_path, every_steps=2).run(2)
    other = World(tmp_path)
    other.checkpoints._data = {"preferences": "1f"}
    with pytest.raises(UserError, match="interrupted with another content of preferences. Set resume=changed"):
        other.checkpoints.resume()
    other.context.config.resume = "changed"
    assert other.checkpoints.resume() == {"at": 2} and other.checkpoints.changed == ["preferences"]


def test_differences_name_what_changed():
    before = {"optimizer": {"learning_rate": 0.1, "eps": 1}, "run.seed": 0, "input stage:a": "x", "gone": "y" * 60}
    now = {"optimizer": {"learning_rate": 0.2, "eps": 1}, "run.seed": 1, "input stage:a": "z"}
    assert differences(before, now) == [
        f"gone ({'y' * 37}..., now unset)",
        "input stage:a",
        "optimizer.learning_rate (0.1, now 0.2)",
        "seed (0, now 1)",
    ]

"""What a run takes from its mirror: what is further than the run folder, whole, and of the same run."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rayalign.config.load import parse_config
from rayalign.config.run import RunConfig
from rayalign.errors import UserError
from rayalign.stages.mirrored import MirroredRun, opened_mirror
from rayalign.storage.aside import write_json
from rayalign.storage.checkpoints import MANIFEST, CheckpointStore
from rayalign.telemetry.progress import Progress
from tests.storage.test_checkpoints import save

SETTINGS = {"sft": {"epochs": 1}, "rft": {"rounds": 2}}


class Node:
    """A machine with a disk of its own; all share a mirror."""

    def __init__(self, root: Path, name: str) -> None:
        self.folder, self._root, self._said = root / name / "x", root, io.StringIO()
        self._open = contextlib.ExitStack()
        self.folder.mkdir(parents=True)

    def config(self, **keys: Any) -> RunConfig:
        values = {"name": "x", "model": {"path": "m"}, "data": {"demonstrations": {"path": "d.jsonl"}}}
        stages = [{"kind": "sft", "name": "sft"}, {"kind": "sft", "name": "rft"}]
        mirror = {"mirror": f"file://{self._root}/mirror"}
        return parse_config({**values, "run_dir": str(self.folder.parent), "stages": stages, "checkpoints": mirror, **keys})

    def mirrored(self, settings: dict[str, Any] = SETTINGS, **keys: Any) -> MirroredRun:
        opened = opened_mirror(self.config(**keys), self.folder, settings, self.progress)
        mirrored = self._open.enter_context(opened)
        assert mirrored is not None
        return mirrored

    @property
    def progress(self) -> Progress:
        return Progress(True, self._said)

    @property
    def said(self) -> str:
        return self._said.getvalue()

    @property
    def checkpoints(self) -> CheckpointStore:
        return CheckpointStore(self.folder / "checkpoints" / "rft", keep=2)

    def steps(self) -> list[int]:
        return [checkpoint.step for checkpoint in self.checkpoints.known()]

    def save(self, *steps: int, best: int | None = None, settings: Any = SETTINGS["rft"]) -> None:
        """Checkpoints of stage rft, with metrics that go as far; each is copied."""
        mirrored = self.mirrored(resume="changed")
        for step in steps:
            saved = save(self.checkpoints, step, 1.0 if step == best else 0.0)
            manifest = json.loads((saved.folder / MANIFEST).read_text()) | {"settings": settings}
            (saved.folder / MANIFEST).write_text(json.dumps(manifest))
            (self.folder / "metrics.jsonl").write_text("".join(f'{{"step": {i}}}\n' for i in range(step)))
            with mirrored.followed(self.progress):
                pass

    def finish(self, stage: str, content: str) -> None:
        (self.folder / stage / "policy").mkdir(parents=True)
        (self.folder / stage / "policy" / "config.json").write_text(content)
        write_json(self.folder / stage / "done.json", SETTINGS[stage])


@pytest.fixture
def nodes(tmp_path: Path) -> tuple[Node, Node]:
    """The first has finished sft, and is in the second round of rft at step 4, the best being step 1."""
    first, second = Node(tmp_path, "first"), Node(tmp_path, "second")
    first.finish("sft", "of sft")
    (first.folder / "rft" / "policy").mkdir(parents=True)
    (first.folder / "rft" / "policy" / "config.json").write_text("of round 1")
    (first.folder / "rft" / ".critic").write_text("nobody's")
    first.save(1, 2, 3, 4, best=1)
    return first, second


def test_a_fresh_node_gets_all_that_the_lost_one_had(nodes):
    _, second = nodes
    mirrored = second.mirrored()
    assert mirrored.finished == {"sft"}
    mirrored.take(second.progress)
    assert (second.folder / "sft" / "policy" / "config.json").read_text() == "of sft"
    assert (second.folder / "sft" / "done.json").exists()
    assert second.steps() == [1, 3, 4] or second.steps() == [1, 4]
    best, newest = second.checkpoints.best(), second.checkpoints.newest(pytest.fail)
    assert best is not None and best.step == 1 and newest is not None and newest.step == 4
    assert (second.folder / "rft" / "policy" / "config.json").read_text() == "of round 1"  # for a stage that ends early
    assert not (second.folder / "rft" / "done.json").exists() and not (second.folder / "rft" / ".critic").exists()
    assert len((second.folder / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(nodes, tmp_path):
    _, second = nodes
    damaged = tmp_path / "mirror" / "x" / "checkpoints" / "rft" / "00000004" / "policy" / "config.json"
    damaged.write_text("[]")
    second.mirrored().take(second.progress)
    assert second.steps() == [1, 3]
    assert "checkpoints/rft/00000004 is damaged (policy/config.json does not have the content" in second.said


def test_damaged_artifacts_are_named_and_not_taken(nodes, tmp_path):
    _, second = nodes
    (tmp_path / "mirror" / "x" / "sft" / "policy" / "config.json").unlink()
    second.mirrored().take(second.progress)
    assert not (second.folder / "sft").exists()
    assert "mirror/x/sft is damaged (policy/config.json is missing), and left aside" in second.said


def test_a_node_that_was_left_behind_takes_up_what_another_has_done(nodes):
    """And one that is further keeps its own."""
    first, second = nodes
    second.mirrored().take(second.progress)
    second.save(5, 6)
    first.mirrored().take(first.progress)
    assert first.steps()[-1] == 6 and len((first.folder / "metrics.jsonl").read_text().splitlines()) == 6
    shutil.rmtree(second.folder / "checkpoints")
    save(second.checkpoints, 9)
    (second.folder / "metrics.jsonl").write_text("mine\n")
    second.mirrored().take(second.progress)
    assert second.steps() == [9] and (second.folder / "metrics.jsonl").read_text() == "mine\n"


def test_another_run_of_this_name_is_refused(nodes):
    """Whatever is in the run folder; a finished stage always, an interrupted one unless the config says how to go on."""
    _, second = nodes
    other = {**SETTINGS, "rft": {"rounds": 5}}
    save(second.checkpoints, 9)
    with pytest.raises(UserError) as refused:
        second.mirrored(other)
    assert "x/checkpoints/rft/00000004: stage rft was interrupted there with another rounds (2, now 5)" in str(refused.value)
    assert "resume=anew" in str(refused.value) and "\n" not in str(refused.value)
    assert second.mirrored(other, resume="changed").finished == {"sft"}
    finished = r"mirror/x/sft: stage sft finished there with another epochs \(1, now 3\)\. Set name="
    for resume in ("auto", "anew", "changed"):
        with pytest.raises(UserError, match=finished):
            second.mirrored({**SETTINGS, "sft": {"epochs": 3}}, resume=resume)


def test_a_stage_that_begins_anew_leaves_no_older_checkpoints_there(nodes, tmp_path):
    _, second = nodes
    second.mirrored(resume="anew").take(second.progress)
    assert second.steps() == [] and (second.folder / "sft" / "done.json").exists()
    assert not list((tmp_path / "mirror" / "x" / "checkpoints").rglob(MANIFEST))


def test_two_runs_share_a_prefix(nodes):
    _, second = nodes
    assert second.mirrored(name="y").finished == set()


def test_no_mirror_is_none(tmp_path):
    node = Node(tmp_path, "first")
    with opened_mirror(node.config(checkpoints={}), node.folder, SETTINGS, node.progress) as mirrored:
        assert mirrored is None

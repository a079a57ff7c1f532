"""A checkpoint is whole or it is none: what a crash, a bad disk or another program leaves is never loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from rayalign.errors import UserError
from rayalign.storage.checkpoints import MANIFEST, STATE, Checkpoint, CheckpointStore, Damaged, read
from rayalign.storage.snapshot import Snapshot, Writing, pack_sequences, read_tensors, read_values, unpack_sequences
from rayalign.types import Ragged, Sequences


def save(store: CheckpointStore, step: int, score: float | None = None) -> Checkpoint:
    """One with a tensor, a value and a model's folder."""
    part = store.begin(step)
    snapshot = Snapshot(
        tensors={f"{STATE}/policy-0": {"weight": torch.full((4,), float(step))}},
        values={f"{STATE}/policy": {"step": step}},
        models={"policy": _model},
    )
    return store.commit(part, {"step": step, "score": score}, snapshot.write(part))


def _model(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """An empty one that keeps two."""
    return CheckpointStore(tmp_path / "checkpoints" / "rft", keep=2)


def steps(store: CheckpointStore) -> list[int]:
    """Of the checkpoints that are there."""
    return sorted(int(path.name) for path in store.folder.iterdir() if path.name.isdigit())


def test_what_is_committed_comes_back(store):
    save(store, 3)
    found = store.newest(pytest.fail)
    assert found is not None and found.step == 3
    assert read_values(found.state / "policy.json") == {"step": 3}
    assert read_tensors(found.state / "policy-0.safetensors")["weight"].tolist() == [3.0] * 4
    assert set(found.manifest["files"]) == {"state/policy-0.safetensors", "state/policy.json", "policy/config.json"}


def test_the_newest_and_the_best_stay(store):
    for step, score in [(1, 0.2), (2, 0.9), (3, None), (4, 0.5), (5, float(0))]:
        save(store, step, score)
    assert steps(store) == [2, 4, 5]
    best = store.best()
    assert best is not None and best.step == 2


def test_what_was_never_committed_is_no_checkpoint(store):
    save(store, 1)
    part = store.begin(2)
    (part / STATE / "policy.json").write_text("{}")
    found = store.newest(pytest.fail)
    assert found is not None and found.step == 1
    save(store, 3)
    assert not list(store.folder.glob(".*"))  # and it is cleared away


DAMAGES = {
    "a changed byte": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x7f"),
    "a cut file": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a missing file": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_named_and_the_one_before_it_used(store, damage):
    save(store, 1)
    newest = save(store, 2)
    DAMAGES[damage](newest.state / "policy-0.safetensors")
    told: list[str] = []
    found = store.newest(told.append)
    assert found is not None and found.step == 1
    line, used = told
    assert str(newest.folder) in line and "policy-0.safetensors" in line
    assert used == f"warning: the one before it is used, {found.folder}"


def test_where_all_are_damaged_it_is_told_that_none_is_left(store):
    for step in (1, 2):
        DAMAGES["a cut file"](save(store, step).state / "policy-0.safetensors")
    told: list[str] = []
    assert store.newest(told.append) is None
    assert len(told) == 3 and told[-1] == "warning: no checkpoint is left that can be loaded: it begins from the start"


def test_a_manifest_that_lacks_what_is_needed_is_damage(store):
    save(store, 1)
    newest = save(store, 2)
    manifest = json.loads((newest.folder / MANIFEST).read_text())
    del manifest["score"]
    (newest.folder / MANIFEST).write_text(json.dumps(manifest))
    told: list[str] = []
    found = store.newest(told.append, needs=("step", "score"))
    assert found is not None and found.step == 1 and "manifest.json has no 'score'" in told[0]


def test_one_of_another_version_is_left_as_it_is(store):
    """It may be whole: to begin again because of it would lose a run to a downgrade."""
    save(store, 1)
    newest = save(store, 2)
    (newest.folder / MANIFEST).write_text('{"format": 99, "step": 2, "files": {}}')
    with pytest.raises(UserError, match="its format is 99, this version reads 1; go on with the version of rayalign"):
        store.newest(pytest.fail)
    assert newest.folder.is_dir()


@pytest.mark.parametrize("manifest", ["", "{", "[]", "7", '{"format": 1}', '{"format": 1, "step": 2, "files": 3}', "null"])
def test_a_manifest_that_is_none_is_damage(store, manifest):
    save(store, 1)
    newest = save(store, 2)
    (newest.folder / MANIFEST).write_text(manifest)
    with pytest.raises(Damaged):
        read(newest.folder)
    told: list[str] = []
    found = store.newest(told.append)
    assert found is not None and found.step == 1 and len(told) == 2
    save(store, 3)  # a damaged one stands in nobody's way
    assert store.best() is None


def test_the_states_go_when_the_stage_is_done(store):
    save(store, 1)
    store.drop_states()
    assert not (store.folder / "00000001" / STATE).exists()
    assert (store.folder / "00000001" / "policy" / "config.json").exists()


def test_a_stage_that_runs_again_is_not_led_astray_by_what_it_left(store):
    for step in (8, 9, 10):
        save(store, step, float(step))
    store.drop_states()
    store.drop_states()  # as at the start of a run that died in between
    again = CheckpointStore(store.folder, keep=2)
    assert again.newest(pytest.fail) is None and again.best() is None and steps(again) == []
    for step in (1, 2, 3):
        save(again, step)
        found = again.newest(pytest.fail)
        assert found is not None and found.step == step
    assert steps(again) == [2, 3]


def test_after_a_damaged_one_what_is_saved_next_stays(store):
    one = CheckpointStore(store.folder, keep=1)
    save(one, 3, 1.0)
    (save(one, 6).state / "policy.json").unlink()
    found = one.newest(lambda line: None)
    assert found is not None and found.step == 3
    save(one, 4)
    found = one.newest(pytest.fail)
    assert found is not None and found.step == 4
    assert [path.name for path in store.folder.glob("damaged-*")] == ["damaged-00000006"]


def test_one_of_the_same_step_is_replaced_without_a_moment_that_has_none(store, monkeypatch):
    save(store, 4)
    whole = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.suffix == ".part":
            raise KeyboardInterrupt
        return whole(path, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", killed)
        save(store, 4, 1.0)
    found = store.newest(pytest.fail)
    assert found is not None and found.step == 4 and found.manifest["score"] is None
    save(store, 4, 2.0)
    found = store.newest(pytest.fail)
    assert found is not None and found.manifest["score"] == 2.0
    assert not list(store.folder.glob(".*"))


def test_a_snapshot_is_written_while_its_worker_goes_on(tmp_path):
    weight = torch.zeros(1000)
    writing = Writing(Snapshot(tensors={"state/policy-0": {"weight": weight.clone()}}), tmp_path)
    weight += 1
    files = writing.files(wait=True)
    assert files is not None and list(files) == ["state/policy-0.safetensors"]
    assert not read_tensors(tmp_path / "state" / "policy-0.safetensors")["weight"].any()


def test_what_cannot_be_written_is_raised(tmp_path):
    (tmp_path / "state").write_text("a file in the folder's place")
    with pytest.raises(OSError):
        Writing(Snapshot(values={"state/policy": {}}), tmp_path).files(wait=True)


def test_sequences_come_back(tmp_path):
    sequences = Sequences(
        Ragged.from_list([[1, 2, 3], [4, 5]]), np.array([1, 1]), np.array([7, 9]), np.array([True, False])
    )
    Snapshot(tensors={"replay": pack_sequences(sequences, "0")}).write(tmp_path)
    found = unpack_sequences(read_tensors(tmp_path / "replay.safetensors"), "0")
    assert [row.tolist() for row in found.tokens] == [[1, 2, 3], [4, 5]]
    assert found.prompt_ids.tolist() == [7, 9] and found.ended.tolist() == [True, False]
    assert json.dumps(found.prompt_lengths.tolist()) == "[1, 1]"

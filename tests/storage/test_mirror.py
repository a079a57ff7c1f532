"""What a mirror holds can be trusted or is told apart: through deaths, hangs and damage of a real S3 server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rayalign.storage.aside import write_json
from rayalign.storage.checkpoints import MANIFEST, CheckpointStore, Damaged
from rayalign.storage.following import Following
from rayalign.storage.mirror import Mirror, checkpoint_bundle
from rayalign.storage.remote import Remote, Unreachable
from tests.object_store import ObjectStore, object_store
from tests.storage.test_checkpoints import save

SETTINGS = {"sft": {"epochs": 1}, "rft": {"rounds": 2}}
SOON_S = 30


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A server with an empty bucket."""
    with object_store(monkeypatch) as store:
        yield store


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run with metrics, the last of them half written."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 0}\n{"st')
    return folder


def mirror_at(uri: str, timeout_s: float = 10) -> Mirror:
    """What a run opens."""
    mirror = Mirror(Remote(uri, timeout_s=timeout_s))
    mirror.look(pytest.fail)
    return mirror


def local(run: Path, keep: int = 2) -> CheckpointStore:
    """The checkpoints of stage `rft`."""
    return CheckpointStore(run / "checkpoints" / "rft", keep=keep)


def follow(mirror: Mirror, run: Path, keep: int = 2) -> tuple[Following, list[str]]:
    """A thread that copies, started, and what it tells."""
    told: list[str] = []
    following = Following(mirror, run, SETTINGS, keep=keep, tell=told.append)
    following.start()
    return following, told


def until(condition: Callable[[], bool]) -> None:
    """Waits for another thread."""
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.02)


def long() -> float:
    """More time than anything takes."""
    return SOON_S


@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_a_checkpoint_comes_back_as_it_was(kind, run, tmp_path, request):
    uri = request.getfixturevalue("s3").uri("runs/x") if kind == "s3" else f"file://{tmp_path}/mirror/x"
    Remote(uri, timeout_s=10).probe()
    saved = save(local(run), 7, 0.5)
    following, told = follow(mirror_at(uri), run)
    assert following.finish(long) == [] and told == []

    mirror = mirror_at(uri)
    (found,) = mirror.checkpoints("rft")
    assert found.manifest == saved.manifest
    here = CheckpointStore(tmp_path / "elsewhere", keep=2)
    part = here.begin(7)
    committed = here.commit(part, found.manifest, mirror.fetch(found.folder.as_posix(), part))
    assert (committed.folder / MANIFEST).read_bytes() == (saved.folder / MANIFEST).read_bytes()
    assert here.newest(pytest.fail) is not None
    mirror.fetch_beside(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0}\n'  # a half record is nobody's


def test_what_was_measured_here_stays(run, tmp_path):
    """The mirror's evaluation.json is of the last checkpoint; suites that ran here since then are nowhere else."""
    uri = f"file://{tmp_path}/mirror/x"
    Remote(uri, timeout_s=10).probe()
    old, new = ({"time": f"2026-01-0{day}T00:00:00+00:00", "day": day} for day in (1, 2))
    there = {"stage:evaluate": new, "ifeval": old, "lm-eval": old}
    write_json(run / "evaluation.json", {"suites": there})
    save(local(run), 7, 0.5)
    following, told = follow(mirror_at(uri), run)
    assert following.finish(long) == [] and told == []
    write_json(run / "evaluation.json", {"suites": {"stage:evaluate": old, "ifeval": new, "mt-bench": old}})
    mirror_at(uri).fetch_beside(run)
    merged = {"stage:evaluate": new, "ifeval": new, "mt-bench": old, "lm-eval": old}
    assert json.loads((run / "evaluation.json").read_text()) == {"suites": merged}
    (tmp_path / "fresh").mkdir()
    mirror_at(uri).fetch_beside(tmp_path / "fresh")
    assert json.loads((tmp_path / "fresh" / "evaluation.json").read_text()) == {"suites": there}


def test_the_manifest_comes_last_and_goes_first(s3, run):
    mirror = mirror_at(s3.uri("x"))
    for step in (1, 2, 3):
        save(local(run), step)
        following, _ = follow(mirror, run)
        following.finish(long)
    first = "x/checkpoints/rft/00000001/"
    changes = [(m, name.removeprefix(first)) for m, name in s3.asked if name.startswith(first) and m in ("PUT", "DELETE")]
    changes = [change for change in changes if change[1] and not change[1].endswith("/")]  # markers of emptied folders
    assert changes[-2:] == [("PUT", MANIFEST), ("DELETE", MANIFEST)] and len(changes) == 5
    assert not any("00000001" in name for name in s3.names("x"))


def test_the_newest_and_the_best_stay(s3, run):
    mirror = mirror_at(s3.uri("x"))
    for step, score in [(1, 0.2), (2, 0.9), (3, None), (4, 0.5), (5, None)]:
        save(local(run), step, score)
        following, _ = follow(mirror, run)
        assert following.finish(long) == []
    assert [c.step for c in mirror.checkpoints("rft")] == [2, 4, 5]
    assert {name.split("/")[1] for name in s3.names("x/checkpoints")} == {"00000002", "00000004", "00000005"}


@pytest.mark.parametrize("at", [MANIFEST, "policy.json"])
def test_a_server_that_dies_in_the_middle_leaves_nothing_that_looks_whole(at, s3, run, monkeypatch):
    """And its loss is told in one line; when it is back, everything comes there."""
    monkeypatch.setattr("rayalign.storage.following.PAUSES_S", (0.1, 0.1))
    save(local(run), 1)
    dead = threading.Event()

    def fault(method, name):
        if method == "PUT" and name.endswith(at):
            dead.set()
        return "dead" if dead.is_set() and method != "GET" else None

    s3.fault = fault
    following, told = follow(mirror_at(s3.uri("x")), run)
    until(lambda: bool(told))
    save(local(run), 2)
    assert not any(name.endswith(MANIFEST) for name in s3.names("x"))
    (line,) = told
    assert line.startswith("warning: checkpoints.mirror: s3://bucket/x: ") and "\n" not in line and "the run goes on" in line
    s3.fault = lambda method, name: None
    save(local(run), 3)
    assert following.finish(long) == []
    assert mirror_at(s3.uri("x")).checkpoints("rft")[-1].step == 3
    assert told[1:] == ["checkpoints.mirror: s3://bucket/x takes copies again"]
    assert not any("00000001" in name for name in s3.names("x"))  # what was begun before is cleared away


def test_a_server_that_hangs_is_given_up(s3, run, monkeypatch):
    """Within the deadline and the attempts, while the run goes on; and at the end no longer than there is time."""
    monkeypatch.setattr("rayalign.storage.following.PAUSES_S", (0.1, 0.1))
    mirror = mirror_at(s3.uri("x"), timeout_s=1)
    s3.fault = lambda method, name: "hangs"
    save(local(run), 1)
    following, told = follow(mirror, run)
    until(lambda: bool(told))
    assert "nothing moved for 1 s" in told[0] or "Timeout" in told[0] or "no answer" in told[0]
    save(local(run), 2)
    start = time.monotonic()
    assert following.finish(lambda: start + 0.5 - time.monotonic()) == ["checkpoints/rft/00000002"]
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda s3, name: s3.write(name, s3.read(name)[:-1] + b"\x7f"), "does not have the content"),
        (lambda s3, name: s3.write(name, s3.read(name)[:5]), "does not have the content"),
        (lambda s3, name: s3.remove(name), "is missing"),
    ],
)
def test_what_was_damaged_there_is_told_apart(damage, told, s3, run, tmp_path):
    save(local(run), 1)
    following, _ = follow(mirror_at(s3.uri("x")), run)
    following.finish(long)
    damage(s3, "x/checkpoints/rft/00000001/state/policy-0.safetensors")
    with pytest.raises(Damaged, match=told):
        mirror_at(s3.uri("x")).fetch("checkpoints/rft/00000001", tmp_path / "new")


def test_a_manifest_cannot_name_files_elsewhere(s3, tmp_path):
    manifest = {"format": 1, "step": 1, "files": {"../../stolen": [1, "0"]}}
    s3.write(f"x/checkpoints/rft/00000001/{MANIFEST}", json.dumps(manifest).encode())
    with pytest.raises(Damaged, match="no file of it"):
        mirror_at(s3.uri("x")).fetch("checkpoints/rft/00000001", tmp_path / "a" / "b" / "c")


def test_a_torn_manifest_is_told_and_left_aside(s3):
    s3.write(f"x/checkpoints/rft/00000001/{MANIFEST}", b'{"format": 1, "st')
    told: list[str] = []
    mirror = Mirror(Remote(s3.uri("x"), timeout_s=10))
    mirror.look(told.append)
    assert not mirror.there and len(told) == 1 and "is torn" in told[0]


def test_a_finished_stage_takes_the_place_of_its_checkpoints(s3, run):
    save(local(run), 1)
    following, _ = follow(mirror_at(s3.uri("x")), run)
    until(lambda: f"checkpoints/rft/00000001/{MANIFEST}" in s3.names("x"))
    (run / "rft" / "policy").mkdir(parents=True)
    (run / "rft" / "policy" / "model.safetensors").write_bytes(b"weights of round 1")
    until(lambda: f"rft/{MANIFEST}" in s3.names("x"))
    assert not json.loads(s3.read(f"x/rft/{MANIFEST}"))["done"]  # models of the rounds so far
    (run / "rft" / "policy" / "model.safetensors").write_bytes(b"weights of round 2")
    write_json(run / "rft" / "done.json", SETTINGS["rft"])
    assert following.finish(long) == []
    manifest = json.loads(s3.read(f"x/rft/{MANIFEST}"))
    assert manifest["done"] and manifest["settings"] == SETTINGS["rft"]
    assert s3.read("x/rft/policy/model.safetensors") == b"weights of round 2"
    assert s3.names("x") == ["metrics.jsonl", "rft/done.json", f"rft/{MANIFEST}", "rft/policy/model.safetensors"]


def test_what_is_there_already_is_not_sent_again(s3, run):
    save(local(run), 1)
    write_json(run / "sft" / "done.json", SETTINGS["sft"])
    following, _ = follow(mirror_at(s3.uri("x")), run)
    following.finish(long)
    before = len([method for method, _ in s3.asked if method == "PUT"])
    following, _ = follow(mirror_at(s3.uri("x")), run)
    assert not following.busy and following.finish(long) == []
    assert len([method for method, _ in s3.asked if method == "PUT"]) == before


def test_a_checkpoint_stays_while_it_is_copied(run):
    """However many newer ones are committed meanwhile, by whatever process."""
    store = local(run, keep=1)
    first = save(store, 1)
    bundle = checkpoint_bundle("rft", first)
    with store.held(1):
        for step in (2, 3):
            save(CheckpointStore(store.folder, keep=1), step)
        assert bundle.unchanged()
    save(store, 4)
    assert not first.folder.exists()


@pytest.mark.parametrize(
    ("bucket", "fault", "told"),
    [
        ("nosuchbucket", None, "NO_SUCH_BUCKET"),
        ("bucket", "PUT", "ACCESS_DENIED"),
        ("bucket", "DELETE", "ACCESS_DENIED"),
        ("bucket", "GET", "ACCESS_DENIED"),
    ],
)
def test_a_store_that_will_not_do_is_found_by_the_probe(bucket, fault, told, s3):
    s3.fault = lambda method, name: "forbids" if method == fault else None
    with pytest.raises(Unreachable, match=told):
        Remote(s3.uri("x", bucket), timeout_s=10).probe()

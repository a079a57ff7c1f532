"""Runs that fail on the way, or are refused for what an earlier run left: real engines on a tiny model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray  # here, because its log handler keeps the stderr of its import, and each test has its own

from rayalign.actors import cluster
from rayalign.preflight import check
from tests.cli.conftest import ROWS, Rayalign, Workplace


def left_over(folder: Path) -> list[Path]:
    """Files that a failed run must not leave: artifacts, and parts of some."""
    return [path for path in folder.rglob("*") if path.name in ("policy", "done.json") or path.name.endswith(".part")]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_run_and_what_it_leaves_for_the_next(rayalign: Rayalign, workplace: Workplace) -> None:
    """A finished stage is kept; with other settings it is not passed off as theirs."""
    config = workplace.write()
    assert rayalign("train", config).code == 0
    weights = workplace.run_folder / "sft" / "policy" / "model.safetensors"
    made = weights.stat().st_mtime_ns
    again = rayalign("train", config, "learner.micro_batch_tokens=100")  # speed, not results
    assert again.code == 0 and "finished before, kept" in again.err
    for override, changed in (
        ("stages.sft.epochs=2", "another epochs"),
        ("seed=1", "another seed"),
        ("model.max_length=31", "another model"),
        ("data.demonstrations.limit=3", "another data.demonstrations"),
    ):
        outcome = rayalign("train", config, override)
        assert outcome.code == 2 and changed in outcome.line and "set name=" in outcome.line
    assert weights.stat().st_mtime_ns == made
    (workplace.folder / "demos.jsonl").unlink()
    assert rayalign("train", config).code == 0  # what finished needs its data no more


def test_rows_that_are_too_long(rayalign: Rayalign, workplace: Workplace) -> None:
    """`error` names the first row, `drop` says when none is left, `truncate` goes on."""
    long = {"prompt": "what " * 40, "response": "red ."}
    (workplace.folder / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [ROWS[0], long]))
    outcome = rayalign("train", workplace.write())
    assert outcome.code == 2 and "demos.jsonl:2" in outcome.line and "data.overlong" in outcome.line
    (workplace.folder / "demos.jsonl").write_text(json.dumps(long) + "\n")
    outcome = rayalign("train", workplace.write(), "data.overlong=drop")
    assert outcome.code == 2 and "all 1 rows are too long for max_length 32" in outcome.line
    assert not left_over(workplace.run_folder)


def test_code_of_a_models_folder_is_not_run(rayalign: Rayalign, workplace: Workplace) -> None:
    """trust_remote_code is off unless asked for."""
    folder = workplace.folder / "model"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "m.C", "AutoModelForCausalLM": "m.M"}})
    )
    (folder / "m.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    (folder / "model.safetensors").write_bytes(b"")
    outcome = rayalign("train", workplace.write(), "model.path=model")
    assert outcome.code == 2 and "contains custom code" in outcome.line
    assert not (workplace.folder / "ran").exists() and not left_over(workplace.run_folder)


def test_weights_that_are_damaged(rayalign: Rayalign, workplace: Workplace, parts: Path) -> None:
    folder = workplace.folder / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((parts / "model" / name).read_bytes()[:2000])
    outcome = rayalign("train", workplace.write(), "model.path=model")
    assert outcome.code == 2 and "model: cannot be loaded" in outcome.line
    assert not left_over(workplace.run_folder)


def test_full_disk(
    rayalign: Rayalign, workplace: Workplace, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen before the start; and one that fills up while the run writes leaves no torn artifact."""
    workplace.values["run_dir"] = str(tiny_disk)
    outcome = rayalign("train", workplace.write())
    assert outcome.code == 2 and "MiB free" in outcome.line and not list(tiny_disk.iterdir())
    monkeypatch.setattr(check, "MIN_FREE_BYTES", 0)
    workplace.values["stages"] = [{"kind": "planted", "num_pretrain": 9000}]
    outcome = rayalign("train", workplace.write())
    assert outcome.code == 2 and "the disk is full" in outcome.line
    assert not left_over(tiny_disk) and not (tiny_disk / "small" / "world").exists()


def test_disk_that_fills_while_weights_are_written(
    rayalign: Rayalign, workplace: Workplace, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors has errors of its own."""
    monkeypatch.setattr(check, "MIN_FREE_BYTES", 0)
    workplace.values |= {"run_dir": str(tiny_disk), "stages": [{"kind": "sft", "max_steps": 1, "batch_size": 2}]}
    workplace.values["stages"][0]["scratch"] = {
        "model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    outcome = rayalign("train", workplace.write())
    assert outcome.code == 2 and "the disk is full" in outcome.line
    assert not left_over(tiny_disk)


def test_too_few_cpus_on_a_local_ray(rayalign: Rayalign, workplace: Workplace) -> None:
    """The sentence names the group, what it needs and what there is; the Ray that was started ends."""
    workplace.values["placement"] = {"policy": {"cpus": 6400}}
    outcome = rayalign("train", workplace.write())
    assert outcome.code == 2
    assert outcome.line.startswith("rayalign: placement.policy needs 1 bundle(s) of 2133.33 CPU")
    assert f"the cluster has {os.cpu_count()} CPU" in outcome.line
    assert not ray.is_initialized()


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port where something listens and never speaks."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def web() -> Iterator[int]:
    """A port where something else than Ray answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("10.255.255.1:6379", []),  # nowhere: no answer, or no route
        ("127.0.0.1:1", ["refused"]),
        ("host.invalid:6379", []),
        ("http://127.0.0.1:8265", ["ray job submit"]),
        ("127.0.0.1:port", ["HOST:PORT"]),
        ("127.0.0.1:99999", []),
        ("127.0.0.1:{deaf}", ["no Ray head"]),
        ("127.0.0.1:{web}", ["no Ray head"]),
        ("ray://127.0.0.1:1", ["refused"]),
    ],
)
def test_unreachable_cluster(
    rayalign: Rayalign,
    workplace: Workplace,
    monkeypatch: pytest.MonkeyPatch,
    deaf: int,
    web: int,
    address: str,
    words: list[str],
) -> None:
    """Told within seconds; Ray alone tries for two minutes and ends the process."""
    monkeypatch.setattr(cluster, "PROBE_S", 1.0)
    workplace.values["placement"] = {"address": address.format(deaf=deaf, web=web)}
    started = time.monotonic()
    outcome = rayalign("train", workplace.write())
    assert time.monotonic() - started < 10
    assert outcome.code == 2 and "no Ray cluster answers at" in outcome.line
    assert all(word in outcome.line for word in words), outcome.line


def test_ray_address_of_the_environment(rayalign: Rayalign, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    workplace.values["placement"] = {}
    outcome = rayalign("train", workplace.write())
    assert outcome.code == 2 and "127.0.0.1:1" in outcome.line
    doctor = rayalign("doctor", workplace.write())
    assert doctor.code == 2 and "no Ray cluster answers" in " ".join(doctor.out.split())

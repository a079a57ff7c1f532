"""A run whose node is lost with its disk goes on from the mirror: finished stages are kept, and the numbers are the same."""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayalign.config.load import load_config, parse_config
from rayalign.errors import Stopped, UserError
from rayalign.run import run
from rayalign.stages.mirrored import opened_mirror
from rayalign.storage.aside import write_json
from rayalign.storage.checkpoints import MANIFEST
from rayalign.telemetry.progress import Progress
from tests.conftest import run_rayalign
from tests.loop.test_resume import numbers, stop_after
from tests.object_store import ObjectStore, object_store


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A server with an empty bucket."""
    with object_store(monkeypatch) as store:
        yield store


def config_of(values: dict[str, Any], name: str, mirror: str | None, **keys: Any) -> Any:
    """Three steps of SFT, then four of DPO: ranks that save themselves, and a loop that is saved."""
    sft = next(s for s in values["stages"] if s["name"] == "sft")
    preferences = {"path": f"{Path(sft['policy']).parents[1]}/world/preferences.jsonl"}
    dpo = {
        "kind": "implicit",
        "name": "dpo",
        "policy": "stage:sft/policy",
        "demonstrations": None,
        "preferences": {"loss": "dpo"},
        "max_steps": 4,
        "batch_size": 8,
    }
    config = {
        **values,
        "name": name,
        "data": {**values["data"], "preferences": preferences},
        "placement": {"backend": "inprocess"},
        "checkpoints": {"every_s": None, "every_steps": 1, "mirror": mirror, "mirror_timeout_s": 20},
        "stages": [{**sft, "max_steps": 3, "batch_size": 8}, dpo],
    }
    return parse_config({**config, **keys})


def stopped(config: Any, num_records: int) -> None:
    """Runs until some records are there."""
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        stop_after(Path(config.run_dir) / config.name, num_records)
        with pytest.raises(Stopped, match="saved after step"):
            run(config)
    finally:
        signal.signal(signal.SIGTERM, previous)


@pytest.mark.own_process
def test_a_run_goes_on_without_its_folder(loop_values, s3, tmp_path, capfd):
    whole = run(config_of(loop_values, "whole", None))
    policy = whole / "dpo" / "policy" / "model.safetensors"
    config, folder = config_of(loop_values, "lost", s3.uri()), tmp_path / "lost"
    place = "runs/lost"

    stopped(config, 6)  # in the middle of dpo
    before = s3.names(place)
    assert f"sft/{MANIFEST}" in before and not any(name.startswith("checkpoints/sft") for name in before)
    assert any(name.startswith("checkpoints/dpo") and name.endswith(MANIFEST) for name in before)

    # Another run of this name is refused, and leaves what is there.
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"runs/lost/sft: stage sft finished there with another .*seed"):
        run(config_of(loop_values, "lost", s3.uri(), seed=7))
    other = [config.stages[0].model_dump(), {**config.stages[1].model_dump(), "beta": 0.7}]
    with pytest.raises(UserError, match=r"stage dpo was interrupted there with another beta.*resume=changed"):
        run(config_of(loop_values, "lost", s3.uri(), stages=other))
    assert not folder.exists() and s3.names(place) == before

    capfd.readouterr()
    run(config)
    said = capfd.readouterr().err
    assert "sft: finished before, kept" in said
    assert "dpo: goes on after step" in said and "sft: goes on" not in said
    assert numbers(folder) == numbers(whole)
    assert (folder / "dpo" / "policy" / "model.safetensors").read_bytes() == policy.read_bytes()
    assert not any(name.startswith("checkpoints") for name in s3.names(place))

    # A run that is done is brought back, and nothing is done again.
    shutil.rmtree(folder)
    run(config)
    assert "dpo: finished before, kept" in capfd.readouterr().err
    assert numbers(folder) == numbers(whole)
    assert (folder / "dpo" / "policy" / "model.safetensors").read_bytes() == policy.read_bytes()


def small_config(folder: Path, mirror: str, **checkpoints: Any) -> Path:
    """A world and nothing else."""
    values = {
        "name": "x",
        "run_dir": str(folder / "runs"),
        "model": {"path": "stage:world/tokenizer"},
        "placement": {"backend": "inprocess"},
        "telemetry": {"tensorboard": False},
        "checkpoints": {"mirror": mirror, **checkpoints},
        "stages": [{"kind": "planted", "name": "world", "num_pretrain": 5, "num_prompts": 5, "num_eval_prompts": 5}],
    }
    path = folder / "x.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_run_outlives_its_mirror(s3, tmp_path, capfd, monkeypatch):
    """The server dies in the middle: one warning, one line at the end of what it lacks, and all is here."""
    monkeypatch.setattr("rayalign.storage.following.PAUSES_S", (0.1, 0.1))
    config = load_config(small_config(tmp_path, s3.uri()))
    s3.fault = lambda method, name: "dead" if name.endswith("prompts.jsonl") else None
    folder = run(config)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: checkpoints.mirror")]
    assert len(said) == 2 and "the run goes on" in said[0] and "s3://bucket/runs/x lacks world;" in said[1]
    assert (folder / "world" / "done.json").exists() and f"world/{MANIFEST}" not in s3.names("runs/x")

    s3.fault = lambda method, name: None
    run(config)  # done before; what the mirror lacks is copied now
    assert f"world/{MANIFEST}" in s3.names("runs/x")
    assert "lacks" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "told"), [("bucket", "NO_SUCH_BUCKET"), ("credentials", "ACCESS_DENIED"), ("scheme", "gopher")]
)
def test_a_mirror_that_will_not_do_is_refused_before_anything_starts(wrong, told, s3, tmp_path):
    uri = {"bucket": s3.uri(bucket="nosuchbucket"), "scheme": "gopher://bucket/runs"}.get(wrong, s3.uri())
    s3.fault = lambda method, name: "forbids" if wrong == "credentials" else None
    with pytest.raises(UserError, match=told) as refused:
        run(load_config(small_config(tmp_path, uri)))
    assert str(refused.value).startswith("checkpoints.mirror: ") and "s3cret" not in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_a_mirror_that_never_answers_ends_the_command(s3, tmp_path):
    """In one line, with exit code 2; what still hangs does not keep the process from its end."""
    s3.fault = lambda method, name: "hangs"
    done = run_rayalign("train", str(small_config(tmp_path, s3.uri(), mirror_timeout_s=2)), timeout_s=120)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("rayalign: checkpoints.mirror: s3://bucket/runs/x: upload .probe")
    assert not (tmp_path / "runs").exists()


def test_a_run_that_is_stopped_does_not_wait_for_a_hanging_mirror(s3, tmp_path):
    """The grace is all it has."""
    config, told = load_config(small_config(tmp_path, s3.uri(), grace_s=1.5)), io.StringIO()
    folder, progress = tmp_path / "runs" / "x", Progress(True, told)
    write_json(folder / "world" / "done.json", {})
    with opened_mirror(config, folder, {"world": {}}, progress) as mirrored:
        assert mirrored is not None
        s3.fault = lambda method, name: "hangs"
        start = time.monotonic()
        with contextlib.suppress(Stopped), mirrored.followed(progress):
            (folder / ".stop").touch()
            raise Stopped("asked to")
    assert time.monotonic() - start < 4
    assert "runs/x lacks world" in told.getvalue()

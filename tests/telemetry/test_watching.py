"""Records read while they are written, and what they say of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayalign.config.telemetry import TelemetryConfig
from rayalign.errors import DataError
from rayalign.telemetry.growing import GrowingRecords
from rayalign.telemetry.shown import key_numbers
from rayalign.telemetry.tracker import Tracker
from rayalign.telemetry.watching import RunClock, RunSigns, RunView, StagePlan, ending, state_lines

ONLY_JSONL = TelemetryConfig(tensorboard=False)
PLANS = [StagePlan("sft"), StagePlan("irl", total=40, rounds=2), StagePlan("evaluate")]


def line(step: int) -> bytes:
    return json.dumps({"stage": "irl", "round": 0, "step": step, "global_step": step, "time_s": 1.0}).encode() + b"\n"


def steps(polled: tuple[bool, list[dict]]) -> tuple[bool, list[int]]:
    return polled[0], [record["step"] for record in polled[1]]


def test_a_torn_line_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    records = GrowingRecords(file)
    assert steps(records.poll()) == (False, [])
    file.write_bytes(line(1) + line(2)[:-9])
    assert steps(records.poll()) == (False, [1])
    assert steps(records.poll()) == (False, [])
    with file.open("ab") as rest:
        rest.write(line(2)[-9:] + line(3))
    assert steps(records.poll()) == (False, [2, 3])


def test_a_file_that_a_resumed_run_rewrote_is_read_again(tmp_path: Path) -> None:
    with Tracker(tmp_path, ONLY_JSONL, "demo", {}) as tracker:
        records = GrowingRecords(tmp_path / "metrics.jsonl")
        for step in range(4):
            tracker.log("irl", 0, step, {"policy/entropy": 1.0})
        assert steps(records.poll()) == (False, [0, 1, 2, 3])
        tracker.keep("irl", 2)
        tracker.log("irl", 0, 2, {"policy/entropy": 1.0})
        assert steps(records.poll()) == (True, [0, 1, 2])


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(line(1) + b"hello\n")
    with pytest.raises(DataError, match=r"metrics.jsonl:2: not a record"):
        GrowingRecords(tmp_path / "metrics.jsonl").poll()


def view_of(folder: Path, *, held: bool, finished: tuple[str, ...]) -> RunView:
    return RunView(folder, PLANS, RunSigns(lambda: held, lambda stage: stage in finished))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two rounds of a loop, in the second: seconds 0 to 20, a step each, after an SFT of three."""
    times = iter([0.0, 1.0, 2.0, 3.0, *(10.0 + number for number in range(40))])
    with Tracker(tmp_path, ONLY_JSONL, "demo", {}, now=lambda: next(times)) as tracker:
        for step in range(3):
            tracker.log("sft", 0, step, {"nll_token": 1.5 - step / 10}, total_steps=4)
        tracker.log("irl", 0, 0, {"health/entropy": 0.8})
        for step in range(24):
            if step % 20 == 0:
                tracker.log("irl", step // 20, step, {"reward/margin_demo_minus_agent": 1.5, "reward/loss": 0.5})
            found = {"policy/reward_mean": step / 10, "policy/entropy": 0.5, "time/step_s": 1.0}
            tracker.log("irl", step // 20, step, found)
        tracker.log("irl", 1, 24, {"canary/mismatch_mean": 0.0})
    return tmp_path


def test_a_run_at_work(folder: Path) -> None:
    view = view_of(folder, held=True, finished=("sft",))
    view.clock._now = lambda: (folder / "metrics.jsonl").stat().st_mtime  # no time has passed since
    assert state_lines(view) == [
        "sft: done, 3 steps  nll 1.3",
        "irl: round 2/2, step 24/40, 16 s left  reward 2.3  margin 1.5  entropy 0.5",
        "evaluate: to come",
        "the run is at work",
    ]


def test_records_tell_how_many_steps_there_are_where_the_config_does_not(folder: Path) -> None:
    view = view_of(folder, held=True, finished=())
    assert state_lines(view)[0].startswith("sft: step 3/4, ")
    assert view.bar(PLANS[0]).total == 4 and view.bar(PLANS[2]).total is None


def test_alarms_are_told_once(tmp_path: Path) -> None:
    view = view_of(tmp_path, held=True, finished=())
    with Tracker(tmp_path, ONLY_JSONL, "demo", {}) as tracker:
        told = []
        for step, num in enumerate((0, 1, 1, 2)):
            tracker.log("irl", 0, step, {"policy/entropy": 1.0, "watch/num_alarms": num})
            view.update()
            told.append([line.split(";")[0] for line in view.new_alarms()])
    one, two = (f"warning: stage irl: {num} of reward hacking" for num in ("1 alarm", "2 alarms"))
    assert told == [[], [one], [], [two]]


@pytest.mark.parametrize(
    ("held", "finished", "line"),
    [
        (True, ("sft",), "the run is at work"),
        (False, ("sft", "irl", "evaluate"), "the run has finished"),
        (False, ("sft",), "the run ended in stage irl, before its end: it died, was stopped or failed; the command"),
        (True, ("sft", "irl", "evaluate"), "the run is at work"),  # it writes its report
    ],
)
def test_how_it_is(folder: Path, held: bool, finished: tuple[str, ...], line: str) -> None:
    assert ending(view_of(folder, held=held, finished=finished)).startswith(line)


def test_the_clock_is_the_runs_own() -> None:
    now = [1000.0]
    clock = RunClock(lambda: now[0])
    clock.set(50.0, written_at=990.0)
    assert clock() == 60.0
    now[0] = 1003.0
    assert clock() == 63.0
    clock.set(70.0, written_at=2000.0)  # a clock of another machine, ahead of ours
    assert clock() == 70.0


@pytest.mark.parametrize(
    ("newest", "shown"),
    [
        ({"policy/reward_mean": 0.3, "policy/entropy": 1, "policy/loss": 9.0}, {"reward": 0.3, "entropy": 1.0}),
        ({"nll_token": 1.5, "learning_rate": 1e-4}, {"nll": 1.5}),
        ({"env_steps": 6000, "true/return_mean": 90.0, "policy/reward_mean": 1.0}, {"return": 90.0}),
        ({"policy/reward_mean": None, "nonfinite": {"policy/reward_mean": "nan"}}, {}),
    ],
)
def test_key_numbers(newest: dict, shown: dict) -> None:
    assert key_numbers(newest) == shown

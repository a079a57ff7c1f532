"""A run seen from outside: what its records say of its stages, shown as the run itself shows them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayalign.telemetry.growing import GrowingRecords
from rayalign.telemetry.progress import SEPARATOR, Bar, Progress
from rayalign.telemetry.shown import key_numbers
from rayalign.telemetry.sinks import FIELDS

POLL_S = 0.5
ALARMS = "watch/num_alarms"
NO_STEP = ("reward", "health", "canary", "watch")  # records of these alone come between steps


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What the config says of a stage. `total` is the number of steps, where the config alone tells; else records may."""

    name: str
    total: int | None = None
    rounds: int | None = None
    unit: str = "step"


@dataclass(frozen=True, slots=True)
class RunSigns:
    """How a run's folder tells of its state: whether a process holds it, and which stages have finished."""

    held: Callable[[], bool]
    finished: Callable[[str], bool]


class RunClock:
    """The run's own seconds: those of its newest record (`at`), and what has passed since that was written."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now, self.at, self._seen = now, 0.0, now()

    def __call__(self) -> float:
        return self.at + max(0.0, self._now() - self._seen)

    def set(self, time_s: float, written_at: float | None = None) -> None:
        """A record of the run's second `time_s` was written at this time, or just now."""
        self.at, self._seen = time_s, self._now() if written_at is None else written_at


class RunView:
    """The bars of a run's stages, as its records move them."""

    def __init__(self, folder: Path, stages: Sequence[StagePlan], signs: RunSigns) -> None:
        self.stages, self.signs, self.clock = list(stages), signs, RunClock()
        self._records = GrowingRecords(folder / "metrics.jsonl")
        self._bars: dict[str, Bar] = {}
        self._newest: dict[str, dict[str, Any]] = {}
        self._alarms: dict[str, int] = {}  # that were told of each stage

    def update(self) -> bool:
        """Takes in what was written since; whether all bars began anew, since the run went on from a checkpoint."""
        anew, records = self._records.poll()
        if anew:
            self._bars, self._newest = {}, {}
        for record in records:
            self._take(record)
        if records:
            self.clock.set(records[-1]["time_s"], self._records.written_at())
        return anew

    def new_alarms(self) -> list[str]:
        """A line a stage whose alarms have become more since the last call."""
        lines = []
        for stage, newest in self._newest.items():
            num = newest.get(ALARMS) or 0
            if num > self._alarms.get(stage, 0):
                self._alarms[stage] = num
                tripped = f"{num} alarm{'s' if num > 1 else ''} of reward hacking"
                lines.append(f"warning: stage {stage}: {tripped}; the run's own output says which and what to do")
        return lines

    def bar(self, plan: StagePlan) -> Bar:
        """A stage's; a new one where it has no record yet."""
        if plan.name not in self._bars:
            self._bars[plan.name] = Bar(plan.name, plan.total, plan.unit, self.clock, self.clock.at)
        return self._bars[plan.name]

    def current(self) -> StagePlan | None:
        """The first stage that has not finished; None where all have."""
        return next((plan for plan in self.stages if not self.signs.finished(plan.name)), None)

    def line(self, plan: StagePlan) -> str:
        """Example: "sft: done, 40 steps  nll 1.2"."""
        bar, is_done = self.bar(plan), self.signs.finished(plan.name)
        if is_done:
            words = "done" + (f", {bar.done} {bar.unit}s" if bar.done else "")
        elif plan == self.current() and (self.signs.held() or bar.done):
            words = ", ".join(bar.words())
        else:
            words = "to come"
        return f"{plan.name}: {words}" + (SEPARATOR + bar.notes() if bar.note else "")

    def _take(self, record: Mapping[str, Any]) -> None:
        plan = next((plan for plan in self.stages if plan.name == record["stage"]), None)
        if plan is None:  # a stage that the config no longer has
            return
        newest = self._newest.setdefault(plan.name, {})
        newest |= record
        bar = self.bar(plan)
        if type(record.get("total_steps")) is int:
            bar.total = record["total_steps"]
        self.clock.set(record["time_s"])
        place = (record["round"] + 1, plan.rounds) if plan.rounds and type(record["round"]) is int else None
        bar.update(advance=int(_is_step(record)), round=place, note=key_numbers(newest))


def _is_step(record: Mapping[str, Any]) -> bool:
    """Whether a record is of a step, and not of what is measured between steps."""
    return any(name.split("/")[0] not in NO_STEP for name in record if name not in (*FIELDS, "nonfinite"))


def state_lines(view: RunView) -> list[str]:
    """All stages, a line each, and how the run is."""
    view.update()
    return [*(view.line(plan) for plan in view.stages), *view.new_alarms(), ending(view)]


def ending(view: RunView) -> str:
    """How the run is, or how it ended."""
    if view.signs.held():
        return "the run is at work"
    current = view.current()
    if current is None:
        return "the run has finished"
    return (
        f"the run ended in stage {current.name}, before its end: it died, was stopped or failed; "
        "the command that started it goes on from the stage's last checkpoint, or begins the stage again where it has none"
    )


def follow(view: RunView, progress: Progress, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Shows the run until no process holds its folder; whether all stages have finished then."""
    view.update()
    told = [plan for plan in view.stages if view.signs.finished(plan.name)]
    for plan in told:
        progress.say(view.line(plan))
    shown: Bar | None = None
    while True:
        is_held = view.signs.held()  # before the look at its records: the last ones are not missed
        if view.update() and shown is not None:
            progress.end(shown, None)
            shown = None
        for line in view.new_alarms():
            progress.say(line)
        shown = _told_of_finished(view, progress, shown, told)
        current = view.current()
        if is_held and current is not None and shown is None:
            shown = view.bar(current)
            progress.begin(shown)
        if not is_held:
            break
        sleep(POLL_S)
    if shown is not None:
        progress.end(shown, "stopped")
    progress.say(ending(view))
    return view.current() is None


def _told_of_finished(view: RunView, progress: Progress, shown: Bar | None, told: list[StagePlan]) -> Bar | None:
    """Tells of the stages that have finished since; the bar that is shown still."""
    for plan in view.stages:
        if plan in told or not view.signs.finished(plan.name):
            continue
        told.append(plan)
        if shown is view.bar(plan):
            progress.end(shown, "done")
            shown = None
        else:
            progress.say(view.line(plan))
    return shown

"""What a person sees while a run works: a live display on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

MAX_NOTES = 5
PLAIN_EVERY_S = 5.0
BAR_WIDTH = 24
SPIN_HZ = 4
SEPARATOR = "  "


class Bar:
    """One stage in progress. Made by `Progress.stage`; told of progress by `update`."""

    def __init__(
        self,
        name: str,
        total: int | None,
        unit: str,
        now: Callable[[], float],
        start: float | None = None,
    ) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, 0
        self.round: tuple[int, int] | None = None
        self.note: dict[str, float] = {}
        self._now = now
        self._changed: Callable[[Bar], None] | None = None
        self._start = self._updated = now() if start is None else start
        self._first: tuple[int, float] | None = None  # units that were done at the first advance, and when

    def update(
        self,
        advance: int = 0,
        round: tuple[int, int] | None = None,
        note: Mapping[str, float] | None = None,
    ) -> None:
        """Adds `advance` units; sets the round (this, of all) and up to five key numbers."""
        self.done += advance
        if advance:
            self._updated = self._now()
            self._first = self._first or (self.done, self._updated)
        self.round = round or self.round
        if note is not None:
            self.note = dict(list(note.items())[:MAX_NOTES])
        if self._changed is not None:
            self._changed(self)

    def tell(self, changed: Callable[[Bar], None] | None) -> None:
        """Calls this after each update from here on."""
        self._changed = changed

    @property
    def elapsed_s(self) -> float:
        """Seconds since the stage began."""
        return self._now() - self._start

    @property
    def left_s(self) -> float | None:
        """Seconds left at the pace since the first units, which include starting and compiling; None until there is one.

        What the first units took longer than others may be a round's own work: each later round is given as much,
        until the second one shows its pace.
        """
        if self.total is None or self._first is None or self.done <= self._first[0]:
            return None
        first_done, first_at = self._first
        pace_s = (self._updated - first_at) / (self.done - first_done)
        left_s = (self.total - self.done) * pace_s - (self._now() - self._updated)
        if self.round and self.round[0] == 1:
            left_s += (self.round[1] - 1) * max(0.0, first_at - self._start - pace_s)
        return max(0.0, left_s)

    def words(self) -> list[str]:
        """Round, count and time left, most important first; what is not known is left out."""
        words = [f"round {self.round[0]}/{self.round[1]}"] if self.round else []
        if self.total is not None:
            words.append(f"{self.unit} {self.done}/{self.total}")
        elif self.done:
            words.append(f"{self.unit} {self.done}")
        left = self.left_s
        words.append(f"{duration(left)} left" if left is not None else f"for {duration(self.elapsed_s)}")
        return words

    def notes(self) -> str:
        """The key numbers, to three digits."""
        return SEPARATOR.join(f"{name} {value:.3g}" for name, value in self.note.items())


class Progress:
    """Shows the stages of a run: live on a terminal, else in plain lines.

    Plain lines come at a stage's start, at its end, and in between at most every five seconds. Not `enabled`,
    only what is given to `say` is shown. Lines that others print meanwhile, such as the logs of Ray's actors,
    appear above the live display.

    Example:
        with progress.stage("irl", total=40, unit="step") as bar:
            bar.update(advance=1, round=(2, 4), note={"reward": 0.31, "kl": 0.2})
    """

    def __init__(
        self,
        enabled: bool,
        stream: TextIO,
        now: Callable[[], float] = time.monotonic,
        plain_every_s: float = PLAIN_EVERY_S,
    ) -> None:
        self._console = Console(file=stream, force_terminal=stream.isatty(), highlight=False, soft_wrap=True)
        self._enabled, self._now, self._plain_every_s = enabled, now, plain_every_s
        self._display = _Display(now)
        self._live: Live | None = None
        self._is_live = enabled and stream.isatty() and not self._console.is_dumb_terminal
        self._last_line: dict[Bar, float] = {}

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "step") -> Iterator[Bar]:
        """Shows the stage while the block runs, and one line of how it ended. Stages may nest.

        Without a total it is a wait of unknown length ("starting 3 actors").
        """
        bar = Bar(name, total, unit, self._now)
        self.begin(bar)
        ended = "stopped"
        try:
            yield bar
            ended = "done"
        finally:
            self.end(bar, ended)

    def say(self, line: str) -> None:
        """Prints a line, above the live display where there is one."""
        self._console.print(Text(line))

    def begin(self, bar: Bar) -> None:
        """Shows a bar from here on; `stage` is what a stage's own code uses. It may have advanced already."""
        bar.tell(self._on_update)
        if self._is_live:
            self._display.bars.append(bar)
            if self._live is None:
                self._live = Live(
                    self._display, console=self._console, refresh_per_second=SPIN_HZ, transient=True
                )
                self._live.start()
        elif self._enabled:
            self._last_line[bar] = self._now()
            if bar.done:
                self.say(_now_line(bar))
            else:
                self.say(bar.name + (" ..." if bar.total is None else f": {bar.total} {bar.unit}s to do"))

    def _on_update(self, bar: Bar) -> None:
        if bar not in self._last_line:
            return
        if self._now() - self._last_line[bar] >= self._plain_every_s:
            self._last_line[bar] = self._now()
            self.say(_now_line(bar))

    def end(self, bar: Bar, ended: str | None) -> None:
        """Shows a bar no longer, and says how it ended; nothing for None."""
        bar.tell(None)
        self._last_line.pop(bar, None)
        if self._live is not None:
            self._display.bars.remove(bar)
            if not self._display.bars:
                self._live.stop()
                self._live = None
        if self._enabled and ended is not None:
            self.say(_end_line(bar, ended))


class _Display:
    """The active stages, two lines each: where it is, and its key numbers; drawn for any width."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.bars: list[Bar] = []
        self._now = now

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for bar in list(self.bars):  # the display is drawn from a thread of rich's own
            yield self._headline(bar, options)
            if bar.note:
                yield _one_line(Text("  " + bar.notes(), style="dim"))

    def _headline(self, bar: Bar, options: ConsoleOptions) -> Text:
        words = SEPARATOR + SEPARATOR.join(bar.words())
        line = Text(bar.name, style="bold")
        room = options.max_width - len(bar.name) - len(words) - len(SEPARATOR)
        if bar.total is None:
            frames = "|/-\\" if options.ascii_only else "⠋⠙⠸⠴⠦⠇"
            line = Text(frames[int(self._now() * SPIN_HZ) % len(frames)] + " ", style="cyan") + line
        elif room >= BAR_WIDTH // 3:
            line.append(SEPARATOR)
            line.append_text(_drawn(bar.done / max(1, bar.total), min(room, BAR_WIDTH), options.ascii_only))
        line.append(words, style="not bold")
        return _one_line(line)


def _drawn(share: float, width: int, ascii_only: bool) -> Text:
    full = round(min(1.0, share) * width)
    done, left = ("#", ".") if ascii_only else ("━", "─")
    return Text(done * full, style="cyan") + Text(left * (width - full), style="not bold dim")


def _one_line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _now_line(bar: Bar) -> str:
    return f"{bar.name}: {', '.join([*bar.words(), *bar.notes().split(SEPARATOR)])}".rstrip(", ")


def _end_line(bar: Bar, ended: str) -> str:
    """Example: "irl: done, 40 steps in 1 min 52 s  reward 0.31  kl 0.2"."""
    if ended == "done":
        amount = f", {bar.done} {bar.unit}s in" if bar.done else " in"
    else:
        of_all = f"/{bar.total}" if bar.total else ""
        amount = f" at {bar.unit} {bar.done}{of_all} after" if bar.done else " after"
    notes = bar.notes()
    return f"{bar.name}: {ended}{amount} {duration(bar.elapsed_s)}" + (SEPARATOR + notes if notes else "")


def duration(seconds: float) -> str:
    """Seconds as people say them: "8.2 s", "42 s", "1 min 52 s", "2 h 03 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

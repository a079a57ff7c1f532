"""Where the time goes: seconds per phase, tokens per second, and the share of time each group waits."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean

from rayalign.telemetry.metrics import Mean, Metrics


class Clock:
    """Times the controller's phases, lap by lap; a lap is usually one step or one round.

    Example:
        clock = Clock()
        with clock.phase("rollout/generate"):
            summaries = rollouts.generate(prompts)
        clock.tokens("rollout/generate", sum(s.num_response_tokens for s in summaries))
        clock.busy("rollout", [s.generate_s for s in summaries])
        tracker.log("irl", 0, step, clock.lap())
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._restart(now())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the block's seconds to `name`, also when the block raises.

        Phases may nest; each counts all of its own time, and belongs to the lap that it ends in.
        """
        start = self._now()
        try:
            yield
        finally:
            self._phase_s[name] += self._now() - start

    def busy(self, group: str, seconds: float | Sequence[float]) -> None:
        """Adds what a group reported for one call: seconds of work, or each worker's, which are averaged."""
        workers = seconds if isinstance(seconds, Sequence) else [seconds]
        self._busy_s[group] += fmean(workers) if workers else 0.0

    def tokens(self, phase: str, count: int) -> None:
        """Adds tokens that the phase handled."""
        self._tokens[phase] += count

    def lap(self) -> Metrics:
        """The lap's metrics; then starts the next lap.

        `time/PHASE_s`, `time/step_s` (the whole lap), `idle_frac/GROUP` (1 - busy/lap; 0 where work begun in
        the lap before makes it more than busy), and `tokens_per_s/PHASE` for the phases that took time in
        this lap. Merged over laps, times are means per lap and rates are weighted by their seconds.
        """
        end = self._now()
        wall = end - self._start
        metrics: Metrics = {"time/step_s": Mean(wall)}
        metrics |= {f"time/{name}_s": Mean(seconds) for name, seconds in self._phase_s.items()}
        metrics |= {
            f"idle_frac/{group}": Mean(max(0.0, wall - busy), wall) for group, busy in self._busy_s.items()
        }
        metrics |= {
            f"tokens_per_s/{name}": Mean(count, self._phase_s[name])
            for name, count in self._tokens.items()
            if self._phase_s.get(name)
        }
        self._restart(end)
        return metrics

    def _restart(self, start: float) -> None:
        self._start = start
        self._phase_s: defaultdict[str, float] = defaultdict(float)
        self._busy_s: defaultdict[str, float] = defaultdict(float)
        self._tokens: defaultdict[str, int] = defaultdict(int)

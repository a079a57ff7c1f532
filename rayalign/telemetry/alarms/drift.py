"""Alarms about a number that leaves its own start: entropy, lengths, repetition, sampler against trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median

from rayalign.config.watch import WatchConfig
from rayalign.telemetry.alarms.rule import Memory, Reading, Rule, known

UNENDED_RISE = 0.15
REPEATED_RISE = 0.15
IDENTICAL_RISE = 0.3
TRAINED_RATIO = 1.35
MISMATCH_RATIO = 3.0
MISMATCH_LEAST = 1e-3  # nats a token; below this no importance weight notices


class Drift:
    """A number against its own start: the median of its last `window` values and that of its first ones."""

    def __init__(
        self,
        name: str,
        key: str,
        *,
        window: int,
        measure: Callable[[float, float], float],
        alarm: Callable[[float, float], str | None],
        collapse: bool = False,
    ) -> None:
        self.name, self.collapse = name, collapse
        self.memory: Memory = {"first": [], "last": []}
        self._key, self._window, self._measure, self._alarm = key, window, measure, alarm

    def observe(self, round_number: int, found: Mapping[str, float]) -> Reading | None:
        """As Rule; nothing before the two windows are apart."""
        value = known(found, self._key)
        if value is None:
            return None
        first, last = self.memory["first"], self.memory["last"]
        if len(first) < self._window:
            first.append(value)
            return None
        last.append(value)
        del last[: -self._window]
        if len(last) < self._window:
            return None
        start, now = median(first), median(last)
        return Reading(self._measure(start, now), self._alarm(start, now))


def sample_drifts(config: WatchConfig, source: str, *, window: int, brake: str) -> list[Rule]:
    """What samples look like, against the first ones."""

    def entropy(start: float, now: float) -> str | None:
        if now >= config.min_entropy_ratio * start:
            return None
        return (
            f"the policy's entropy went from {start:.2g} to {now:.2g} nats a token: it says ever the same, and learns "
            f"nothing from what it no longer says; {brake}"
        )

    def length(start: float, now: float) -> str | None:
        if start <= 0 or 1 / config.max_length_ratio <= now / start <= config.max_length_ratio:
            return None
        return (
            f"mean response length went from {start:.3g} to {now:.3g} tokens: rewards often pay for length itself; read "
            "some samples, and if it should change so far, raise watch.max_length_ratio"
        )

    def ended(start: float, now: float) -> str | None:
        if start - now <= UNENDED_RISE:
            return None
        return (
            f"{1 - now:.0%} of the responses do not end by themselves, {1 - start:.0%} at the start: the policy forgets to "
            "end; set improve.missing_end_score (irl, rl), or give them room with sampling.max_new_tokens"
        )

    def repeated(start: float, now: float) -> str | None:
        if now - start <= REPEATED_RISE:
            return None
        return (
            f"{now:.0%} of the n-grams repeat earlier ones of their response, {start:.0%} at the start: the policy runs in "
            f"loops; {brake}"
        )

    def identical(start: float, now: float) -> str | None:
        if now - start <= IDENTICAL_RISE:
            return None
        return (
            f"{now:.0%} of a prompt's further samples equal an earlier one, {start:.0%} at the start: there is ever less to "
            f"compare and to learn from; if answers should differ, {brake}"
        )

    return [
        Drift("entropy_ratio", f"{source}/entropy", window=window, measure=_ratio, alarm=entropy, collapse=True),
        Drift("length_ratio", f"{source}/length_mean", window=window, measure=_ratio, alarm=length),
        Drift("unended_rise", f"{source}/ended_frac", window=window, measure=lambda a, b: a - b, alarm=ended),
        Drift(
            "repeated_ngram_rise",
            f"{source}/repeated_ngram_frac",
            window=window,
            measure=lambda a, b: b - a,
            alarm=repeated,
            collapse=True,
        ),
        Drift("identical_rise", f"{source}/identical_frac", window=window, measure=lambda a, b: b - a, alarm=identical),
    ]


def trained_demos(*, brake: str) -> Rule:
    """The demonstrations that a pair loss is about: it falls as well where both sides become unlikely."""

    def alarm(start: float, now: float) -> str | None:
        if now <= TRAINED_RATIO * start:
            return None
        return (
            f"the demonstrations it learns from cost the policy {now:.3g} nats a response, {start:.3g} at the start: the "
            f"loss falls because its samples become unlikelier still; set likelihood_weight, or {brake}"
        )

    return Drift("trained_demo_nll_ratio", "policy/demo_nll", window=10, measure=_ratio, alarm=alarm, collapse=True)


def mismatch(source: str, *, window: int) -> Rule:
    """Sampler against trainer, with the same weights."""

    def alarm(start: float, now: float) -> str | None:
        if now <= MISMATCH_LEAST or now <= MISMATCH_RATIO * start:
            return None
        return (
            f"log-probs of sampler and trainer differ by {now:.2g} nats a token, {start:.2g} at the start, on the same "
            "weights: updates follow ever less what was sampled; set model.dtype to float32, or lower the learning rate"
        )

    return Drift("mismatch_ratio", f"{source}/mismatch_mean", window=window, measure=_ratio, alarm=alarm)


def _ratio(start: float, now: float) -> float:
    return now / start if start > 0 else 1.0

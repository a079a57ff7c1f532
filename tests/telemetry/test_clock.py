"""The clock, with a time source of the test's own."""

from __future__ import annotations

import pytest

from rayalign.telemetry.clock import Clock
from rayalign.telemetry.metrics import merge, values


class Time:
    def __init__(self) -> None:
        self.s = 50.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def time() -> Time:
    return Time()


def test_a_lap(time):
    clock = Clock(time)
    with clock.phase("rollout/generate"):
        time.s += 4
    with clock.phase("reward/update"):
        time.s += 2
    with clock.phase("reward/update"):
        time.s += 1
    time.s += 1
    clock.tokens("rollout/generate", 600)
    clock.tokens("rollout/generate", 200)
    clock.busy("rollout", [4.0, 2.0])  # two workers of one call
    clock.busy("reward", 2)
    clock.busy("reward", [0.5])
    assert values(clock.lap()) == {
        "time/step_s": 8,
        "time/rollout/generate_s": 4,
        "time/reward/update_s": 3,
        "idle_frac/rollout": pytest.approx(1 - 3 / 8),
        "idle_frac/reward": pytest.approx(1 - 2.5 / 8),
        "tokens_per_s/rollout/generate": 200,
    }


def test_a_lap_starts_anew_and_laps_merge_by_their_length(time):
    clock = Clock(time)
    laps = []
    for seconds, tokens in ((1, 300), (3, 300)):
        with clock.phase("p"):
            time.s += seconds
        clock.tokens("p", tokens)
        clock.busy("g", 1.0)
        laps.append(clock.lap())
    assert values(laps[1]) == {
        "time/step_s": 3,
        "time/p_s": 3,
        "idle_frac/g": pytest.approx(2 / 3),
        "tokens_per_s/p": 100,
    }
    both = values(merge(laps))
    assert (
        both["time/p_s"] == 2 and both["tokens_per_s/p"] == 150 and both["idle_frac/g"] == pytest.approx(0.5)
    )


def test_a_phase_counts_when_its_block_raises(time):
    clock = Clock(time)
    with pytest.raises(KeyError), clock.phase("p"):
        time.s += 2
        raise KeyError
    assert values(clock.lap())["time/p_s"] == 2


def test_work_begun_in_the_lap_before_is_no_negative_idleness(time):
    clock = Clock(time)
    time.s += 1
    clock.busy("rollout", 5.0)
    clock.tokens("rollout", 10)  # no such phase took time: no rate
    assert values(clock.lap()) == {"time/step_s": 1, "idle_frac/rollout": 0}

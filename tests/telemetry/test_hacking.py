"""The alarms on curves of real runs: silent on those that went well, early on those that broke; saved and taken up."""

from __future__ import annotations

import json
import math

import pytest

from rayalign.config.watch import WatchConfig
from rayalign.telemetry.hacking import HackingWatch, implicit_rules, loop_rules
from tests.telemetry import hacking_runs as runs
from tests.telemetry.hacking_runs import Record, Run

MOVING = (runs.FORWARD_KL_EXP, runs.FORWARD_KL, runs.PPO_SPIKE, runs.PPO_BROKEN)
HEALTHY = {
    "RFT": runs.RFT,
    "AIHF": runs.AIHF,
    "FIXED_REWARD": runs.FIXED_REWARD,
    "FORWARD_KL_EXP": runs.FORWARD_KL_EXP,
    "PPO_SPIKE": runs.PPO_SPIKE,
}


def watch_of(run: Run | None = None, *, stale: bool = False, early_stop: bool = True, **config: float) -> HackingWatch:
    """The watch of a loop."""
    rules = loop_rules(WatchConfig(**config), moving_reference=run in MOVING, stale=stale)
    return HackingWatch(rules, early_stop=early_stop)


def implicit_watch() -> HackingWatch:
    """The watch of an `implicit` stage."""
    return HackingWatch(implicit_rules(WatchConfig()), early_stop=True)


def told(watch: HackingWatch, records: list[Record]) -> dict[str, int]:
    """Which alarms tripped, and at which policy step."""
    found: dict[str, int] = {}
    step = 0
    for round_number, record in records:
        before = watch.alarms
        watch.observe(round_number, record)
        found |= {name: step for name in watch.alarms if name not in before}
        step += any(name.startswith("policy/") for name in record)
    return found


def series(key: str, numbers: list[float]) -> list[Record]:
    """Steps of one round that log nothing but this."""
    return [(0, {key: number}) for number in numbers]


@pytest.mark.parametrize("name", HEALTHY)
def test_runs_that_went_well_are_silent(name):
    watch = watch_of(HEALTHY[name])
    assert told(watch, list(HEALTHY[name].records())) == {}
    assert not watch.should_stop()


def test_an_implicit_run_that_went_well_is_silent():
    assert told(implicit_watch(), list(runs.SMALL_IRFT.records())) == {}


@pytest.mark.parametrize(
    ("run", "first"),
    [
        # In the second round KL jumps at its fifth step, and the reward with it; two steps confirm it.
        (runs.PPO_BROKEN, {"reference_surprise": 15, "kl_growth": 16}),
        # The second of four rounds: demonstrations are told apart ever better, and become unlikelier.
        (runs.FORWARD_KL, {"demo_nll_ratio": 16}),
        # Golden reward is at .39 of .51 and falls to .09 in the three rounds after.
        (runs.GOODHART, {"demo_accuracy_fall": 28}),
        (runs.LARGE_STEPS, {"reference_surprise": 3, "demo_nll_ratio": 16}),
        (
            runs.LOOPS,
            {"demo_nll_ratio": 16, "unended_rise": 16, "length_ratio": 23, "repeated_ngram_rise": 34, "entropy_ratio": 63},
        ),
    ],
    ids=["PPO_BROKEN", "FORWARD_KL", "GOODHART", "LARGE_STEPS", "LOOPS"],
)
def test_runs_that_broke_are_told_early(run, first):
    watch = watch_of(run)
    assert told(watch, list(run.records())) == first
    assert watch.should_stop()


def test_an_implicit_run_that_breaks_is_told_before_it_ends():
    found = told(implicit_watch(), list(runs.LONG_IRFT.records()))
    assert found == {"trained_demo_nll_ratio": 53, "demo_nll_ratio": 80}


def test_lines_say_numbers_and_what_to_do_and_come_once():
    watch = watch_of(runs.PPO_BROKEN)
    lines = [line for record in runs.PPO_BROKEN.records() for line in watch.observe(*record)[1].values()]
    surprise, growth = lines
    assert "1.2 nats a token" in surprise and "improve.kl_coef" in surprise
    assert "8.32 nats a response" in growth and "4 times" in growth
    assert all("\n" not in line for line in lines)


@pytest.mark.parametrize("run", [runs.PPO_BROKEN, runs.GOODHART, runs.LOOPS], ids=["PPO_BROKEN", "GOODHART", "LOOPS"])
def test_a_watch_that_is_taken_up_goes_on_alike(run):
    """At any place, through JSON: the same metrics, lines and alarms as without an interruption."""
    records = list(run.records())
    whole = watch_of(run)
    expected = [whole.observe(*record) for record in records]
    for place in range(0, len(records), 5):
        first, second = watch_of(run), watch_of(run)
        found = [first.observe(*record) for record in records[:place]]
        second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
        assert [*found, *[second.observe(*record) for record in records[place:]]] == expected, place
        assert second.alarms == whole.alarms and second.state() == whole.state()


def test_a_saved_state_is_not_changed_by_going_on():
    watch = watch_of()
    for record in list(runs.RFT.records())[:8]:
        watch.observe(*record)
    saved = watch.state()
    before = json.dumps(saved)
    for record in list(runs.RFT.records())[8:]:
        watch.observe(*record)
    assert json.dumps(saved) == before


def test_missing_and_broken_numbers_pass_by():
    """A skipped update logs nothing but its count; what a recipe does not measure is never there."""
    records = list(runs.PPO_BROKEN.records())
    holes: list[Record] = []
    for round_number, record in records:
        holes += [(round_number, {"policy/num_skipped": 1.0}), (round_number, dict.fromkeys(record, math.nan))]
        holes += [(round_number, record), (round_number, dict.fromkeys(record, math.inf))]
    plain, holed = watch_of(runs.PPO_BROKEN), watch_of(runs.PPO_BROKEN)
    expected = [plain.observe(*record) for record in records]
    found = [holed.observe(*record) for record in holes]
    assert found[2::4] == expected
    assert all(nothing == ({}, {}) for place in (0, 1, 3) for nothing in found[place::4])
    assert holed.state() == plain.state()
    assert watch_of().observe(0, {}) == ({}, {})


def test_rounds_of_one_step():
    """The reward's gain is then that over the round before; nothing else needs a round's length."""
    accuracies = [0.6, 0.5, 0.3, 0.2, 0.04]
    for rewards, expected in (([0.1, 0.2, 0.3, 0.4, 0.5], ["demo_accuracy_fall"]), ([0.5, 0.4, 0.3, 0.2, 0.1], [])):
        watch = watch_of()
        for place, (reward, accuracy) in enumerate(zip(rewards, accuracies, strict=True)):
            watch.observe(place, {"policy/reward_mean": reward})
            metrics, _ = watch.observe(place, {"health/demo_accuracy_heldout": accuracy})
        assert metrics["watch/demo_accuracy_fall"] == pytest.approx(0.56)
        assert watch.alarms == expected


def test_what_is_remembered_does_not_grow_with_the_rounds():
    """Without demonstrations there is no health, and a long run is a long one."""
    watch = watch_of()
    sizes = []
    for place in range(200):
        for _ in range(3):
            watch.observe(place, {key: 1.0 for key in runs.RFT.steps})
        sizes.append(len(json.dumps(watch.state())))
    assert sizes[-1] < sizes[20] + 20


def test_kl_that_grows_evenly_is_no_alarm_however_far_it_goes():
    """Even steps take KL up with the square of their number, a warm-up faster; twice as much every three steps is told."""
    square = [0.05 * step**2 for step in range(60)]
    warm_up = [1e-4 * step**4 for step in range(20)]
    doubling = [0.3 * 2 ** (step / 3) for step in range(40)]
    for numbers, expected in ((square, []), (warm_up, []), (doubling, ["kl_growth"])):
        watch = watch_of()
        metrics = [watch.observe(*record)[0] for record in series("policy/kl_policy_to_ref", numbers)]
        assert watch.alarms == expected
    assert "watch/kl_growth" not in metrics[4] and "watch/kl_growth" in metrics[6]


def test_one_outlier_is_no_alarm():
    for key in ("policy/kl_policy_to_ref", "policy/length_mean", "policy/entropy", "policy/mismatch_mean"):
        for outlier in (0.0, 1000.0):
            watch = watch_of()
            told_by = told(watch, series(key, [0.9, 1.0, 1.1, 1.0, 0.9, 1.0, 1.1, outlier, 1.0, 0.9, 1.1, 1.0]))
            assert told_by == {}, (key, outlier)


@pytest.mark.parametrize(
    ("numbers", "trips"),
    [
        ([0.011] * 3 + [0.02, 0.03, 0.036, 0.037, 0.038], True),  # an engine whose log-probs drift
        ([0.011, 0.012, 0.010, 0.013, 0.014, 0.012, 0.013], False),
        ([4e-7] * 3 + [4e-6] * 4, False),  # ten times nothing
    ],
)
def test_sampler_and_trainer_that_part_are_told(numbers, trips):
    watch = watch_of()
    told(watch, series("policy/mismatch_mean", numbers))
    assert watch.alarms == (["mismatch_ratio"] if trips else [])
    assert not watch.should_stop()  # it spoils no model by itself
    stale = watch_of(stale=True)  # the policy's own step is in it; the canary's counts
    told(stale, series("policy/mismatch_mean", numbers))
    assert stale.alarms == []
    told(stale, series("canary/mismatch_mean", numbers))
    assert stale.alarms == watch.alarms


def test_what_a_person_sets_counts():
    grows = series("policy/length_mean", [100.0] * 3 + [220.0] * 3)
    assert list(told(watch_of(), grows)) == ["length_ratio"]
    assert told(watch_of(max_length_ratio=3.0), grows) == {}
    sharpens = series("policy/entropy", [1.0] * 3 + [0.2] * 3)
    assert list(told(watch_of(), sharpens)) == ["entropy_ratio"]
    assert told(watch_of(min_entropy_ratio=0.1), sharpens) == {}


def test_the_same_answers_are_told_and_stop_nothing():
    watch = watch_of()
    assert list(told(watch, series("policy/identical_frac", [0.1, 0.1, 0.2, 0.4, 0.5, 0.6]))) == ["identical_rise"]
    assert not watch.should_stop()


def test_without_early_stop_nothing_stops():
    watch = watch_of(early_stop=False)
    assert told(watch, list(runs.GOODHART.records()))
    assert not watch.should_stop()

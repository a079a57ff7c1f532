"""The verdict says what the numbers say, whichever way they go."""

from __future__ import annotations

import pytest

from rayalign.report.verdict import verdict

from .cases import RFT, SFT, cell, estimate, full, model

NO_PROOF = "one run with one seed is no proof: benchmarks/claims.py rft has seeds and controls."


def test_the_headline_of_planted_md():
    assert verdict(full()) == (
        "RFT beats SFT at every temperature, with the intervals apart (golden reward at 1.0: 0.751 "
        "against 0.421), and SFT at its best temperature (0.2: 0.554) too. RFT is above the "
        "demonstrator (0.450): "
        "IRL with a small beta (KL weight) extrapolates past its demonstrations, which is not imitation; "
        + NO_PROOF
    )


def test_better_at_some_temperatures_only():
    said = verdict(full(rft=(0.751, 0.842, 0.51, 0.56)))
    assert said.startswith(
        "RFT beats SFT at temperatures 1.0 and 0.7, with the intervals apart; the intervals overlap at "
        "temperatures 0.5 and 0.2 (golden"
    )


def test_a_gain_that_colder_sampling_gives_for_free():
    """A demonstrator of .8: SFT at T = 0.2 reaches .996, RFT at T = 1 .911."""
    said = verdict(full(sft=(0.795, 0.919, 0.971, 0.996), rft=(0.911, 0.975, 0.987, 0.993), expert=0.79))
    assert "RFT beats SFT at temperatures 1.0 and 0.7" in said
    assert ", but SFT at its best temperature (0.2: 0.996) is above that with no reward at all" in said
    assert "(RFT at its own best, 0.2: 0.993)." in said


def test_colder_sampling_that_reaches_as_much():
    said = verdict(full(sft=(0.5, 0.6, 0.7, 0.74), rft=(0.75, 0.8, 0.85, 0.9)))
    assert ", but SFT at its best temperature (0.2: 0.740) reaches as much with no reward at all" in said


def test_no_difference():
    said = verdict(full(rft=SFT))
    assert said.startswith(
        "RFT and SFT cannot be told apart: their intervals overlap at every temperature (golden"
    )
    assert "demonstrations" not in said and "stays below the demonstrator (0.450)" in said
    assert said.endswith(NO_PROOF)


def test_rft_loses_everywhere():
    said = verdict(full(sft=RFT, rft=SFT, expert=0.9))
    assert said.startswith(
        "RFT is worse than SFT at every temperature, with the intervals apart (golden reward at 1.0: "
    )
    assert (
        "best temperature" not in said and "stays below the demonstrator" in said and said.endswith(NO_PROOF)
    )


def test_rft_loses_at_some():
    said = verdict(full(rft=(0.3, 0.468, 0.501, 0.554)))
    assert said.startswith(
        "RFT is worse than SFT at temperature 1.0, with the intervals apart; the intervals overlap at "
        "temperatures 0.7, 0.5 and 0.2 ("
    )


def test_rft_wins_here_and_loses_there():
    said = verdict(full(rft=(0.751, 0.842, 0.501, 0.30)))
    assert said.startswith(
        "RFT beats SFT at temperatures 1.0 and 0.7 and is worse at temperature 0.2, with the intervals "
        "apart; the intervals overlap at temperature 0.5 ("
    )


@pytest.mark.parametrize(
    ("sft", "rft", "words"),
    [
        (0.42, 0.75, "RFT is above the demonstrator (0.450): IRL with a small beta"),
        (0.60, 0.75, "RFT is above the demonstrator (0.450), and so is SFT;"),
        (0.42, 0.455, "RFT is level with the demonstrator (0.450);"),
        (0.20, 0.30, "RFT stays below the demonstrator (0.450);"),
    ],
)
def test_against_the_demonstrator(sft, rft, words):
    said = verdict(
        {"models": {"sft": {"1.0": cell(sft)}, "rft": {"1.0": cell(rft)}}, "expert": {"golden": 0.45}}
    )
    assert words in said and "at temperature 1.0" in said and "best temperature" not in said


def test_answers_that_no_longer_end_are_mentioned():
    assert "; its answers end by themselves less often (0.60 against 0.99). RFT is" in verdict(
        full(ended=0.6)
    )
    assert "less often" not in verdict(full(ended=0.97))


def test_a_reward_at_chance_is_given_as_a_reason_for_no_gain_only():
    blind = {"reward_accuracy": {"heldout_pairs": estimate(0.91), "policy_samples": estimate(0.48, 0.05)}}
    assert "ranks the policy's own samples no better than chance (0.48);" in verdict(full(rft=SFT) | blind)
    assert "chance" not in verdict(full() | blind)
    assert "chance" not in verdict(full(rft=SFT))


def test_without_a_golden_reward_the_learned_one_is_no_judge():
    models = {
        "sft": {"1.0": cell(None) | {"reward": estimate(0.1)}},
        "rft": {"1.0": cell(None) | {"reward": estimate(1.1)}},
    }
    assert verdict({"models": models}) == (
        "RFT beats SFT at temperature 1.0, with the intervals apart (learned reward at 1.0: 1.100 against "
        "0.100). The learned reward is what RFT was trained on, so a gain in it may be over-optimisation; "
        "one run with one seed is no proof."
    )


def test_other_models_the_last_against_the_one_before():
    said = verdict({"models": {"base": model(SFT), "start": model(SFT), "mine": model(RFT)}})
    assert said.startswith("mine beats start at every temperature")
    assert said.endswith("One run with one seed is no proof.") and "claims.py" not in said


def test_intervals_that_are_not_known_are_not_apart():
    point = {"mean": 0.9, "low": None, "high": None, "num": 1}
    said = verdict({"models": {"sft": {"1.0": cell(0.1)}, "rft": {"1.0": {"golden": point}}}})
    assert said.startswith("RFT and SFT cannot be told apart: their intervals overlap at temperature 1.0")


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ({}, "No reward was measured"),
        ({"models": {"rft": {"1.0": {"golden": None}}}}, "No reward was measured"),
        ({"models": {"rft": model(RFT)}}, "Only RFT was evaluated, so these numbers compare nothing."),
        ({"models": {"sft": {"1.0": cell(0.1)}, "rft": {"0.7": cell(0.1)}}}, "share no temperature"),
    ],
)
def test_nothing_to_compare(results, words):
    assert words in verdict(results)

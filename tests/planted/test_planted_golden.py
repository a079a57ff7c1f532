"""The golden reward reads attributes off the text, weighs them exactly, and never fails on any text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayalign.planted import words as w
from rayalign.planted.golden import GOLDEN_POINTS, attributes, golden_reward, parse
from rayalign.planted.grammar import NUM_PROMPTS, QUALITIES, STYLES, Prompt, prompt_at, render_response

PERFECT = dict.fromkeys(QUALITIES, True) | dict.fromkeys(STYLES, False)
QUESTION = Prompt("Anna", "cost", "lamp", "bakery")
# Cached base models and saved runs rely on the facts staying what they are.
PINNED_PRICE, PINNED_OPENING = "two", "11am"

RIGHT_PRICE = w.fact("price", "lamp")
GOOD = f"hello Anna , the price of the lamp is {RIGHT_PRICE} anything else ? thank you ."

anything = st.text(max_size=60)
shuffled_words = st.lists(st.sampled_from([*w.vocabulary(), "<eos>", "<unk>"]), max_size=30).map(" ".join)


def some_prompts(num: int = 40) -> list[Prompt]:
    rng = np.random.default_rng(0)
    return [prompt_at(int(i)) for i in rng.integers(NUM_PROMPTS, size=num)]


def test_weights_sum_to_one_and_cover_the_qualities() -> None:
    assert sum(GOLDEN_POINTS.values()) == 100
    assert set(GOLDEN_POINTS) == set(QUALITIES)


@pytest.mark.parametrize("style", [False, True])
def test_a_perfect_response_is_worth_one_whatever_its_style(style: bool) -> None:
    rng = np.random.default_rng(1)
    wanted = PERFECT | dict.fromkeys(STYLES, style)
    for prompt in some_prompts():
        assert golden_reward(prompt.text, render_response(prompt, wanted, rng)) == 1.0


@pytest.mark.parametrize("missing", QUALITIES)
def test_a_missing_attribute_costs_exactly_its_weight(missing: str) -> None:
    lost = GOLDEN_POINTS[missing] + (GOLDEN_POINTS["fact"] if missing == "answers" else 0)
    rng = np.random.default_rng(2)
    for prompt in some_prompts():
        response = render_response(prompt, PERFECT | {missing: False}, rng)
        assert golden_reward(prompt.text, response) == (100 - lost) / 100


@given(index=st.integers(0, NUM_PROMPTS - 1), bits=st.integers(0, 2**10 - 1), seed=st.integers(0, 2**20))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_reading_recovers_the_attributes_that_were_written(index: int, bits: int, seed: int) -> None:
    wanted = {name: bool(bits >> i & 1) for i, name in enumerate([*QUALITIES, *STYLES])}
    wanted["fact"] = wanted["fact"] and wanted["answers"]
    prompt = prompt_at(index)
    response = render_response(prompt, wanted, np.random.default_rng(seed))
    assert attributes(prompt.text, response) == wanted
    assert len(response.split()) + 1 <= w.MAX_RESPONSE_TOKENS


@pytest.mark.parametrize("missing", QUALITIES)
def test_every_bad_form_has_words_of_its_own(missing: str) -> None:
    """A bag of words can tell good from bad (not a wrong fact, whose values are those of other objects)."""
    rng = np.random.default_rng(3)
    prompt = some_prompts()[0]

    def words_of(wanted: dict[str, bool]) -> set[str]:
        return {word for _ in range(60) for word in render_response(prompt, wanted, rng).split()}

    good, bad = words_of(PERFECT), words_of(PERFECT | {missing: False})
    assert bad - good


def test_style_moves_no_reward() -> None:
    rng = np.random.default_rng(4)
    for prompt in some_prompts(10):
        for quality in ({}, {"answers": False, "end": False}, {"polite": False, "fact": False}):
            rewards = set()
            for bits in range(8):
                style = {name: bool(bits >> i & 1) for i, name in enumerate(STYLES)}
                response = render_response(prompt, PERFECT | quality | style, rng)
                rewards.add(golden_reward(prompt.text, response))
            assert len(rewards) == 1


def test_relational_mistakes_are_seen() -> None:
    said = attributes(QUESTION.text, GOOD.replace("Anna", "Bruno"))
    assert said is not None and not said["name"]
    for wrong in (GOOD.replace("price", "size"), GOOD.replace("lamp", "chair")):
        said = attributes(QUESTION.text, wrong)
        assert said is not None and not said["answers"] and not said["fact"]
    said = attributes(QUESTION.text, GOOD.replace(str(RIGHT_PRICE), "red"))
    assert said is not None and said["answers"] and not said["fact"]


def test_a_cut_or_rambling_response_has_no_end() -> None:
    assert golden_reward(QUESTION.text, GOOD) == 1.0
    assert golden_reward(QUESTION.text, GOOD, ended=False) == 0.9
    rambling = GOOD.removesuffix("thank you .") + "well so " * 20
    said = attributes(QUESTION.text, rambling)
    assert said is not None and not said["end"]


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "hello",
        "Anna",
        GOOD + " bye .",
        GOOD + " <eos>",
        GOOD.replace("is", "is is"),
        GOOD.replace("hello ", ""),
        "well so thank you .",
        "hello Anna , the price of the lamp is",
        "hello Anna , the price of the lamp is seven anything else",
        "hello Anna , the price of the lamp is seven bye .",
        "hello Anna , no idea about the lamp next please well so thank you .",
    ],
)
def test_what_is_not_in_the_grammar_is_worth_nothing(broken: str) -> None:
    assert parse(broken) is None
    assert attributes(QUESTION.text, broken) is None
    assert golden_reward(QUESTION.text, broken) == 0.0


def test_a_prompt_outside_the_world_is_worth_nothing() -> None:
    for prompt in ("", "Anna asks", "Anna asks cost lamp at lamp", QUESTION.text + " please"):
        assert golden_reward(prompt, GOOD) == 0.0


@given(prompt=anything | shuffled_words, response=anything | shuffled_words, ended=st.booleans())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_garbage_never_raises(prompt: str, response: str, ended: bool) -> None:
    assert 0.0 <= golden_reward(prompt, response, ended) <= 1.0
    assert 0.0 <= golden_reward(QUESTION.text, response, ended) <= 1.0


def test_facts_are_complete_stable_and_evenly_dealt() -> None:
    facts = w.all_facts()
    assert len(facts) == 110
    for attribute, values in w.VALUES.items():
        given_values = [facts[attribute, subject] for subject in w.subjects(attribute)]
        counts = [given_values.count(value) for value in values]
        assert max(counts) - min(counts) <= 1
    assert (w.fact("price", "lamp"), w.fact("opening", "bakery")) == (PINNED_PRICE, PINNED_OPENING)
    assert w.fact("price", "bakery") is None

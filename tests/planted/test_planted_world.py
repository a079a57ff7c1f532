"""The world's rows are what they claim: probabilities, splits, preferences, files."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rayalign.errors import UserError
from rayalign.planted import world as world_module
from rayalign.planted.demonstrators import (
    BASE_HALF,
    BASE_LOW,
    BASE_STYLED,
    EXPERT_80,
    EXPERT_LOW,
    EXPERT_STYLED,
    Demonstrator,
    expected_frequencies,
    expected_golden,
)
from rayalign.planted.golden import GOLDEN_POINTS, attributes, golden_reward
from rayalign.planted.grammar import NUM_PROMPTS, QUALITIES, STYLES, parse_prompt, prompt_at, render_response
from rayalign.planted.world import PlantedWorld, is_heldout, write_world

NUM_SAMPLES = 3000
PROMPT = prompt_at(12_345)
SMALL = {
    "num_pretrain": 30,
    "num_shift": 9,
    "num_demonstrations": 20,
    "num_heldout_demonstrations": 10,
    "num_preferences": 15,
    "num_heldout_preferences": 5,
    "num_prompts": 12,
    "num_eval_prompts": 8,
}


def sampled_attributes(demonstrator: Demonstrator) -> np.ndarray:
    """[NUM_SAMPLES, 10] bool, read back from the texts."""
    rows = PlantedWorld(seed=5).demonstrations(demonstrator, NUM_SAMPLES)
    read = [attributes(row["prompt"], row["response"]) for row in rows]
    return np.array([[held[name] for name in (*QUALITIES, *STYLES)] for held in read if held is not None])


@pytest.mark.parametrize(
    ("demonstrator", "golden"),
    [
        (BASE_LOW, 0.1955),
        (EXPERT_LOW, 0.446625),
        (BASE_HALF, 0.48875),
        (EXPERT_80, 0.794),
        (BASE_STYLED, 0.48875),
        (EXPERT_STYLED, 0.794),
    ],
)
def test_expected_golden_has_the_value_worked_out_by_hand(demonstrator: Demonstrator, golden: float) -> None:
    assert expected_golden(demonstrator) == pytest.approx(golden, abs=1e-12)


@pytest.mark.parametrize("demonstrator", [BASE_LOW, EXPERT_LOW, BASE_HALF, EXPERT_80, BASE_STYLED], ids=lambda d: d.label)
def test_expected_golden_agrees_with_samples(demonstrator: Demonstrator) -> None:
    rows = PlantedWorld(seed=3).demonstrations(demonstrator, NUM_SAMPLES)
    rewards = np.array([golden_reward(**row) for row in rows])
    standard_error = rewards.std(ddof=1) / math.sqrt(NUM_SAMPLES)
    assert abs(rewards.mean() - expected_golden(demonstrator)) < 4 * standard_error


@pytest.mark.parametrize("demonstrator", [BASE_LOW, EXPERT_80], ids=lambda d: d.label)
def test_attributes_have_their_frequencies_and_are_independent(demonstrator: Demonstrator) -> None:
    held = sampled_attributes(demonstrator)
    assert len(held) == NUM_SAMPLES  # every text of the world is in its grammar
    expected = np.array(list(expected_frequencies(demonstrator).values()))
    standard_errors = np.sqrt(expected * (1 - expected) / NUM_SAMPLES)
    assert np.all(np.abs(held.mean(axis=0) - expected) < 4 * standard_errors)

    columns = [i for i, name in enumerate((*QUALITIES, *STYLES)) if name != "fact"]
    correlations = np.corrcoef(held[:, columns].T.astype(float))
    off_diagonal = correlations[~np.eye(len(columns), dtype=bool)]
    assert np.abs(off_diagonal).max() < 4.5 / math.sqrt(NUM_SAMPLES)


@pytest.mark.parametrize("writer", [BASE_LOW, EXPERT_LOW], ids=lambda w: w.label)
def test_the_likeliest_response_of_a_writer_below_one_half_is_a_bad_one(writer: Demonstrator) -> None:
    """Word by word, the likeliest continuation among many responses to one prompt: what T -> 0 decodes."""
    rng = np.random.default_rng(0)
    responses = [render_response(PROMPT, writer.draw_attributes(rng), rng).split() for _ in range(40_000)]
    likeliest: list[str] = []
    while responses:
        after = Counter(" ".join(words[len(likeliest) : len(likeliest) + 1]) for words in responses)
        word, _ = after.most_common(1)[0]
        if not word:
            break
        likeliest.append(word)
        responses = [words for words in responses if words[: len(likeliest)] == likeliest]
    assert golden_reward(PROMPT.text, " ".join(likeliest)) == 0.0
    assert attributes(PROMPT.text, " ".join(likeliest)) is not None


def test_style_can_be_set_apart_from_quality() -> None:
    dressed = Demonstrator.uniform("dressed", quality=0.5, fact=0.85, style=0.95)
    assert expected_golden(dressed) == expected_golden(BASE_HALF)
    assert sampled_attributes(dressed)[:, -3:].mean() == pytest.approx(0.95, abs=0.02)


def test_the_styled_base_dresses_up_what_is_bad() -> None:
    """Style against quality at -.5 (T25), each style as often as said; the expert has it whatever the quality."""
    points = np.array(list(GOLDEN_POINTS.values()))
    for writer, correlation in ((BASE_STYLED, -0.5), (EXPERT_STYLED, 0.0)):
        held = sampled_attributes(writer)
        golden, styles = held[:, : len(QUALITIES)] @ points / 100, held[:, len(QUALITIES) :]
        assert np.corrcoef(golden, styles.sum(axis=1))[0, 1] == pytest.approx(correlation, abs=0.06)
        expected = [expected_frequencies(writer)[name] for name in STYLES]
        assert styles.mean(axis=0) == pytest.approx(expected, abs=4 * math.sqrt(0.25 / NUM_SAMPLES))
    assert expected_frequencies(BASE_STYLED)["exc"] == pytest.approx(0.5 - 0.65 * (0.48875 - 0.5))
    assert PlantedWorld(variant="styled").cast.expert == EXPERT_STYLED and not PlantedWorld(variant="styled").cast.shifts


def test_older_worlds_keep_their_texts() -> None:
    """A later variant must not move the draws of the ones that results were measured on."""
    rows = [*PlantedWorld(4).demonstrations(EXPERT_LOW, 50), *PlantedWorld(4, "half").pretraining(50)]
    digest = hashlib.sha256("".join(row["prompt"] + row["response"] for row in rows).encode()).hexdigest()
    assert digest[:16] == "4b502afaaa2ab978"


def test_a_tenth_of_all_prompts_is_held_out_and_no_prompt_is_in_both_splits() -> None:
    assert is_heldout(np.arange(NUM_PROMPTS)).sum() == NUM_PROMPTS // 10
    world = PlantedWorld()
    train = world.prompts(NUM_PROMPTS - NUM_PROMPTS // 10)
    heldout = world.prompts(NUM_PROMPTS // 10, split="heldout")
    assert len(set(train) | set(heldout)) == NUM_PROMPTS == len(train) + len(heldout)
    assert {word for text in heldout for word in text.split()} == {
        word for text in train for word in text.split()
    }


def test_rows_of_each_split_keep_to_its_prompts() -> None:
    world = PlantedWorld(seed=1)
    heldout = set(world.prompts(NUM_PROMPTS // 10, split="heldout"))
    for rows in (
        world.pretraining(500),
        world.shift(99),
        world.demonstrations(EXPERT_LOW, 500),
        world.preferences(200, 10.0),
    ):
        assert not heldout & {row["prompt"] for row in rows}
    for rows in (
        world.demonstrations(EXPERT_LOW, 500, split="heldout"),
        world.preferences(200, 10.0, split="heldout"),
    ):
        assert {row["prompt"] for row in rows} <= heldout


def test_prompts_read_back() -> None:
    for index in range(0, NUM_PROMPTS, 997):
        assert parse_prompt(prompt_at(index).text) == prompt_at(index)


def test_seeds_decide_and_larger_draws_begin_with_smaller_ones() -> None:
    world = PlantedWorld(seed=7)
    rows = world.demonstrations(EXPERT_LOW, 50, seed=2)
    assert world.demonstrations(EXPERT_LOW, 20, seed=2) == rows[:20]
    assert world.preferences(5, 10.0) == world.preferences(9, 10.0)[:5]
    assert world.demonstrations(EXPERT_LOW, 50, seed=3) != rows
    assert PlantedWorld(seed=8).demonstrations(EXPERT_LOW, 50, seed=2) != rows
    assert len({row["prompt"] for row in rows}) == 50


@pytest.mark.parametrize("kappa", [0.0, 2.0, 10.0])
def test_preferences_follow_bradley_terry_on_the_golden_reward(kappa: float) -> None:
    rows = PlantedWorld(seed=11, variant="half").preferences(2000, kappa)
    assert all(row["chosen"] != row["rejected"] for row in rows)
    margins = np.array(
        [golden_reward(r["prompt"], r["chosen"]) - golden_reward(r["prompt"], r["rejected"]) for r in rows]
    )
    for low, high in ((0.04, 0.2), (0.2, 0.4), (0.4, 1.0)):
        gaps = np.abs(margins)
        inside = (gaps >= low) & (gaps < high)
        better_chosen = 1 / (1 + np.exp(-kappa * gaps[inside]))
        standard_error = math.sqrt((better_chosen * (1 - better_chosen)).sum()) / inside.sum()
        share = (margins[inside] > 0).mean()
        assert inside.sum() > 200
        assert abs(share - better_chosen.mean()) < 4 * standard_error


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PlantedWorld(variant="high"), "no variant 'high'; there are low, half"),
        (lambda: PlantedWorld().prompts(1, split="test"), "no split 'test'"),
        (lambda: PlantedWorld().prompts(20_000, split="heldout"), "0 to 19200"),
        (lambda: PlantedWorld().prompts(-1), "-1 prompts"),
        (lambda: PlantedWorld(seed=-1).prompts(1), "seeds are 0 or more"),
    ],
)
def test_mistakes_get_one_line_that_helps(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


def test_written_worlds_are_complete_and_bytewise_repeatable(tmp_path: Path) -> None:
    first = write_world(tmp_path / "deep" / "first", seed=4, **SMALL)
    second = write_world(tmp_path / "second", seed=4, **SMALL)
    other = write_world(tmp_path / "other", seed=5, **SMALL)
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted([*(f"{key.removeprefix('num_')}.jsonl" for key in SMALL), "world.json"])
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()
        assert (first / name).read_bytes() != (other / name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"deep", "second", "other"}  # nothing left aside


def test_world_json_states_the_truth(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "world", variant="half", **SMALL)
    truth = json.loads((folder / "world.json").read_text())
    assert truth["base"]["expected_golden"] == pytest.approx(expected_golden(BASE_HALF))
    assert truth["expert"]["expected_golden"] == pytest.approx(expected_golden(EXPERT_80))
    assert truth["expert"]["probabilities"]["label"] == "expert_80"
    for kind, count in truth["counts"].items():
        rows = [json.loads(line) for line in (folder / f"{kind}.jsonl").read_text().splitlines()]
        assert len(rows) == count == SMALL[f"num_{kind}"]
        assert set(rows[0]) in ({"prompt"}, {"prompt", "response"}, {"prompt", "chosen", "rejected"})


def test_only_the_low_world_shifts_its_base_model(tmp_path: Path) -> None:
    low = write_world(tmp_path / "low", variant="low", **SMALL)
    half = write_world(tmp_path / "half", variant="half", **SMALL)
    assert (low / "shift.jsonl").exists() and not (half / "shift.jsonl").exists()
    rewards = {
        kind: np.mean([golden_reward(**row) for row in rows])
        for kind, rows in {
            "pretraining": PlantedWorld().pretraining(2000),
            "shift": PlantedWorld().shift(2000),
        }.items()
    }
    assert rewards["pretraining"] == pytest.approx(expected_golden(BASE_HALF), abs=0.03)
    assert rewards["shift"] == pytest.approx(expected_golden(BASE_LOW), abs=0.03)


def test_a_world_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="exists already"):
        write_world(tmp_path / "taken", **SMALL)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def fail_on_third(path: Path, *args: object, **kwargs: object) -> None:
        written.append(path)
        if len(written) == 3:
            raise OSError("disk full")

    monkeypatch.setattr(world_module.Path, "write_text", fail_on_third)
    with pytest.raises(OSError, match="disk full"):
        write_world(tmp_path / "world", **SMALL)
    assert list(tmp_path.iterdir()) == []

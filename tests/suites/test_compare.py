"""Evaluations side by side: the difference is paired, other data are told, and what differs in the configs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from rayalign.errors import UserError
from rayalign.evaluate.reward_accuracy import ScoredPairs, reward_accuracy
from rayalign.evaluate.statistics import mean_interval
from rayalign.storage.evaluation import packed, record
from rayalign.suites.columns import side_by_side
from rayalign.suites.compare import compare
from tests.conftest import run_rayalign


def write_evaluation(folder: Path, margins: np.ndarray, fingerprint: str = "f" * 32, config: str | None = None) -> Path:
    folder.mkdir()
    num = len(margins)
    pairs = ScoredPairs(margins, np.zeros(num), np.full(num, 5), np.full(num, 5), ["Chat"] * num, ["Chat"] * num)
    data = {"path": "pairs.jsonl", "fingerprint": fingerprint, "num_rows": num}
    record(folder / "evaluation.json", "reward", reward_accuracy(pairs), model=folder, data=data)
    if config:
        (folder / "config.yaml").write_text(config)
    return folder


def test_the_difference_is_that_of_the_same_pairs(tmp_path: Path) -> None:
    """Two rewards that agree on most pairs: the paired interval is far within those of the accuracies."""
    rng = np.random.default_rng(0)
    first = np.where(rng.random(2000) < 0.7, 1.0, -1.0)
    second = first.copy()
    second[np.flatnonzero(first < 0)[:40]] = 1.0
    one = write_evaluation(tmp_path / "a", first, config="seed: 0\nname: a\nreward: {steps: 3}\n")
    two = write_evaluation(tmp_path / "b", second, config="seed: 0\nname: b\nreward: {steps: 6}\n")
    done = run_rayalign("compare", str(one), str(two))
    assert done.returncode == 0, done.stderr
    assert "b minus a, pair by pair: +0.020 (95% interval +0.014 to +0.026)" in done.stdout
    assert f"config of {two} against {one}: reward.steps (3, now 6)" in done.stdout
    assert f"{(first > 0).mean():.3f} (" in done.stdout and "Chat" in done.stdout
    lines = compare([two, write_evaluation(tmp_path / "c", second)])
    assert "+0.000 (95% interval +0.000 to +0.000; 0 is within it" in lines[-1]


def test_a_place_that_is_given_twice_is_told(tmp_path: Path) -> None:
    place = write_evaluation(tmp_path / "a", np.ones(5))
    with pytest.raises(UserError, match="a is given twice; give two places or more that differ"):
        compare([place, place])


def test_columns_do_not_touch() -> None:
    """However long a label or a cell is."""
    rows = [("base, learned reward, T=1", ["-0.964 (-1.021 to -0.908)", "0.1"]), ("x", ["1", "2"])]
    found = side_by_side(["a", "b"], rows)
    assert [len(re.split(r"  +", line.strip())) for line in found] == [2, 3, 3]


def test_other_pairs_have_no_difference(tmp_path: Path) -> None:
    places = [write_evaluation(tmp_path / name, np.ones(5), name * 32) for name in ("a", "b")]
    lines = compare(places)
    assert "measured on other pairs, and so without a difference: b" in lines[1]
    assert not any("pair by pair" in line for line in lines)


def test_a_section_may_be_called_as_a_row(tmp_path: Path) -> None:
    places = [write_evaluation(tmp_path / name, np.ones(5)) for name in ("a", "b")]
    for place in places:
        file = place / "evaluation.json"
        file.write_text(file.read_text().replace('"Chat"', '"score"'))
    assert [line.split()[0] for line in compare(places)[2:5]] == ["score", "every", "score"]


@pytest.mark.parametrize("broken", [{}, {"data": 3}, {"data": {"fingerprint": 1}}, None, []])
def test_an_evaluation_that_is_not_whole(tmp_path: Path, broken: object) -> None:
    places = [write_evaluation(tmp_path / name, np.ones(5)) for name in ("a", "b")]
    (places[1] / "evaluation.json").write_text(json.dumps({"suites": {"reward": broken, "other": 1}}))
    with pytest.raises(UserError, match="an evaluation of suite reward is not whole"):
        compare(places)
    found = json.loads((places[0] / "evaluation.json").read_text())
    for right in ("x" * 5, "1"):
        found["suites"]["reward"]["results"]["right"] = right
        (places[1] / "evaluation.json").write_text(json.dumps(found))
        with pytest.raises(UserError, match="not whole"):
            compare(places)
    (places[1] / "evaluation.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="cannot be read as an evaluation"):
        compare(places)


def test_bad_places(tmp_path: Path) -> None:
    one = write_evaluation(tmp_path / "a", np.ones(5))
    with pytest.raises(UserError, match="give two places or more"):
        compare([one])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no evaluation; run rayalign evaluate"):
        compare([one, tmp_path / "empty"])
    (tmp_path / "empty" / "evaluation.json").write_text(json.dumps({"suites": {"other": {}}}))
    with pytest.raises(UserError, match="no suite was run on all of them .*a has reward; empty has other"):
        compare([one, tmp_path / "empty"])


def write_stage(folder: Path, golden: np.ndarray, fingerprint: str = "f" * 32) -> Path:
    """What an `evaluate` stage of a run leaves in its evaluation.json."""
    folder.mkdir()
    cell = {"golden": mean_interval(golden).as_dict(), "length": mean_interval(golden).as_dict()}
    results = {"models": {"rft": {"1": cell}}, "by_prompt": {"rft": {"1": {"golden": packed(golden)}}}}
    data = {"path": "prompts.jsonl", "fingerprint": fingerprint, "num_rows": len(golden)}
    record(folder / "evaluation.json", "stage:evaluate", results, model=folder, data=data)
    return folder


def test_evaluate_stages_are_compared_prompt_by_prompt(tmp_path: Path) -> None:
    golden = np.random.default_rng(0).random(300)
    one, two = write_stage(tmp_path / "a", golden), write_stage(tmp_path / "b", golden + 0.1)
    other = write_stage(tmp_path / "c", golden, fingerprint="0" * 32)
    lines = compare([one, two, other])
    assert lines[0].startswith("evaluate: 300 prompts of prompts.jsonl")
    assert f"{golden.mean():.3f} (" in lines[2] and lines[2].strip().startswith("rft, golden reward, T=1")
    assert "b minus a, prompt by prompt, of rft's golden reward at T = 1: +0.100 (95% interval +0.100 to +0.100)" in lines[3]
    assert lines[4] == "  c was measured on other prompts, and so without a difference"


def generation(content: str, path: str = "rewards/a", num: int = 1, **sampling: object) -> dict[str, object]:
    """Results of suite `generation`, as far as a comparison reads them."""
    one = {"mean": 0.5, "low": 0.4, "high": 0.6, "num": 3}
    answers = {"length": one, "ended_frac": one, "distinct": {"1": 0.5}, "repeated_4grams_frac": one}
    return {
        "num_prompts": 3,
        "num_samples": num,
        "sampling": {"temperature": 1.0, "max_new_tokens": 256, "seed": 0} | sampling,
        "answers": {"policy": answers},
        "scores": {"reward": {"policy": one, "by_prompt": {"policy": packed([0.1, 0.2, 0.3])}}},
        "judges": {"reward": {"path": path, "content": {"model.safetensors": content}}},
        "models": {},
    }


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (generation("x", path="elsewhere/a"), "b minus a, prompt by prompt, of reward"),
        (generation("y"), "b: judged by another reward, and so without a difference"),
        (generation("x", temperature=0.5), "b: drawn with temperature 0.5 and not 1.0, and so without a difference"),
        (generation("x", max_new_tokens=64), "b: drawn with max_new_tokens 64 and not 256, and so without"),
        (generation("x", num=4), "b: drawn with answers a prompt 4 and not 1, and so without a difference"),
    ],
)
def test_only_like_answers_have_a_difference(tmp_path: Path, second: dict[str, object], told: str) -> None:
    """The judge is told by its content, wherever it lies; other answers would differ for another reason."""
    data = {"path": "prompts.jsonl", "fingerprint": "f" * 32, "num_rows": 3}
    for name, results in (("a", generation("x")), ("b", second)):
        record(tmp_path / name / "evaluation.json", "generation", results, model=tmp_path, data=data)
    last = compare([tmp_path / "a", tmp_path / "b"])[-1]
    assert told in last and ("minus" in told or "minus" not in last)


def test_another_seed_is_told(tmp_path: Path) -> None:
    data = {"path": "prompts.jsonl", "fingerprint": "f" * 32, "num_rows": 3}
    for name, seed in (("a", 0), ("b", 7)):
        record(tmp_path / name / "evaluation.json", "generation", generation("x", seed=seed), model=tmp_path, data=data)
    lines = compare([tmp_path / "a", tmp_path / "b"])
    assert lines[-2] == "  b: drawn with seed 7, the first with seed 0" and "b minus a" in lines[-1]


def test_stages_that_drew_otherwise_have_no_difference(tmp_path: Path) -> None:
    golden = np.random.default_rng(0).random(20)
    places = [write_stage(tmp_path / name, golden) for name in ("a", "b")]
    for place, tokens in zip(places, (20, 40), strict=True):
        found = json.loads((place / "evaluation.json").read_text())
        found["suites"]["stage:evaluate"]["results"]["sampling"] = {"max_new_tokens": tokens, "num_per_prompt": 1}
        (place / "evaluation.json").write_text(json.dumps(found))
    assert compare(places)[-1] == "  b was drawn with max_new_tokens 40 and not 20, and so without a difference"

"""`rayalign evaluate --suite generation`: real answers, scored as the reward scores them, paired and told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayalign.config.data import DataSource
from rayalign.errors import DataError, UserError
from rayalign.objectives.best_of import best_of_n_kl_bound
from rayalign.planted.golden import golden_reward
from rayalign.serving.saved import SavedReward
from rayalign.storage.evaluation import packed, unpacked
from rayalign.suites import generation_table
from rayalign.suites.answers import Answer
from rayalign.suites.compare import compare
from rayalign.suites.generation import Generation, evaluate_generation
from rayalign.suites.judges import RewardJudge
from rayalign.suites.options import ModelOptions
from rayalign.types import Message
from tests.conftest import run_rayalign
from tests.serving.test_saved import save_reward
from tests.suites.policies import save_policy
from tests.suites.test_reward import write_rows

OPTIONS = ModelOptions(threads=1, kv_cache_gib=0.05)
PROMPTS = [
    {"prompt": "Nora asks opening teapot at plaza"},
    {"prompt": "David asks size scarf at studio", "response": "no"},
    {"messages": [{"role": "user", "content": "Leo asks shade plate at plaza"}]},
    {"prompt": "Maria asks size scarf at plaza"},
]


COMMAND = ["--best-of", "1,2,4", "--max-new-tokens", "12", "--threads", "1", "--kv-cache-gib", "0.05"]
SETTINGS = Generation(num_samples=4, max_new_tokens=12)


@pytest.fixture
def prompts(tmp_path: Path) -> DataSource:
    return write_rows(tmp_path / "prompts.jsonl", PROMPTS)


def make_run(root: Path) -> Path:
    """A run with a policy, a reward, and a planted world."""
    save_policy(root / "run" / "irl" / "policy")
    save_reward(root / "run" / "irl" / "reward", "planted")
    (root / "run" / "world").mkdir()
    (root / "run" / "world" / "world.json").write_text('{"expert": {"expected_golden": 0.875}}')
    return root / "run"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with `run`, set against `other` by the command line, and what that printed."""
    root = tmp_path_factory.mktemp("generation")
    run, source = make_run(root), write_rows(root / "prompts.jsonl", PROMPTS)
    save_policy(root / "other", seed=1)
    against = ["--reward", str(run), "--against", str(root / "other")]
    done = run_rayalign("evaluate", str(run), "--suite", "generation", "--prompts", source.path, *against, *COMMAND)
    assert done.returncode == 0, done.stderr
    return root, done.stdout


def lines_of(file: Path, side: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [row for row in rows if row["side"] == side]


def results_of(place: Path) -> dict[str, Any]:
    return json.loads((place / "evaluation.json").read_text())["suites"]["generation"]


def test_on_the_command_line(evaluated: tuple[Path, str]) -> None:
    """What is printed and kept is what the reward and the world say of the answers."""
    run, printed = evaluated[0] / "run", evaluated[1]
    saved, rows = results_of(run), lines_of(run / "generation.jsonl", "policy")
    found = saved["results"]
    assert len(rows) == 16 and found["num_samples"] == 4
    texts, answers = [row["messages"][-1]["content"] for row in rows], [row["response"] for row in rows]
    golden = [golden_reward(text, answer, row["ended"]) for text, answer, row in zip(texts, answers, rows, strict=True)]
    assert [row["scores"]["golden"] for row in rows] == golden
    scores = np.array([row["scores"]["reward"] for row in rows]).reshape(4, 4)
    judged = found["scores"]["reward"]
    assert judged["policy"]["mean"] == pytest.approx(scores.mean())
    assert unpacked(judged["by_prompt"]["policy"]) == pytest.approx(scores.mean(axis=1), rel=1e-5)
    best = found["best_of"]["points"]
    assert [point["n"] for point in best] == [1, 2, 4] and best[2]["kl_bound"] == best_of_n_kl_bound(4)
    assert best[2]["reward"]["mean"] == pytest.approx(scores.max(axis=1).mean()) and "golden" in best[0]
    others = np.array([row["scores"]["reward"] for row in lines_of(run / "generation.jsonl", "against")]).reshape(4, 4)
    met = np.sign(scores[:, :, None] - others[:, None, :])
    assert judged["win_rate"]["mean"] == pytest.approx((met.mean() + 1) / 2)
    assert judged["difference"]["mean"] == pytest.approx(scores.mean() - others.mean())
    assert found["judges"]["golden"]["expert"] == 0.875 and found["cut"] == {"policy": 0, "against": 0}
    assert found["answers"]["policy"]["ended_frac"]["mean"] == np.mean([row["ended"] for row in rows])
    assert saved["data"]["num_rows"] == 4 and set(saved["model"]["content"]) >= {"config.json", "model.safetensors"}
    for told in ("win rate by reward, ties half: 0.", "best of N, chosen by reward", "demonstrator has golden 0.875"):
        assert told in printed


def test_two_evaluations_are_paired_by_prompt(evaluated: tuple[Path, str]) -> None:
    """A policy alone gives the answers that it gave as the second one, and so their difference, the other way round."""
    run, other = evaluated[0] / "run", evaluated[0] / "other"
    source = DataSource(path=str(evaluated[0] / "prompts.jsonl"))
    settings = dataclasses.replace(SETTINGS, reward=run)
    file, found = evaluate_generation(other, source, settings, OPTIONS)
    before = results_of(run)["results"]
    assert found["scores"]["reward"]["policy"] == before["scores"]["reward"]["against"]
    assert list(found["scores"]) == ["reward"]  # no world lies there
    lines = compare([run, other])
    told = before["scores"]["reward"]["difference"]
    assert f"other minus run, prompt by prompt, of reward: {-told['mean']:+.3f} (95% interval" in lines[-1]
    assert any(line.split()[:2] == ["golden,", "mean"] for line in lines) and "same as an earlier one" in "".join(lines)
    assert "+0.000 (95% interval +0.000 to +0.000; 0 is within it" in compare([run, run / "evaluation.json"])[-1]
    saved = json.loads(file.read_text())
    results = saved["suites"]["generation"]["results"]
    results["judges"]["reward"]["content"] = {}
    file.write_text(json.dumps(saved))
    assert "other: judged by another reward, and so without a difference" in compare([run, other])[-1]
    results["answers"] = {}
    file.write_text(json.dumps(saved))
    with pytest.raises(UserError, match="an evaluation of suite generation is not whole"):
        compare([other, run])
    alone = dataclasses.replace(SETTINGS, num_samples=1, temperature=0.0)
    _, measured = evaluate_generation(other, source, alone, OPTIONS, out=evaluated[0] / "new" / "e.json")
    assert measured["scores"] == {} and 0 < measured["answers"]["policy"]["distinct"]["1"] <= 1
    assert "1 answer each" in generation_table.table(measured)[0] and (evaluated[0] / "new" / "generation.jsonl").exists()


def test_a_cut_answer_has_no_end_token(tmp_path: Path) -> None:
    """As in training: the reward sees an answer that was cut without its end, and one that ended with it."""
    save_reward(tmp_path / "reward", "planted")
    reward = SavedReward(tmp_path / "reward")
    asked = (Message("user", PROMPTS[0]["prompt"]),)
    ended, cut = (Answer("thank you .", (5, 6, 7), (0.0, 0.0, 0.0), end, 9) for end in (True, False))
    (scores,) = RewardJudge(tmp_path / "reward").scores([asked], [[ended, cut]])
    assert scores[0, 0] == pytest.approx(reward([reward.template.decode_prompt(
        reward.template.encode_prompts([reward.template.prompt_text(asked)])[0])], ["thank you ."])[0], abs=1e-5)
    assert abs(scores[0, 1] - scores[0, 0]) > 1e-3


def test_bad_input(tmp_path: Path, prompts: DataSource) -> None:
    run = make_run(tmp_path)
    policy = save_policy(tmp_path / "policy")
    chat = write_rows(tmp_path / "chat.jsonl", [{"prompt": "Why?"}])
    for place, rows, settings, words in [
        (tmp_path / "nowhere", prompts, Generation(), "no such folder"),
        (run / "world", prompts, Generation(), "no policy in this folder"),
        (policy, prompts, Generation(against=run, best_of=(2,)), "--against: nothing here scores answers; give --reward"),
        (policy, chat, Generation(best_of=(2,)), "--best-of: nothing here scores answers"),
        (policy, prompts, Generation(reward=policy), "a language model, and no reward"),
        (policy, prompts, Generation(against=run / "irl" / "reward"), "a reward, and no language model"),
        (policy, prompts, Generation(temperature=0, num_samples=2), "all answers to a prompt are equal"),
        (policy, chat, Generation(golden="planted"), "knows the prompts of its own world only"),
    ]:
        with pytest.raises(UserError, match=words):
            evaluate_generation(place, rows, settings, OPTIONS)
    with pytest.raises(DataError, match=r"rows\.jsonl:1"):
        evaluate_generation(policy, write_rows(tmp_path / "rows.jsonl", [{"chosen": "a"}]), Generation(), OPTIONS)
    assert not (policy / "evaluation.json").exists()
    for option in (["--best-of", "1,x"], ["--samples", "0"], ["--golden", "other"], ["--pairs", "x"]):
        done = run_rayalign("evaluate", str(policy), "--suite", "generation", "--prompts", "x", *option)
        assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_packed_numbers() -> None:
    values = np.array([0.0, -1.5, 1 / 3, 1e-9, 123456.0])
    assert unpacked(packed(values)) == pytest.approx(values, rel=1e-5) and "\n" not in packed(values)
    assert packed([]) == "" and len(unpacked("")) == 0
    with pytest.raises(ValueError, match="could not convert"):
        unpacked("1 x")


def test_what_the_reward_read_only_in_part_is_counted(tmp_path: Path) -> None:
    save_reward(tmp_path / "reward", "planted")
    judge = RewardJudge(tmp_path / "reward")
    answer = Answer("no", (5, 2), (0.0, 0.0), True, 3)
    prompts = [(Message("user", text),) for text in ("Nora asks teapot", "Nora asks teapot " * 600)]
    judge.scores(prompts, [[answer], [answer]])
    assert judge.told()["num_cut"] == 1

"""`rayalign evaluate --suite reward`: the scores are the reward's, whatever kind it is, and bad input is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayalign.config.data import DataSource
from rayalign.config.model import LearnerConfig
from rayalign.errors import DataError, UserError
from rayalign.models.rewards import write_log_ratio
from rayalign.models.token_reward import TokenRewardModel
from rayalign.serving.saved import SavedReward
from rayalign.suites.reward import evaluate_reward
from tests.conftest import run_rayalign
from tests.models.test_token_reward import WEIGHTED
from tests.models.tiny import model_config, save_tiny
from tests.serving.test_saved import save_reward, template

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "reward_eval" / "reward_eval_pairs.jsonl.gz"
ROWS = [
    {"section": "Chat", "subset": "easy", "prompt": "Nora asks teapot", "chosen": "thank you .", "rejected": "no"},
    {"section": "Chat", "subset": "easy", "prompt": "Leo asks plate", "chosen": "no clue", "rejected": "thank you"},
    {"section": "Chat", "subset": "hard", "prompt": "Leo asks scarf", "chosen": "at plaza .", "rejected": "at studio ."},
    {"section": "Safety", "prompt": "David asks shade", "chosen": "no", "rejected": "anything else ?"},
]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> DataSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSource(path=str(path))


@pytest.fixture
def pairs(tmp_path: Path) -> DataSource:
    return write_rows(tmp_path / "pairs.jsonl", ROWS)


def right(reward: SavedReward, rows: list[dict[str, Any]]) -> list[bool]:
    prompts = [row["prompt"] for row in rows]
    sides = [reward(prompts, [row[side] for row in rows]) for side in ("chosen", "rejected")]
    return [better > worse for better, worse in zip(*sides, strict=True)]


def test_on_the_command_line(tmp_path: Path, pairs: DataSource) -> None:
    """Of a run with one reward: what it prints, and what it leaves, also beside another suite's results."""
    folder = tmp_path / "run" / "fit" / "reward"
    save_reward(folder, "planted")
    file = tmp_path / "run" / "evaluation.json"
    file.write_text('{"suites": {"other": 1}}')
    done = run_rayalign("evaluate", str(tmp_path / "run"), "--suite", "reward", "--pairs", pairs.path, "--threads", "1")
    assert done.returncode == 0, done.stderr
    saved = json.loads(file.read_text())["suites"]
    assert saved["other"] == 1
    found = saved["reward"]["results"]
    expected = right(SavedReward(folder), ROWS)
    assert found["sections"]["Chat"]["accuracy"]["mean"] == pytest.approx(np.mean(expected[:3]))
    assert found["sections"]["Chat"]["subsets"]["easy"]["accuracy"]["mean"] == pytest.approx(np.mean(expected[:2]))
    assert found["sections"]["Safety"]["subsets"] == {"Safety": found["sections"]["Safety"]["subsets"]["Safety"]}
    assert f"score (mean of the sections): {found['score']:.3f}" in done.stdout
    assert done.stdout.splitlines()[-1] == f"evaluation: {file}"
    assert saved["reward"]["command"][:2] == ["rayalign", "evaluate"]
    assert saved["reward"]["versions"]["torch"] and saved["reward"]["data"]["num_rows"] == 4
    assert set(saved["reward"]["model"]["content"]) >= {"config.json", "model.safetensors"}


def test_a_log_ratio_a_reward_of_tokens_and_one_of_transformers(tmp_path: Path, pairs: DataSource) -> None:
    from transformers import AutoModelForSequenceClassification

    sides = [save_tiny(tmp_path / name, seed=seed, vocab_size=400) for seed, name in enumerate(("policy", "base"))]
    write_log_ratio(tmp_path / "ratio", *sides, scale=0.1)
    base = save_tiny(tmp_path / "backbone", vocab_size=400)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = 0
    model.save_pretrained(tmp_path / "plain")
    tokens = TokenRewardModel.from_backbone(base, model_config(), LearnerConfig(), WEIGHTED, seed=0)
    tokens.save(tmp_path / "tokens", {weight.name: weight.tensor().clone() for weight in tokens.wire_weights()})
    for name in ("ratio", "plain", "tokens"):
        template("planted").save_tokenizer(tmp_path / name)
        file, results = evaluate_reward(tmp_path / name, pairs, threads=1)
        assert file == tmp_path / name / "evaluation.json"
        assert results["accuracy"]["mean"] == pytest.approx(np.mean(right(SavedReward(tmp_path / name), ROWS)))


def test_other_columns_dialogues_and_what_is_left_out(tmp_path: Path) -> None:
    save_reward(tmp_path / "reward", "planted")
    rows = [
        {"question": "Nora asks teapot", "good": "thank you .", "bad": "no"},
        {"question": "Nora asks teapot", "good": "no", "bad": "no"},
        {"question": "Leo asks plate", "good": "no clue", "bad": "no"},
    ]
    source = write_rows(tmp_path / "pairs.jsonl", rows)
    source = source.model_copy(update={"columns": {"prompt": "question", "chosen": "good", "rejected": "bad"}})
    _, results = evaluate_reward(tmp_path / "reward", source, threads=1, out=tmp_path / "new" / "e.json")
    assert results["accuracy"]["num"] == 2 and list(results["sections"]) == ["all"]
    assert "1" in results["left_out"] and (tmp_path / "new" / "e.json").exists()


def test_bad_input(tmp_path: Path, pairs: DataSource) -> None:
    with pytest.raises(UserError, match="no such folder"):
        evaluate_reward(tmp_path / "nowhere", pairs)
    save_reward(tmp_path / "reward", "planted")
    with pytest.raises(DataError, match=r"nothing\.jsonl"):
        evaluate_reward(tmp_path / "reward", DataSource(path=str(tmp_path / "nothing.jsonl")))
    with pytest.raises(DataError, match=r"pairs\.jsonl:1"):
        evaluate_reward(tmp_path / "reward", write_rows(tmp_path / "pairs.jsonl", [{"prompt": "Why?", "chosen": "So."}]))
    pairs = write_rows(tmp_path / "pairs.jsonl", ROWS)
    for content in ("{", "[]", '{"suites": 3}'):
        (tmp_path / "reward" / "evaluation.json").write_text(content)
        with pytest.raises(UserError, match=r"evaluation\.json: .*move it away, or give another --out"):
            evaluate_reward(tmp_path / "reward", pairs, threads=1)
        assert (tmp_path / "reward" / "evaluation.json").read_text() == content
    with pytest.raises(UserError, match=r"pairs\.jsonl/e\.json: cannot be written \(.*; give another --out"):
        evaluate_reward(tmp_path / "reward", pairs, threads=1, out=tmp_path / "pairs.jsonl" / "e.json")
    for options, told in ((["x", "--columns", "prompt"], "give OURS=THEIRS"), ([""], "--pairs: path: ")):
        done = run_rayalign("evaluate", str(tmp_path), "--suite", "reward", "--pairs", *options)
        assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.data
@pytest.mark.skipif(not SHARED.exists(), reason="needs shared/data/reward_eval beside the checkout")
def test_sections_of_real_pairs(tmp_path: Path) -> None:
    save_reward(tmp_path / "reward", "planted")
    _, results = evaluate_reward(tmp_path / "reward", DataSource(path=str(SHARED), limit=60), threads=1)
    assert results["accuracy"]["num"] == 60
    assert set(results["sections"]) <= {"Chat", "Chat Hard", "Safety", "Reasoning", "Honesty"}

"""`rayalign evaluate --suite lm-eval`: vLLM's log-likelihoods are the model's own, and what lm_eval reports is kept."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayalign.errors import UserError
from rayalign.storage.evaluation import record, unpacked
from rayalign.suites.compare import compare
from rayalign.suites.harness import Harness, evaluate_harness, summary
from rayalign.suites.harness_table import table
from rayalign.suites.harness_tasks import check_names, check_tasks, find_tasks
from rayalign.suites.options import ModelOptions
from tests.conftest import REPOSITORY, run_rayalign
from tests.models.tiny import load_plain
from tests.serving.test_saved import save_reward
from tests.suites.policies import save_policy

pytest.importorskip("lm_eval", reason="needs rayalign[evals]")
TASKS = REPOSITORY / "tests" / "suites" / "tasks"
ROWS = [json.loads(line) for line in (TASKS / "rows.jsonl").read_text().splitlines()]
OPTIONS = ModelOptions(threads=1, kv_cache_gib=0.05)


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Data sets go to a cache of the test's own, and no hub is asked."""
    import datasets
    import huggingface_hub.constants

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield


def likelihoods(folder: Path, row: dict[str, Any]) -> list[float]:
    """Of each choice after its question, by transformers itself."""
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), load_plain(str(folder))
    found = []
    for choice in row["choices"]:
        before, whole = (tokenizer(text)["input_ids"] for text in (row["question"], f"{row['question']} {choice}"))
        table = model(input_ids=torch.tensor([whole])).logits[0].detach().log_softmax(-1)
        found.append(sum(float(table[at - 1, whole[at]]) for at in range(len(before), len(whole))))
    return found


def test_on_the_command_line(tmp_path: Path) -> None:
    """A group and a task on vLLM: accuracies are those of transformers' log-likelihoods; versions and hashes are kept."""
    folder = save_policy(tmp_path / "run" / "irl" / "policy")
    options = ["--include-path", str(TASKS), "--threads", "1", "--kv-cache-gib", "0.05"]
    suite = ["--suite", "lm-eval", "--tasks", "tiny,tiny_words"]
    done = run_rayalign("evaluate", str(tmp_path / "run"), *suite, *options, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "run" / "evaluation.json").read_text())["suites"]["lm-eval"]
    found = saved["results"]
    right = [float(np.argmax(likelihoods(folder, row)) == row["answer"]) for row in ROWS]
    choice = found["tasks"]["tiny_choice"]
    assert unpacked(choice["by_document"]["acc,none"]).tolist() == right
    assert choice["metrics"]["acc,none"]["mean"] == found["groups"]["tiny"]["acc,none"]["mean"] == np.mean(right)
    assert choice["version"] == 2.0 and choice["num"] == choice["num_in_task"] == 4 and len(choice["hash"]) == 64
    assert choice["metrics"]["acc_norm,none"]["high"] <= 1 and choice["metrics"]["acc_norm,none"]["stderr"] is not None
    assert found["tasks"]["tiny_words"]["num_fewshot"] == 0 and found["settings"]["backend"] == "vllm"
    assert found["lm_eval_version"] == saved["versions"]["lm_eval"] == importlib.metadata.version("lm_eval")
    assert "git_hash" in found and saved["data"] == {
        "path": "tiny,tiny_words", "fingerprint": saved["data"]["fingerprint"], "num_rows": 8
    }  # fmt: skip
    assert "tiny_choice" in done.stdout and "backend vllm, seed 1234" in done.stdout


def test_transformers_and_dialogues(tmp_path: Path) -> None:
    """The other backend gives the same choices; examples, a limit and a chat template change what is asked."""
    folder = save_policy(tmp_path / "policy")
    base = Harness(("tiny_choice",), TASKS, backend="hf", batch_size=2)
    _, plain = evaluate_harness(folder, base, OPTIONS)
    right = [float(np.argmax(likelihoods(folder, row)) == row["answer"]) for row in ROWS]
    assert unpacked(plain["tasks"]["tiny_choice"]["by_document"]["acc,none"]).tolist() == right
    asked = Harness(("tiny_choice",), TASKS, backend="hf", limit=2, num_fewshot=1, apply_chat_template=True, seed=5)
    _, other = evaluate_harness(folder, asked, OPTIONS, out=tmp_path / "other" / "evaluation.json")
    assert other["tasks"]["tiny_choice"]["num"] == 2 and other["tasks"]["tiny_choice"]["num_fewshot"] == 1
    assert other["tasks"]["tiny_choice"]["hash"] != plain["tasks"]["tiny_choice"]["hash"]
    assert "the first 2 rows only, so no result" in table(other)[-1] and "tiny_choice" in table(plain)[1]
    assert "other: tiny_choice was asked otherwise, and so without a difference" in compare([folder, tmp_path / "other"])[-1]


def reported(right: list[float]) -> dict[str, Any]:
    """As lm_eval reports a task with a metric of its documents and one of the whole."""
    samples = [
        {"doc_id": place, "filter": "none", "metrics": ["acc", "bleu"], "acc": mark, "bleu": ("a", "b")}
        | {"doc_hash": f"{place}", "prompt_hash": "p", "target_hash": "t"}
        for place, mark in reversed(list(enumerate(right)))
    ]
    mean = float(np.mean(right))
    own = {"alias": "t", "acc,none": mean, "acc_stderr,none": 0.1, "bleu,none": 30.0, "bleu_stderr,none": 2.0}
    return {
        "samples": {"t": samples},
        "results": {"t": own},
        "groups": {"g": {"alias": "g", "acc,none": mean, "acc_stderr,none": "N/A"}},
        "n-samples": {"t": {"original": 9, "effective": len(right)}},
        "n-shot": {"t": 5},
        "versions": {"t": 1.0},
        "higher_is_better": {"t": {"acc": True}},
        "lm_eval_version": "0.4.13",
    }


def test_intervals_and_differences(tmp_path: Path) -> None:
    places = []
    for name, right in (("a", [1.0, 0.0, 0.0, 1.0]), ("b", [1.0, 1.0, 0.0, 1.0])):
        told = reported(right)
        found = summary(told) | {"settings": {"backend": "vllm", "seed": 0, "limit": None}}
        metrics = found["tasks"]["t"]["metrics"]
        assert found["tasks"]["t"]["by_document"] == {"acc,none": " ".join(f"{mark:g}" for mark in right)}
        assert 0 <= metrics["acc,none"]["low"] < metrics["acc,none"]["mean"] < metrics["acc,none"]["high"] <= 1
        assert metrics["bleu,none"]["low"] == pytest.approx(30 - 3.92, abs=1e-3)
        assert found["groups"]["g"]["acc,none"]["low"] is None
        data = {"path": "t", "fingerprint": "f" * 32, "num_rows": 4}
        record(tmp_path / name / "evaluation.json", "lm-eval", found, model=tmp_path, data=data)
        places.append(tmp_path / name)
    told = "b minus a, row by row, of t acc,none: +0.250 (95% interval +0.000 to +0.750; 0 is within it"
    assert told in compare(places)[-1]
    assert any(line.startswith("g ") and line.endswith("0.7500") for line in table(found))


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is told before the model is loaded."""
    policy, own = save_policy(tmp_path / "policy"), tmp_path / "tasks"
    save_reward(tmp_path / "reward", "planted")
    own.mkdir()
    text = (TASKS / "tiny_choice.yaml").read_text()
    (own / "column.yaml").write_text(text.replace("tiny_choice", "column").replace("{{question}}", "{{asked}}"))
    (own / "data.yaml").write_text(text.replace("tiny_choice", "data").replace("rows.jsonl", "nowhere.jsonl"))
    (own / "hub.yaml").write_text("task: hub\ndataset_path: nobody/nothing\ntest_split: test\ndoc_to_text: x\n")
    (own / "code.yaml").write_text(text.replace("tiny_choice", "code") + "unsafe_code: true\n")
    for place, tasks, path, words in [
        (tmp_path / "nowhere", "tiny", TASKS, "no such folder"),
        (tmp_path / "reward", "tiny", TASKS, "a reward, and no language model"),
        (policy, "tiny", tmp_path / "none", "--include-path .*none: no such folder"),
        (policy, "column", own, "--tasks column: cannot be run .*asked"),
        (policy, "data", own, "--tasks data: cannot be run .*nowhere.jsonl.*hub"),
        (policy, "hub", own, "--tasks hub: cannot be run .*nobody/nothing.*has to be in reach"),
        (policy, "code", own, "--tasks code: code runs the code that a policy writes"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            evaluate_harness(place, Harness((tasks,), path), OPTIONS)
        assert "\n" not in str(error.value)
    manager = find_tasks(["leaderboard_musr"], TASKS)  # lm_eval's own tasks beside those of the folder
    with pytest.raises(UserError, match="--tasks tiny_chois: lm_eval has no task.*near it are tiny_choice"):
        check_names(manager, ["leaderboard", "tiny", "tiny_chois"])
    with pytest.raises(UserError, match="--tasks leaderboard_musr: cannot be run .*the Hugging Face hub, that has"):
        check_tasks(manager, ["leaderboard_musr"])
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "lm_eval", None)
        with pytest.raises(UserError, match=r"suite lm-eval needs lm_eval, not.*pip install 'rayalign\[evals\]'"):
            evaluate_harness(policy, Harness(("tiny",), TASKS), OPTIONS)
    assert not (policy / "evaluation.json").exists()
    for option in (["--tasks", ","], ["--tasks", "a", "--backend", "other"], []):
        done = run_rayalign("evaluate", str(policy), "--suite", "lm-eval", *option)
        assert done.returncode == 2 and done.stderr.count("\n") == 1

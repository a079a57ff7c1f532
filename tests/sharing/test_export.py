"""An export stands alone: in a fresh Python, transformers and vLLM find in it what was recorded from the run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import rayalign.sharing.export as exporting
from rayalign.cli import main
from rayalign.config.model import LearnerConfig, LoraConfig
from rayalign.errors import RayalignError, UserError
from rayalign.models.policy import PolicyModel
from rayalign.serving.saved import SavedReward
from rayalign.sharing.export import export
from tests.conftest import one_thread
from tests.data.conftest import CHATML, make_tokenizer
from tests.models.tiny import model_config, save_tiny, sequences_of, tiny_lm
from tests.serving.test_saved import template
from tests.sharing.runs import (
    finish,
    implicit_run,
    make_run,
    record,
    rft_run,
    save_policy,
    save_reward,
    save_token_reward,
    spread,
)

LOADERS = Path(__file__).with_name("loaders.py")
# Float32 sums in another order: 3e-6 measured here in vLLM and transformers, and other policies and rewards of these
# sizes are 1e-1 and more away.
TOLERANCE = 1e-4


def loaded(library: str, *folders: Path) -> dict[str, Any]:
    """What a library says of the folders' cases, in a fresh Python that knows neither rayalign nor where the run lies."""
    quiet = {"VLLM_PLUGINS": "", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    environment = {**one_thread(), **quiet, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, str(LOADERS), library, *map(str, folders)],
        env=environment,
        cwd=folders[0],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def scored(folder: Path) -> list[float]:
    """What rayalign's loader says of the recorded tokens."""
    rows = [(case["prompt_ids"], case["response_ids"]) for case in record(folder)["cases"]]
    found: list[float] = SavedReward(folder).score(sequences_of(rows)).tolist()
    return found


def test_transformers_alone_gives_what_was_recorded(exported: Path, tmp_path: Path) -> None:
    """Of policy and reward, from a place where the run is not."""
    moved = shutil.copytree(exported, tmp_path / "moved")
    found = loaded("transformers", moved / "policy", moved / "reward")
    policy, reward = record(moved / "policy"), record(moved / "reward")
    assert len(policy["cases"]) == 4 and spread(policy) > 1 and spread(reward) > 0.1
    for case, values in zip(policy["cases"], found[str(moved / "policy")], strict=True):
        assert values == pytest.approx(case["logprobs"], abs=TOLERANCE)
        assert sum(values) == pytest.approx(case["logprob"], abs=TOLERANCE * len(values))
    for case, (raw,) in zip(reward["cases"], found[str(moved / "reward")], strict=True):
        assert raw == pytest.approx(case["raw"], abs=TOLERANCE)
        assert (raw - reward["mean"]) / reward["std"] == pytest.approx(case["score"], abs=TOLERANCE / reward["std"])
    assert (reward["mean"], reward["std"]) == (0.3, 0.2)
    texts = [[case[side] for case in reward["cases"]] for side in ("prompt", "response")]
    assert SavedReward(moved / "reward")(*texts) == pytest.approx([case["score"] for case in reward["cases"]], abs=1e-5)


def test_vllm_gives_what_was_recorded(exported: Path) -> None:
    found = loaded("vllm", exported / "policy")[str(exported / "policy")]
    for case, values in zip(record(exported / "policy")["cases"], found["cases"], strict=True):
        assert values == pytest.approx(case["logprobs"], abs=TOLERANCE)
    assert found["chat_template"] == template("planted").chat_template


def test_on_the_command_line(rft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it says, and what is in the folders: nothing of the run but what was meant, and no name of a place here."""
    main(["export", str(rft), "--to", str(tmp_path / "out")])
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"{role}: {tmp_path / 'out' / role} (of stage rft; checked: 4 examples of the run's evaluation)"
        for role in ("policy", "reward")
    ]
    names = {"README.md", "config.yaml", "reproduce.json", "config.json", "model.safetensors", "chat_template.jinja"}
    names |= {"tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "out" / "reward").iterdir()} == names
    assert {path.name for path in (tmp_path / "out" / "policy").iterdir()} == names | {"generation_config.json"}
    for file in (tmp_path / "out").rglob("*.json"):
        assert str(rft.parents[1]) not in file.read_text(), file
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_log_ratio_takes_both_its_policies_along(tmp_path: Path) -> None:
    """Of a stage `implicit`: its reference is a folder elsewhere, and its reward lies there without a tokenizer."""
    reference = save_tiny(tmp_path / "elsewhere" / "base", seed=1, vocab_size=400)
    run = implicit_run(tmp_path / "runs" / "tiny", reference)
    export(run, tmp_path / "out")
    shutil.rmtree(tmp_path / "runs")
    shutil.rmtree(tmp_path / "elsewhere")
    recorded = record(tmp_path / "out" / "reward")
    assert json.loads((tmp_path / "out" / "reward" / "log_ratio.json").read_text()) == {
        "policy": "policy", "reference": "reference", "scale": 0.1,
    }  # fmt: skip
    assert recorded["kind"] == "log_ratio_reward" and recorded["texts"] == "fixed texts" and spread(recorded) > 0.1
    assert scored(tmp_path / "out" / "reward") == pytest.approx([case["score"] for case in recorded["cases"]], abs=TOLERANCE)
    for case in recorded["cases"]:
        assert sum(case["token_scores"]) == pytest.approx(case["score"], abs=TOLERANCE)


def test_a_side_that_is_a_pickle_is_made_safe_and_an_adapter_is_refused(tmp_path: Path) -> None:
    pickled = tiny_lm(seed=4, vocab_size=400)
    pickled.config.save_pretrained(tmp_path / "pickled")
    torch.save(pickled.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    export(implicit_run(tmp_path / "runs" / "tiny", str(tmp_path / "pickled")), tmp_path / "out")
    found = [file.name for file in (tmp_path / "out" / "reward" / "reference").iterdir()]
    assert {"config.json", "model.safetensors"} <= {*found} and "pytorch_model.bin" not in found
    (tmp_path / "pickled" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="an adapter without its base model"):
        export(tmp_path / "runs" / "tiny", tmp_path / "other")
    shutil.rmtree(tmp_path / "pickled")
    with pytest.raises(UserError, match=r"its reference is not at .*pickled"):
        export(tmp_path / "runs" / "tiny", tmp_path / "other")


def test_rewards_that_only_rayalign_reads(tmp_path: Path) -> None:
    """Of tokens, and of the mean of the response's states; the cards say so."""
    run = make_run(tmp_path / "tokens" / "tiny", [{"kind": "ava", "init": "owner/base"}])
    save_token_reward(finish(run, "ava") / "reward")
    for made, kind in ((run, "token_reward"), (rft_run(tmp_path / "mean" / "tiny", pooling="mean"), "sequence_reward")):
        export(made, tmp_path / kind)
        recorded, card = record(tmp_path / kind / "reward"), (tmp_path / kind / "reward" / "README.md").read_text()
        assert recorded["kind"] == kind and spread(recorded) > 0.1
        assert "library_name: rayalign" in card and "AutoModelForSequenceClassification" not in card
        expected = [case["score"] for case in recorded["cases"]]
        assert scored(tmp_path / kind / "reward") == pytest.approx(expected, abs=TOLERANCE)


def test_a_policy_of_adapters_is_whole_and_ends_where_training_ended_it(tmp_path: Path) -> None:
    """With LoRA and ChatML: merged weights, and the end of a turn in the generation config."""
    base = save_tiny(tmp_path / "base", vocab_size=400)
    policy = PolicyModel.load(base, model_config(lora=LoraConfig(rank=2)), LearnerConfig())
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    run = make_run(tmp_path / "runs" / "tiny", [{"kind": "sft"}])
    folder = finish(run, "sft") / "policy"
    policy.save(folder, {weight.name: weight.tensor() for weight in policy.wire_weights()})
    chat = template("chatml")
    chat.save_tokenizer(folder)
    export(run, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("adapter*"))
    tokenizer = make_tokenizer(chat_template=CHATML)
    ends = [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id]
    assert json.loads((tmp_path / "out" / "policy" / "generation_config.json").read_text())["eos_token_id"] == ends
    assert record(tmp_path / "out" / "policy")["texts"] == "fixed texts"
    with torch.no_grad():
        recorded = record(tmp_path / "out" / "policy")["cases"][0]
        ids = torch.tensor([recorded["prompt_ids"] + recorded["response_ids"]])
        table = policy.eval().lm(ids).logits[0, len(recorded["prompt_ids"]) - 1 : -1].log_softmax(-1)
        expected = table.gather(-1, torch.tensor(recorded["response_ids"])[:, None])[:, 0].tolist()
    assert recorded["logprobs"] == pytest.approx(expected, abs=TOLERANCE)


def test_a_copy_that_says_something_else_is_refused(rft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong weight, a wrong normaliser, another template: one line, and nothing is left."""
    copied = exporting.copy_model

    def weights(target: Path, role: str) -> None:
        if role == "policy":
            save_tiny(target, seed=9, vocab_size=400)

    def normaliser(target: Path, role: str) -> None:
        if role == "reward":
            file = target / "model.safetensors"
            tensors = load_file(file)
            save_file(tensors | {"score.weight": tensors["score.weight"] * 1.1}, file, metadata={"format": "pt"})

    def end(target: Path, role: str) -> None:
        (target / "chat_template.jinja").write_text("{{ messages[0]['content'] }}<ans>")

    for spoil, told in ((weights, "the exported policy does not"), (normaliser, "reward does not"), (end, "chat template")):

        def spoilt(model: Any, target: Path, *rest: Any, spoil: Any = spoil) -> None:
            copied(model, target, *rest)
            spoil(target, model.role)

        monkeypatch.setattr(exporting, "copy_model", spoilt)
        with pytest.raises(RayalignError, match=told):
            export(rft, tmp_path / "out")
        assert not os.listdir(tmp_path)


def test_which_models_are_meant(tmp_path: Path) -> None:
    """The newest policy with the reward that it followed, though a later stage fitted another; or one stage's."""
    stages = [
        {"kind": "sft"},
        {"kind": "fit_reward", "name": "first", "init": "owner/base"},
        {"kind": "fit_reward", "name": "second", "init": "owner/base"},
        {"kind": "rl", "policy": "stage:sft/policy", "reward": "stage:first/reward", "sampling": {"max_new_tokens": 20}},
    ]
    run = make_run(tmp_path / "runs" / "tiny", stages)
    for name in ("first", "second"):
        save_reward(finish(run, name) / "reward")
    for name in ("sft", "rl"):
        save_policy(finish(run, name) / "policy")
    found = export(run, tmp_path / "out")
    assert {role: one.stage for role, one in found.items()} == {"policy": "rl", "reward": "first"}
    card = (tmp_path / "out" / "policy" / "README.md").read_text()
    assert "1. `sft`" in card and "2. `first`" in card and "3. `rl`" in card and "`second`" not in card
    found = export(run, tmp_path / "out", stage="second", overwrite=True)
    assert {role: one.stage for role, one in found.items()} == {"reward": "second"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["reward"]

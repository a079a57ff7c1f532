"""Which policy a batch was drawn from, and that weights never change, nor are waited for, under a generation."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rayalign.api import train
from rayalign.config.stage_base import SamplingConfig
from rayalign.engines.vllm_backend.sampler import VllmSampler
from rayalign.planted.tokenizer import save_tokenizer
from rayalign.ports import SamplerSetup
from rayalign.stages.groups import PolicyGroup
from rayalign.types import Rollout, TokenizedPrompts

pytestmark = pytest.mark.own_process

GROUP = 3  # samples a prompt for the policy's update; nothing else draws as many
SLOW_S = 3.0  # longer than an update of the tiny policy takes


class Diary(VllmSampler):
    """vLLM, with a line in a file at each draw for the policy's update, before and after, and after each sync."""

    def __init__(self, setup: SamplerSetup) -> None:
        super().__init__(setup)
        self._file = Path(setup.tokenizer).parent / "diary"
        self._slow_s = SLOW_S if setup.weight_transfer == "gloo" else 0.0  # in process nothing can overlap

    def generate(
        self, prompts: TokenizedPrompts, sampling: SamplingConfig, *, num_per_prompt: int, seed: int
    ) -> Rollout:
        """As the sampler does it, but slowly."""
        if num_per_prompt != GROUP:
            return super().generate(prompts, sampling, num_per_prompt=num_per_prompt, seed=seed)
        write(self._file, "draw")
        time.sleep(self._slow_s)
        rollout = super().generate(prompts, sampling, num_per_prompt=num_per_prompt, seed=seed)
        write(self._file, f"drawn v{rollout.policy_version}")
        return rollout

    def finish_weight_update(self, version: int) -> None:
        """As the sampler does it."""
        super().finish_weight_update(version)
        write(self._file, f"synced v{version}")


def write(file: Path, event: str) -> None:
    """One line, whole, from whichever process."""
    with file.open("a") as lines:
        lines.write(event + "\n")


def length(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that needs no model."""
    return [float(len(response)) for response in responses]


@pytest.fixture
def environment() -> Iterator[None]:
    """Engines in this process set RANK, vLLM's variables and more; tests after these must not inherit them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def values(environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two rounds of three updates of a random model; the controller writes into the diary when it begins a sync."""
    save_tokenizer(tmp_path / "tokenizer")
    vocab_size = len(AutoTokenizer.from_pretrained(tmp_path / "tokenizer"))
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"Anna asks price {word}", "response": "lamp"} for word in ("lamp", "chair", "table", "vase")]
    (tmp_path / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sync = PolicyGroup.sync

    def told(self: PolicyGroup) -> None:
        write(tmp_path / "diary", "sync")
        sync(self)

    monkeypatch.setattr(PolicyGroup, "sync", told)
    model = str(tmp_path / "model")
    return {
        "name": "run",
        "run_dir": str(tmp_path),
        "model": {"path": model, "tokenizer": str(tmp_path / "tokenizer"), "dtype": "float32", "max_length": 16},
        "data": {"demonstrations": {"path": str(tmp_path / "demos.jsonl")}, "heldout_frac": 0.25},
        "placement": {"share_cores": True, "kv_cache_gib": 0.02},
        "telemetry": {"tensorboard": False},
        "stages": [{
            "kind": "irl", "policy": model, "rounds": 2,
            "reward": {"init": model, "num_per_prompt": 1},
            "improve": {"steps": 3, "prompts_per_step": 2, "samples_per_prompt": GROUP, "kl_coef": 0,
                        "optimizer": {"learning_rate": 0.01}},
            "sampling": {"max_new_tokens": 4},
        }],
    }  # fmt: skip


def staleness(folder: Path) -> list[float]:
    """Of each update, as it was logged."""
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [row["staleness"] for row in rows if "staleness" in row]


def test_each_batch_is_of_the_policy_that_learns_from_it(values: dict[str, Any], tmp_path: Path) -> None:
    """max_staleness 0, in process: after each sync one batch of the version that was sent."""
    values["placement"]["backend"] = "inprocess"
    train(values, reward=length, rollout=Diary)
    expected = ["sync", "synced v0"]
    for version in range(6):
        expected += ["draw", f"drawn v{version}", "sync", f"synced v{version + 1}"]
    assert (tmp_path / "diary").read_text().splitlines() == expected
    assert staleness(tmp_path) == [0] * 6


def test_one_step_behind_weights_wait_for_the_draw_under_way(values: dict[str, Any], tmp_path: Path) -> None:
    """max_staleness 1, on Ray: each update but a round's first has samples of the version before; no sync begins
    while samples are drawn, however slowly: its own deadline is for sending weights."""
    values["stages"][0]["max_staleness"] = 1
    train(values, reward=length, rollout=Diary)
    expected = ["sync", "synced v0"]
    for v in (0, 3):  # the policy's version as a round begins; two batches are asked for at once, and the third later
        expected += ["draw", f"drawn v{v}", "draw", f"drawn v{v}", "sync", f"synced v{v + 1}"]
        expected += ["draw", f"drawn v{v + 1}", "sync", f"synced v{v + 2}", "sync", f"synced v{v + 3}"]
    assert (tmp_path / "diary").read_text().splitlines() == expected
    assert staleness(tmp_path) == [0, 1, 1] * 2

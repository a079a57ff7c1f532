"""Fine-tuned models that other runs may take: found again with the same inputs and settings, and with no others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from rayalign.planted.tokenizer import CHAT_TEMPLATE
from tests.cli.conftest import Rayalign, Workplace

WORDS = ("lamp", "chair", "table", "mirror", "clock", "vase", "basket", "kettle")
ROWS = [{"prompt": f"Anna asks price {word}", "response": f"{word} price"} for word in WORDS]


def write_rows(file: Path, rows: list[dict[str, str]]) -> None:
    """Demonstrations as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("RAYALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sft"


@pytest.fixture
def cached(workplace: Workplace, parts: Path, cache: Path) -> Workplace:
    """One SFT stage that keeps its result, over a model and a tokenizer that the test may change."""
    write_rows(workplace.folder / "demos.jsonl", ROWS)
    for part in ("model", "tokenizer"):
        shutil.copytree(parts / part, workplace.folder / part)
        workplace.values["model"]["path" if part == "model" else part] = part
    workplace.values["stages"][0] |= {"cache": True}
    workplace.values["data"]["heldout_frac"] = 0  # else another seed is other data
    return workplace


@pytest.fixture
def is_taken(rayalign: Rayalign, cached: Workplace, cache: Path) -> Callable[..., bool]:
    """Runs the config in a new folder: whether the model was taken from the cache, to which it was added if not."""
    number = 0

    def run(*overrides: str) -> bool:
        nonlocal number
        number += 1
        held = len(list(cache.glob("*")))
        outcome = rayalign("train", cached.write(), f"name=run{number}", *overrides)
        assert outcome.code == 0, outcome.err
        logged = cached.folder / "runs" / f"run{number}" / "metrics.jsonl"
        taken = "taken from" in outcome.err
        assert len(list(cache.glob("*"))) == held + (not taken)
        assert ("nll_token" in logged.read_text()) is not taken
        return taken

    return run


def test_the_same_is_taken_whole(is_taken: Callable[..., bool], cached: Workplace, cache: Path) -> None:
    """Same data and settings, whatever the run and the stage are called: every file, bit for bit; nothing is trained."""
    assert not is_taken()
    assert is_taken()
    cached.values["stages"][0]["name"] = "another"
    assert is_taken("placement.policy.cpus=2", "telemetry.actor_logs=true")
    runs = cached.folder / "runs"
    first, second, third = runs / "run1/sft/policy", runs / "run2/sft/policy", runs / "run3/another/policy"
    names = sorted(file.name for file in first.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    for other in (second, third, *cache.iterdir()):
        assert sorted(file.name for file in other.iterdir()) == names
        assert all((other / name).read_bytes() == (first / name).read_bytes() for name in names)
    before, after = load_file(cached.folder / "model" / "model.safetensors"), load_file(second / "model.safetensors")
    assert any(not before[name].equal(after[name]) for name in before)  # it is the trained one
    assert not list(cache.parent.rglob("*.part"))


def test_other_settings_are_another_model(is_taken: Callable[..., bool]) -> None:
    """Each differs from all before it."""
    assert not is_taken()
    for override in (
        "seed=1",
        "model.max_length=31",
        "model.dtype=bfloat16",
        "model.lora={rank: 2}",
        "data.demonstrations.limit=7",
        "stages.sft.epochs=2",
        "stages.sft.batch_size=3",
        "stages.sft.max_steps=1",
        "stages.sft.optimizer.learning_rate=0.002",
        "stages.sft.optimizer.weight_decay=0.1",
        "stages.sft.optimizer.schedule=linear",
    ):
        assert not is_taken(override), override
    assert is_taken()


def test_other_inputs_are_another_model(is_taken: Callable[..., bool], cached: Workplace) -> None:
    """It is the content of data and weights that counts, not their place."""
    assert not is_taken()
    demos = cached.folder / "demos.jsonl"
    demos.rename(cached.folder / "moved.jsonl")
    (cached.folder / "model").rename(cached.folder / "base")
    moved = ("data.demonstrations.path=moved.jsonl", "model.path=base")
    assert is_taken(*moved)

    write_rows(demos, ROWS[::-1])  # the same rows in another order
    assert not is_taken("model.path=base")
    write_rows(demos, [*ROWS[:-1], {**ROWS[-1], "response": "kettle cost"}])
    assert not is_taken("model.path=base")

    file = cached.folder / "base" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, file, metadata={"format": "pt"})
    assert not is_taken(*moved)


def test_another_vocabulary_is_another_model(is_taken: Callable[..., bool], cached: Workplace) -> None:
    """From scratch too, where the model has as many outputs as there are words, though no row uses the new one."""
    cached.values["stages"][0]["scratch"] = {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 64,
    }  # fmt: skip
    assert not is_taken()
    assert is_taken()
    file = cached.folder / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    words = tokenizer["model"]["vocab"]
    words["zebra"] = len(words)
    file.write_text(json.dumps(tokenizer))
    assert not is_taken()
    cached.values["stages"][0]["scratch"]["hidden_size"] = 32
    assert not is_taken()


def test_another_tokenizer_template_or_architecture_is_another_model(
    is_taken: Callable[..., bool], cached: Workplace
) -> None:
    """They are saved beside the weights, or decide what the weights mean."""
    assert not is_taken()
    (cached.folder / "same.jinja").write_text(CHAT_TEMPLATE)
    (cached.folder / "other.jinja").write_text(CHAT_TEMPLATE.replace("the planted world knows", "there are"))
    assert is_taken("data.chat_template=same.jinja")
    assert not is_taken("data.chat_template=other.jinja")
    saved = cached.folder / "runs" / "run3" / "sft" / "policy" / "chat_template.jinja"
    assert "there are" in saved.read_text()

    config = cached.folder / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 0.1}))
    assert not is_taken()
    words = cached.folder / "tokenizer" / "tokenizer.json"
    told = json.loads(words.read_text())
    told["model"]["vocab"]["jug"] = told["model"]["vocab"].pop("umbrella")
    words.write_text(json.dumps(told))
    assert not is_taken()

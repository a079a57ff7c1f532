"""What a config's models will take is read off headers and names, and agrees with the models themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rayalign.config.load import parse_config
from rayalign.config.run import RunConfig
from rayalign.doctor import check_memory
from rayalign.preflight.machine import Gpu
from rayalign.preflight.memory import GIB, group_memory, num_parameters, saved_gib

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
BIG = LLAMA | {"vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}


def config_of(path: str = "nobody/model-2b", **changes: Any) -> RunConfig:
    irl = {"kind": "irl", "name": "rft", "policy": "stage:sft/policy", "reward": {"init": path}}
    values = {
        "name": "sized",
        "model": {"path": path, "dtype": "float32"},
        "data": {"demonstrations": {"path": "rows.jsonl"}},
        "stages": [{"kind": "sft", "name": "sft"}, irl],
    }
    return parse_config(values | changes)


def by_role(config: RunConfig) -> dict[str, dict[str, float]]:
    return {group.role: group.parts for group in group_memory(config)}


@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_tells_its_parameters(tmp_path: Path, tied: bool) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA, tie_word_embeddings=tied))
    model.save_pretrained(tmp_path)
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert num_parameters(config_of(), str(tmp_path)) == expected


def test_an_artifact_has_the_size_of_what_it_starts_from(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA)).save_pretrained(tmp_path)
    config = config_of(str(tmp_path))
    expected = num_parameters(config, str(tmp_path))
    assert expected is not None
    for artifact in ("stage:sft/policy", "stage:rft/policy", "stage:rft/reward"):
        assert num_parameters(config, artifact) == expected


def test_an_architecture_is_counted_without_its_memory() -> None:
    config = config_of(stages=[{"kind": "sft", "name": "sft", "scratch": BIG}])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**BIG))
    assert num_parameters(config, "stage:sft/policy") == sum(p.numel() for p in model.parameters()) > 10**9


@pytest.mark.parametrize(
    "damage", [{"pad_token_id": 32_000}, {"model_type": "x"}], ids=lambda damage: next(iter(damage))
)
def test_an_architecture_that_is_none_has_no_size(damage: dict[str, Any]) -> None:
    config = config_of(stages=[{"kind": "sft", "name": "sft", "scratch": BIG | damage}])
    assert num_parameters(config, "stage:sft/policy") is None
    (memory,) = check_memory(config, [])
    assert memory.mark == "note" and "not known" in memory.text


def test_what_starts_from_itself_has_no_size() -> None:
    config = config_of("stage:sft/policy")
    assert num_parameters(config, "stage:sft/policy") is None
    (memory,) = check_memory(config, [])
    assert memory.mark == "note"


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 500_000_000),
        ("EleutherAI/pythia-1b-deduped", 1_000_000_000),
        ("meta-llama/Llama-3.1-8B", 8_000_000_000),
        ("HuggingFaceTB/SmolLM2-135M", 135_000_000),
        ("openai-community/gpt2", None),
        ("nobody/abc3bd-model", None),
    ],
)
def test_a_hub_name_may_tell_the_size(name: str, size: int | None) -> None:
    assert num_parameters(config_of(), name) == size


def test_a_damaged_folder_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    assert num_parameters(config_of(), str(tmp_path)) is None


@pytest.mark.parametrize(
    ("stage", "shared"),
    [(0, set()), (1, {"optimiser"}), (2, {"optimiser", "gradients"}), (3, {"optimiser", "gradients", "weights"})],
)
def test_zero_shares_what_its_stage_says(stage: int, shared: set[str]) -> None:
    placement = {"policy": {"workers": 4}}
    alone = by_role(config_of())["policy"]
    parts = by_role(config_of(placement=placement, learner={"zero_stage": stage}))["policy"]
    trained = {"weights", "gradients", "optimiser"}
    assert {name for name in trained if parts[name] == pytest.approx(alone[name] / 4)} == shared
    assert all(parts[name] == alone[name] for name in trained - shared)


def test_float32_takes_sixteen_bytes_a_weight_and_a_reference_four_more() -> None:
    groups = by_role(config_of())
    assert sum(groups["reward"].values()) * GIB == pytest.approx(2e9 * 16)
    assert sum(groups["policy"].values()) * GIB == pytest.approx(2e9 * 20)
    assert groups["rollout"] == {"weights": pytest.approx(2e9 * 4 / GIB), "KV cache": 0.5}
    assert saved_gib(config_of()) * GIB == pytest.approx(2e9 * 4 * (1 + 2 + 2))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_what_stays_whole_is_not_more_while_loading(stage: int) -> None:
    groups = group_memory(config_of(placement={"policy": {"workers": 8}}, learner={"zero_stage": stage}))
    assert all(group.each_gib == group.steady_gib and "loading" not in str(group) for group in groups)


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_zero_3_shares_out_what_was_loaded_whole(kl_coef: float) -> None:
    """Eight workers keep an eighth of 16 bytes a weight each; a copy of 4 is whole before, the reference's last."""
    irl = {"kind": "irl", "name": "rft", "policy": "nobody/model-2b", "reward": {"init": "nobody/model-2b"}}
    placement = {role: {"workers": 8} for role in ("policy", "reward")}
    config = config_of(
        stages=[irl | {"improve": {"kl_coef": kl_coef}}], placement=placement, learner={"zero_stage": 3}
    )
    policy, reward, _ = group_memory(config)
    assert reward.steady_gib * GIB == pytest.approx(2e9 * 16 / 8)
    assert reward.each_gib * GIB == pytest.approx(2e9 * 4)
    assert policy.steady_gib * GIB == pytest.approx(2e9 * (16 + 4 * (kl_coef > 0)) / 8)
    assert policy.each_gib * GIB == pytest.approx(2e9 * (4 + 2 * (kl_coef > 0)))
    assert "reward 7.5 GiB on each of 8 workers while loading, then 3.7 GiB (weights 0.9 GiB" in str(reward)


def test_a_critic_and_a_scorer_are_counted() -> None:
    """PPO on a fixed reward: the critic is trained (16 bytes a weight), the scorer is weights alone."""
    reward = {"kind": "fit_reward", "name": "reward", "init": "nobody/model-1b"}
    rl = {"kind": "rl", "policy": "nobody/model-2b", "reward": "stage:reward/reward"}
    groups = by_role(config_of(stages=[reward, rl | {"improve": {"advantage": "gae", "critic": {}}}]))
    assert groups["policy"]["critic"] * GIB == pytest.approx(1e9 * 16)
    assert sum(groups["policy"].values()) * GIB == pytest.approx(2e9 * 20 + 1e9 * 16)
    assert groups["reward"] == {"weights": pytest.approx(1e9 * 4 / GIB)}


def test_a_closed_form_reward_is_two_models() -> None:
    ratio = {"kind": "log_ratio", "policy": "nobody/model-2b", "reference": "nobody/model-1b"}
    best = {"kind": "best_of_n", "policy": "nobody/model-2b", "reward": "stage:log_ratio/reward"}
    groups = by_role(config_of(stages=[ratio, best]))
    assert groups["reward"]["weights"] * GIB == pytest.approx(3e9 * 4)
    assert groups["rollout"]["weights"] * GIB == pytest.approx(2e9 * 4) and "policy" not in groups


@pytest.mark.parametrize(
    ("settings", "held"), [({}, 16), ({"rounds": 2, "reference": "start"}, 20), ({"on_policy": True}, 20)]
)
def test_the_implicit_stage_holds_a_reference_only_where_it_must(settings: dict[str, Any], held: int) -> None:
    stage = {"kind": "implicit", "policy": "nobody/model-1b", **settings}
    assert sum(by_role(config_of(stages=[stage]))["policy"].values()) * GIB == pytest.approx(1e9 * held)


@pytest.mark.parametrize("colocate", [False, True])
def test_too_much_while_loading_is_told_as_that(colocate: bool) -> None:
    """More GPUs would not help. Groups that share GPUs load one after the other."""
    placement = {role: {"gpus": 8} for role in ("policy", "reward", "rollout")} | {"colocate": colocate}
    config = config_of(placement=placement, learner={"zero_stage": 3})
    (memory, _) = check_memory(config, [Gpu("a small one", 10.5)] * 8)
    needs = "policy and reward needs 14.9 GiB" if colocate else "policy needs 11.2 GiB"
    assert memory.mark == "missing" and needs in memory.text, memory.text
    assert "loaded whole before ZeRO-3 shares it out" in memory.text
    (memory, _) = check_memory(config, [Gpu("a larger one", 15.0)] * 8)
    assert memory.mark == "ok"


def test_lora_trains_next_to_nothing() -> None:
    lora = by_role(config_of(model={"path": "nobody/model-2b", "dtype": "float32", "lora": {}}))
    assert set(lora["policy"]) == {"weights"}


def test_too_much_for_this_machine_is_told_with_the_numbers() -> None:
    (memory, _) = check_memory(config_of("nobody/model-900b"), [])
    assert memory.mark == "missing" and "Too much: " in memory.text and "this machine has" in memory.text


def test_too_much_for_a_gpu_names_the_group_and_the_way_out() -> None:
    placement = {"policy": {"gpus": 1}, "reward": {"gpus": 1}, "rollout": {"gpus": 1}}
    (memory, _) = check_memory(config_of(placement=placement), [Gpu("a small one", 32.0)])
    assert memory.mark == "missing"
    assert "Too much: policy needs 37.3 GiB, and a GPU here has 32.0; raise zero_stage" in memory.text
    (memory, _) = check_memory(config_of(placement=placement), [Gpu("a large one", 80.0)])
    assert memory.mark == "ok" and "Too much" not in memory.text

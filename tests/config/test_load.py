"""Reading files and overrides: what is set is what was meant, and every fault is one line that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayalign.config.load import load_config, parse_config
from rayalign.config.run import RunConfig
from rayalign.errors import ConfigError

MINIMAL = """\
name: small
model: {path: some/model}
data:
  demonstrations: {path: demos.jsonl}
stages:
  - kind: sft
  - kind: irl
    policy: stage:sft/policy
    reward: {init: stage:sft/policy}
"""


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """Loads MINIMAL, or another text, with overrides."""

    def load(*overrides: str, text: str = MINIMAL) -> RunConfig:
        file = tmp_path / "run.yaml"
        file.write_text(text)
        return load_config(file, overrides)

    return load


def fault(load: Any, *overrides: str, text: str = MINIMAL) -> str:
    """The line that a person reads."""
    with pytest.raises(ConfigError) as caught:
        load(*overrides, text=text)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600, line
    return line


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("seed=3", lambda c: c.seed, 3),
        ("seed=1e3", lambda c: c.seed, 1000),
        ("model.dtype=float32", lambda c: c.model.dtype, "float32"),
        ("stages.sft.epochs=2", lambda c: c.stages[0].epochs, 2),
        ("stages.0.epochs=2", lambda c: c.stages[0].epochs, 2),
        ("stages.irl.improve.optimizer.learning_rate=1e-4", lambda c: c.stages[1].improve.optimizer.learning_rate, 1e-4),
        ("data.chat_template=a=b.jinja", lambda c: c.data.chat_template, "a=b.jinja"),
        ("data.demonstrations.path=s3.jsonl?x=1&y=2", lambda c: c.data.demonstrations.path, "s3.jsonl?x=1&y=2"),
        ("stages.irl.reward.negatives=[a.jsonl, b.jsonl]", lambda c: c.stages[1].reward.negatives, ["a.jsonl", "b.jsonl"]),
        ("data.demonstrations.limit=null", lambda c: c.data.demonstrations.limit, None),
        ("data.demonstrations.limit=", lambda c: c.data.demonstrations.limit, None),
        ("model.lora.rank=8", lambda c: c.model.lora.rank, 8),
        ("data.demonstrations.columns.prompt=question", lambda c: c.data.demonstrations.columns, {"prompt": "question"}),
        ("name='2024'", lambda c: c.name, "2024"),
    ],
)
def test_overrides(load: Any, override: str, read: Any, expected: Any) -> None:
    assert read(load(override)) == expected


def test_a_set_is_no_list(load: Any) -> None:
    """pydantic would take it for one, in whatever order."""
    line = fault(load, text=MINIMAL + "    improve: {optimizer: {betas: !!set {0.9, 0.95}}}\n")
    assert "not valid YAML (a set has no order; write a list)" in line


def test_the_last_override_wins(load: Any) -> None:
    assert load("seed=1", "seed=2").seed == 2


def test_an_alias_is_not_shared(load: Any) -> None:
    """YAML's & and * repeat a value; an override of one place leaves the other alone."""
    text = MINIMAL.replace("- kind: sft", "- {kind: sft, optimizer: &o {learning_rate: 1e-3}}")
    text += "    improve: {optimizer: *o}\n"
    config = load("stages.sft.optimizer.learning_rate=1e-2", text=text)
    assert config.stages[0].optimizer.learning_rate == 1e-2
    assert config.stages[1].improve.optimizer.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.pth=x", ["unknown key", "did you mean path?"]),
        ("stages.irl.improve.kl_coeff=1", ["unknown key", "did you mean kl_coef?"]),
        ("stages.irl.kl_coef=1", ["did you mean improve.kl_coef?"]),
        ("max_length=3", ["did you mean model.max_length?"]),
        ("stages.sft.max_length=3", ["did you mean model.max_length?"]),
        ("data.demos.path=x", ["did you mean demonstrations?"]),
        ("xyzzy=1", ["xyzzy", "unknown key"]),
        ("stages.slt.epochs=1", ["no entry 'slt'", "sft, irl", "did you mean sft?"]),
        ("stages.7.epochs=1", ["no entry '7'"]),
        ("stages.sft.kind=stf", ["no stage is of kind 'stf'", "did you mean sft?"]),
        ("stages.sft.kind=", ["kind"]),
        ("seed=one", ["expected a whole number", "'one'"]),
        ("seed=true", ["expected a number", "True"]),
        ("seed=-1", ["must be greater than or equal to 0"]),
        ("stages.sft.optimizer.learning_rate=fast", ["expected a number", "'fast'"]),
        ("stages.sft.optimizer.learning_rate=.nan", ["expected a finite number"]),
        ("stages.sft.optimizer.betas=[0.9]", ["stages.sft.optimizer.betas.1", "not set"]),
        ("name=7", ["expected text; put it in quotes", "7"]),
        ("name=a/b", ["letters, digits", "(got 'a/b')"]),
        ("model=gpt2", ["expected keys and values", "'gpt2'"]),
        ("model.path=", ["expected text"]),
        ("stages=[]", ["at least one entry"]),
        ("stages=!!set {a, b}", ["stages=!!set {a, b}", "the value is not valid YAML"]),
        ("model.dtype=float16", ["'float32' or 'bfloat16'"]),
        ("model.lora.target_modules=3", ["expected a list"]),
        ("stages.irl.reward=7", ["expected keys and values"]),
        ("seed.x=1", ["below"]),
        ("seed={", ["not valid YAML"]),
        ("seed", ["key.sub=value"]),
        ("=1", ["key.sub=value"]),
        ("a..b=1", ["key.sub=value"]),
    ],
)
def test_faults_in_overrides(load: Any, override: str, words: list[str]) -> None:
    text = MINIMAL.replace("name: small", "name: small\nseed: 1")
    line = fault(load, override, text=text)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["expected keys and values", "nothing"]),
        ("- a\n", ["expected keys and values", "list"]),
        ("name: [\n", [":2", "not valid YAML"]),
        ("name: a\nseed: 1\nname: b\n", [":3", "'name' is set twice, first in line 1"]),
        ("model: {path: a, path: b}\n", [":1", "'path' is set twice"]),
        (MINIMAL + "  - {kind: sft, name: b, epochs: 1, epochs: 2}\n", [":10", "'epochs' is set twice"]),
        ("a: &a [*a]\n", ["alias"]),
        ("name: 2024-99-99\n", ["cannot be read", "quotes"]),
        ("name: a\n---\nname: b\n", ["not valid YAML"]),
        ("name: !!python/object:os.system x\n", ["not valid YAML"]),
        ("{a: 1}: b\n", ["not valid YAML"]),
        ("a: *nothing\n", ["not valid YAML"]),
        ("1: 2\n", ["1"]),
        ("name: x\nstages: 3\nmodel: {path: a}\n", ["stages: expected a list"]),
        ("name: x\nmodel: {path: a}\nstages: [3]\n", ["stages.0", "expected keys and values"]),
        ("name: x\nmodel: {path: a}\nstages: [{name: [1]}]\n", ["kind is not set", "irl"]),
        ("name: x\nmodel: {path: a}\n", ["stages: required, but not set"]),
        ("name: \x07\n", ["not valid YAML"]),
        (f"'': 3\n{MINIMAL}", ["'': unknown key"]),
    ],
)
def test_faults_in_files(load: Any, text: str, words: list[str]) -> None:
    line = fault(load, text=text)
    assert all(word in line for word in words), line


def test_faults_of_the_file_itself(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, words in ((tmp_path, "a folder"), (tmp_path / "no.yaml", "no such file"), (binary, "UTF-8")):
        with pytest.raises(ConfigError, match=words):
            load_config(path)


def test_more_faults_are_counted(load: Any) -> None:
    assert fault(load, "xyzzy=1", "plugh=2").endswith("(and 1 more)")


def test_a_dictionary_is_checked_alike() -> None:
    with pytest.raises(ConfigError, match="config: model: required, but not set"):
        parse_config({"name": "x", "stages": [{"kind": "sft"}]})


CONTRADICTIONS: list[tuple[list[str], list[str]]] = [
    (["stages.sft.policy=a", "stages.sft.scratch.model_type=llama"], ["policy", "scratch", "not both"]),
    (["stages.irl.policy=stage:stf/policy"], ["names no earlier stage", "did you mean sft?"]),
    (["stages.sft.policy=stage:irl/policy"], ["names no earlier stage"]),
    (["stages.irl.reward.init=stage:sft/reward"], ["nothing that stage sft writes", "stage:sft/policy"]),
    (["stages.irl.policy=stage:sft"], ["nothing that stage sft writes"]),
    (["model.path=stage:base/policy"], ["model.path", "names no stage of this run"]),
    (["data.prompts.path=stage:sft/polcy"], ["data.prompts.path", "did you mean policy?"]),
    (["stages.irl.name=sft"], ["two stages are named 'sft'"]),
    (["stages.sft.name=tensorboard"], ["folder of the run's own"]),
    (["data.demonstrations.streaming=true", "data.heldout_frac=0"], ["stages.sft.max_steps", "no known length"]),
    (["data.demonstrations.streaming=true"], ["stage sft", "every row", "heldout_demonstrations", "heldout_frac to 0"]),
    (["stages.irl.sampling.max_new_tokens=2048"], ["max_new_tokens (2048)", "max_length (2048)"]),
    (["stages.irl.sampling.top_p=0.9"], ["top_p (0.9)", "set it to 1"]),
    (["stages.irl.improve.minibatches=32"], ["minibatches (32)", "prompts_per_step (16)"]),
    (["model.lora.rank=8", "stages.irl.improve.reference=round"], ["with model.lora", "set it to start"]),
    (
        ["model.lora.rank=8", "stages.irl={kind: implicit, name: irl, policy: stage:sft/policy, rounds: 2}"],
        ["stages.irl.reference", "with model.lora", "set it to start"],
    ),
    (["model.attention=flash_attention_2", "model.dtype=float32"], ["flash_attention_2 has no float32"]),
    (["stages.sft.scratch={model_type: llama, max_position_embeddings: 64}"], ["(64)", "model.max_length (2048)"]),
    (["learner.deepspeed.train_batch_size=3"], ["train_batch_size follows from a stage's batch_size"]),
    (["learner.deepspeed.zero_optimization.stage=2"], ["stage is 2, and zero_stage 0: leave out stage"]),
    (["learner.deepspeed.zero_optimization=2"], ["expected keys of DeepSpeed's section"]),
    (["placement.rollout={gpus: 3, tensor_parallel: 2}", "placement.policy.gpus=1"], ["gpus (3)", "tensor_parallel (2)"]),
    (["placement.rollout.tensor_parallel=2"], ["tensor_parallel (2)", "set gpus"]),
    (["placement.colocate=true"], ["same number of gpus"]),
    (["placement={colocate: true, policy: {gpus: 2}, reward: {gpus: 1}, rollout: {gpus: 2}}"], ["same number of gpus"]),
    (
        ["placement={colocate: true, policy: {gpus: 2}, reward: {gpus: 2}, rollout: {gpus: 2, tensor_parallel: 2}}"],
        ["set rollout.tensor_parallel to 1"],
    ),
    (
        [
            "placement={colocate: true, policy: {gpus: 1}, reward: {gpus: 1}, rollout: {gpus: 1}}",
            "stages.irl.max_staleness=1",
        ],
        ["take turns", "max_staleness"],
    ),
    (["placement.rollout.gpus=1"], ["both on GPUs or both without"]),
    (["placement.reward.gpus=1"], ["reward has GPUs only where they have"]),
    (["placement.weight_sync=nccl"], ["nccl is for groups on GPUs"]),
    (["placement.weight_sync=ipc"], ["ipc is for colocated groups"]),
    (["placement={backend: inprocess, reward: {workers: 2}}"], ["one worker a group", "reward.workers"]),
    (["placement={backend: inprocess, policy: {gpus: 2}, rollout: {gpus: 1}}"], ["one worker a group"]),
    (["placement={backend: inprocess, address: auto}"], ["joins no cluster"]),
]


@pytest.mark.parametrize(("overrides", "words"), CONTRADICTIONS, ids=lambda value: value[0][:60])
def test_contradictions(load: Any, overrides: list[str], words: list[str]) -> None:
    """Settings that cannot hold together are refused when they are read, with both sides in the line."""
    line = fault(load, *overrides)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    "overrides",
    [
        ["stages.irl.improve.kl_coef=0", "stages.irl.improve.reference=round"],  # harmless
        ["stages.irl.sampling.temperature=0.7"],  # log-probs are those of the tempered distribution
        ["placement.share_cores=true", "stages.irl.max_staleness=1"],  # two cores, asynchronous
        ["learner={zero_stage: 3, deepspeed: {zero_optimization: {stage: 3, offload_optimizer: {device: cpu}}}}"],
        ["stages.irl.canary_every=1000000"],
        ["data.demonstrations.streaming=true", "data.heldout_frac=0", "stages.sft.max_steps=5"],
        ["data.demonstrations.streaming=true", "data.heldout_demonstrations.path=heldout.jsonl", "stages.sft.max_steps=5"],
        ["data.demonstrations.streaming=true", "stages.sft.data.path=rows.jsonl"],
    ],
    ids=lambda value: value[0],
)
def test_what_may_be_set_together(load: Any, overrides: list[str]) -> None:
    load(*overrides)

"""The alternation for real: vLLM, DeepSpeed and Ray on two cores, and the same numbers without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.cluster.dashboard import asked, exported
from tests.conftest import run_rayalign


def run(values: dict[str, Any], folder: Path) -> Path:
    """Runs a config with the command line; returns the run's folder."""
    config = folder / f"{values['name']}.yaml"
    config.write_text(yaml.safe_dump(values))
    done = run_rayalign("train", str(config))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / values["name"]


def records(folder: Path, stage: str) -> list[dict[str, Any]]:
    """What a stage logged."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["stage"] == stage]


def steps(folder: Path) -> list[dict[str, Any]]:
    """The policy steps of the alternation."""
    return [row for row in records(folder, "rft") if "policy/reward_mean" in row]


def what_is_seen_from_outside(folder: Path) -> None:
    """The Grafana dashboard asks for nothing that a run does not record; TensorBoard has the evaluation's examples."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorded = {name for row in records(folder, "rft") + records(folder, "sft") for name in row}
    assert asked() - exported(recorded) == set()
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    (table,) = board.Tensors("evaluate/examples")
    lines = table.tensor_proto.string_val[0].decode().splitlines()
    assert lines[0] == "| prompt | model | answer | reward |"
    examples = json.loads((folder / "evaluate" / "results.json").read_text())["examples"]
    assert len(lines) == 2 + sum(len(example["answers"]) for example in examples)
    assert all(set(example["rewards"]) == set(example["answers"]) for example in examples)


@pytest.fixture
def two_rounds(loop_values: dict[str, Any], tmp_path: Path) -> Path:
    """Two rounds from the base model, with two policy ranks on Ray.

    From SFT the first round already passes the demonstrator, and the second rightly pulls the policy back.
    """
    loop_values["placement"] = {"policy": {"workers": 2, "cpus": 1}, "reward": {"cpus": 1}, "rollout": {"cpus": 1}}
    rft = next(stage for stage in loop_values["stages"] if stage["name"] == "rft")
    rft |= {"rounds": 2, "policy": rft["reward"]["init"]}
    rft["improve"] |= {"steps": 8}
    return run(loop_values, tmp_path)


def test_two_rounds_on_ray_raise_the_golden_reward(two_rounds: Path) -> None:
    """Two policy ranks, real parts throughout; what the run leaves behind is whole."""
    what_is_seen_from_outside(two_rounds)
    results = json.loads((two_rounds / "evaluate" / "results.json").read_text())["models"]
    golden = {name: cell["1"]["golden"] for name, cell in results.items()}
    assert golden["rft"]["low"] > golden["base"]["high"], golden
    assert len(steps(two_rounds)) == 16
    canaries = [row for row in records(two_rounds, "rft") if "canary/mismatch_mean" in row]
    assert [row["round"] for row in canaries] == [0, 1]  # at the start, and after ten of sixteen steps
    assert max(row["canary/mismatch_mean"] for row in canaries) < 1e-3
    assert max(row["policy/mismatch_mean"] for row in steps(two_rounds)) < 1e-3
    assert steps(two_rounds)[0]["policy/kl_policy_to_ref"] == pytest.approx(0, abs=1e-6)
    assert {row["staleness"] for row in steps(two_rounds)} == {0}
    health = [row for row in records(two_rounds, "rft") if "health/demo_accuracy_heldout" in row]
    assert [row["round"] for row in health] == [0, 1]
    golden_by_round = [row["health/golden_mean"] for row in records(two_rounds, "rft") if "health/golden_mean" in row]
    assert len(golden_by_round) == 3 and golden_by_round[-1] > golden_by_round[0]
    for name in ("policy", "reward"):
        folder = two_rounds / "rft" / name
        (AutoModelForCausalLM if name == "policy" else AutoModelForSequenceClassification).from_pretrained(folder)
        assert AutoTokenizer.from_pretrained(folder).chat_template
    assert (two_rounds / "plot.png").stat().st_size > 10_000
    assert "golden" in json.loads((two_rounds / "summary.json").read_text())
    probes = [json.loads(line) for line in (two_rounds / "rounds.jsonl").read_text().splitlines()]
    assert [(probe["stage"], probe["rounds_done"]) for probe in probes] == [("rft", 0), ("rft", 1), ("rft", 2)]
    before, *after = [[a["reward"] for row in probe["prompts"] for a in row["answers"]] for probe in probes]
    assert len(before) == 2 * len(probes[0]["prompts"]) and set(before) == {None}
    assert all(isinstance(reward, float) for rewards in after for reward in rewards)
    report = (two_rounds / "report.html").read_text()
    assert "Stage rft: where the time went" in report and "RFT" in report


def test_backends_agree_and_finished_stages_are_kept(loop_values: dict[str, Any], tmp_path: Path) -> None:
    """The same config in process and on Ray gives the same numbers; a second run repeats nothing."""
    loop_values["stages"] = [s for s in loop_values["stages"] if s["name"] != "evaluate"]
    rft = next(stage for stage in loop_values["stages"] if stage["name"] == "rft")
    rft["improve"] |= {"steps": 3}
    on_ray = run({**loop_values, "name": "ray", "placement": {}}, tmp_path)
    local = run({**loop_values, "name": "local", "placement": {"backend": "inprocess"}}, tmp_path)
    for key in ("policy/reward_mean", "policy/kl_policy_to_ref", "policy/entropy", "policy/length_mean"):
        assert [row[key] for row in steps(on_ray)] == pytest.approx([row[key] for row in steps(local)], abs=1e-4), key
    before = (on_ray / "rft" / "policy" / "model.safetensors").stat().st_mtime_ns
    run({**loop_values, "name": "ray", "placement": {}}, tmp_path)
    assert (on_ray / "rft" / "policy" / "model.safetensors").stat().st_mtime_ns == before


def test_one_step_off_policy_is_bounded_and_recorded(loop_values: dict[str, Any], tmp_path: Path) -> None:
    """max_staleness 1: the first batch is fresh, the others are one version old, and none is older."""
    loop_values["stages"] = [s for s in loop_values["stages"] if s["name"] != "evaluate"]
    loop_values["placement"] = {"share_cores": True}
    rft = next(stage for stage in loop_values["stages"] if stage["name"] == "rft")
    rft |= {"max_staleness": 1}
    rft["improve"] |= {"steps": 4}
    found = steps(run(loop_values, tmp_path))
    assert [row["staleness"] for row in found] == [0, 1, 1, 1]
    # On-policy the two engines agree to rounding; a version apart they do not, and the weights correct for it.
    assert found[0]["policy/mismatch_mean"] < 1e-5
    assert all(row["policy/mismatch_mean"] > 1e-3 for row in found[1:])

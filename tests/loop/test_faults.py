"""The loop on Ray loses a replica of vLLM and then its policy: both come back, and no step or sample is lost or doubled.

benchmarks/chaos.py does so for every kind of process in every phase, and compares all numbers.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from rayalign.config.load import parse_config
from rayalign.run import run

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

pytestmark = pytest.mark.own_process
STEPS = 6


def test_a_run_outlives_a_replica_and_its_policy(loop_values: dict[str, Any], tmp_path: Path, capfd: Any) -> None:
    from faults import Fault

    rft = next(stage for stage in loop_values["stages"] if stage["name"] == "rft")
    base = rft["reward"]["init"]
    rft |= {"policy": base, "probe_size": 4}
    rft["reward"] = {"init": base, "pooling": "mean", "steps": 3, "batch_size": 8, "num_per_prompt": 1, "num_prompts": 16}
    rft["improve"] |= {"steps": STEPS, "prompts_per_step": 6, "samples_per_prompt": 2}
    loop_values |= {
        "stages": [rft],
        "checkpoints": {"every_s": None, "every_steps": 1},
        "placement": {"rollout": {"workers": 2}, "deadlines": {"sync_s": 60}},
    }
    Fault("rollout", "generate", 4, signal.SIGKILL).inject()  # the canary's, the probe's, the reward's, the first step's
    Fault("policy", "policy update", 3, signal.SIGKILL).inject()
    folder = run(parse_config(loop_values))

    said = capfd.readouterr()
    assert said.out.count("fault: ") == 2
    assert "rollout-1: generate: the worker died" in said.err and "a new replica takes its place" in said.err
    assert "policy-0: policy update v" in said.err and "rft: goes on after step " in said.err
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "policy/reward_mean" in row]
    assert [row["step"] for row in steps] == list(range(STEPS))
    assert {row["policy/num_sequences"] for row in steps} == {12}
    assert max(row["policy/mismatch_mean"] for row in steps) < 1e-3  # the new replica has the weights of then
    assert (folder / "rft" / "policy" / "config.json").exists()

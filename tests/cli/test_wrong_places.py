"""A place that is wrong is told within a second or so: before torch, transformers or Ray are imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "ray", "vllm", "lm_eval", "deepspeed")
CODE = f"""
import atexit, sys
atexit.register(lambda: print([name for name in {HEAVY} if name in sys.modules]))
from rayalign.cli import main
main()
"""
SUITES = {
    "lm-eval": "--tasks a",
    "ifeval": "--prompts a.jsonl",
    "generation": "--prompts a.jsonl",
    "reward": "--pairs a.jsonl",
    "mt-bench": "--questions a.jsonl --judge http://127.0.0.1:9/v1 --judge-model a",
}


@pytest.mark.parametrize(
    "command",
    [
        *(f"evaluate nowhere --suite {suite} {options}" for suite, options in SUITES.items()),
        "compare nowhere elsewhere",
        "export nowhere --to there",
        "report nowhere",
        "watch nowhere --once",
        "serve-reward nowhere",
        "train nowhere.yaml",
        "control train nowhere.yaml",
    ],
)
def test_nothing_heavy_is_imported(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, *command.split()],
        env=os.environ | {"RAYALIGN_REWARD_TOKEN": "t"},
        capture_output=True,
        text=True,
    )
    *said, imported = (done.stderr + done.stdout).splitlines()
    assert done.returncode in (1, 2) and len(said) == 1 and "nowhere" in said[0], said
    assert imported == "[]"

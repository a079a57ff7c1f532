"""What a run survives, as figures: `python benchmarks/chaos.py kill|hang|disk|soak`.

    kill    SIGKILL of each kind of process in each phase of the loop: survived / tried, and whether every metric of every
            step equals that of the run without a fault
    hang    SIGSTOP of each kind of worker, as a process that answers nothing
    disk    200 interruptions of a checkpoint's writing, by SIGKILL at random moments and by a full disk: at how many there
            is a checkpoint that can be loaded
    soak    2,000 steps of the loop on a tiny model: growth of every process's resident memory

A run is one of the planted world's small loop on Ray; its base model comes from the cache, or is made first (minutes).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from faults import PHASES

REPOSITORY = Path(__file__).resolve().parents[1]
DEMO = REPOSITORY / "rayalign" / "planted" / "demo.yaml"
LIMIT_S = 600.0  # of one run; one that takes longer has hung
STEPS = 8
OF_THE_CLOCK = ("time/", "idle_frac/", "tokens_per_s/", "time_s", "update_s")
WORKERS = ("rollout", "reward", "policy")


def main() -> None:
    """One of the four, with its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kill", "hang", "disk", "soak"])
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--only", nargs="*", default=[], help="ROLE or ROLE:PHASE, of kill and hang")
    parser.add_argument("--tries", type=int, default=200, help="of disk")
    parser.add_argument("--steps", type=int, default=2000, help="of soak")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.what == "disk":
        from chaos_disk import interrupt_writes

        interrupt_writes(arguments.out / "disk", arguments.tries)
    elif arguments.what == "soak":
        from chaos_soak import soak

        soak(loop_config(arguments.out, "soak"), arguments.steps)
    else:
        matrix(arguments.out, arguments.what, arguments.only)


def matrix(out: Path, what: str, only: list[str]) -> None:
    """Every kind of process in every phase; a row each."""
    roles = (*WORKERS, "controller", "node") if what == "kill" else WORKERS
    chosen = [(role, phase) for role in roles for phase in PHASES if not only or role in only or f"{role}:{phase}" in only]
    print("| killed | in phase | survived | same numbers | seconds |\n| --- | --- | --- | --- | --- |", flush=True)
    survived = same = 0
    for role, phase in chosen:
        name = f"{what}-{role}-{phase}"
        wanted = no_fault(out, nodes=role == "node")
        started = time.monotonic()
        nth = "2" if phase == "reward_update" else "3"
        fault = ["--kill", role, "--in", phase, "--nth", nth, "--signal", "KILL" if what == "kill" else "STOP"]
        config = loop_config(out, name, nodes=role == "node")
        code = attempt(config, fault)
        if role == "controller" and code == -signal.SIGKILL:
            code = attempt(config, [])  # who submits the job again
        lived = code == 0 and len(steps_of(out / name)) == STEPS
        equal = lived and numbers(out / name) == numbers(wanted)
        survived, same = survived + lived, same + equal
        print(f"| {role} | {phase} | {_yes(lived)} | {_yes(equal)} | {time.monotonic() - started:.0f} |", flush=True)
    print(f"\nsurvived {survived} of {len(chosen)}; every metric of every step as without a fault in {same}")


def no_fault(out: Path, *, nodes: bool) -> Path:
    """The run to compare with: of as many replicas, since vLLM rounds otherwise in a batch of another size."""
    name = "no-fault-nodes" if nodes else "no-fault"
    if not (out / name / "rft" / "done.json").exists():
        attempt(loop_config(out, name, nodes=nodes), ["--nodes"] if nodes else [])
    return out / name


def attempt(config: Path, fault: list[str]) -> int:
    """Runs the config with a fault in a process of its own; its exit code, 124 where it hung."""
    log = config.with_suffix(".log")
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "benchmarks" / "faults.py"), str(config), *fault],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            return process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return 124


def loop_config(out: Path, name: str, *, nodes: bool = False) -> Path:
    """Two rounds of four steps from the base model, a checkpoint at each; three groups, two replicas of vLLM."""
    base = base_model(out)
    sampling = {"max_new_tokens": 26}
    rft = {
        "kind": "irl",
        "name": "rft",
        "policy": str(base / "base" / "policy"),
        "rounds": 2,
        "reward": {
            "init": str(base / "base" / "policy"),
            "pooling": "mean",
            "steps": 6,
            "batch_size": 16,
            "num_per_prompt": 1,
            "num_prompts": 32,
        },
        "improve": {"steps": STEPS // 2, "prompts_per_step": 8, "samples_per_prompt": 4, "kl_coef": 0.1},
        "sampling": sampling,
        "probe_size": 8,
        "canary_every": 3,
    }
    values = yaml.safe_load(DEMO.read_text().replace("stage:world", str(base / "world")))
    values |= {
        "name": name,
        "run_dir": str(out.absolute()),
        "model": {**values["model"], "path": str(base / "base" / "policy")},
        "stages": [rft],
        "checkpoints": {"every_s": None, "every_steps": 1},
        "telemetry": {"tensorboard": False, "progress": False},
        "placement": {
            "share_cores": not nodes,  # on two nodes of whole cores a lost node takes a whole group with it
            "deadlines": {"sync_s": 30, "call_s": 45, "start_s": 240},
            "rollout": {"workers": 1 if nodes else 2},
        },
    }
    config = out / f"{name}.yaml"
    config.write_text(yaml.safe_dump(values))
    return config


def base_model(out: Path) -> Path:
    """A run folder with the planted world and its base model."""
    folder = out / "base"
    if not (folder / "base" / "done.json").exists():
        values = yaml.safe_load(DEMO.read_text())
        values |= {"name": "base", "run_dir": str(out.absolute()), "data": {}, "stages": values["stages"][:3]}
        config = out / "base.yaml"
        config.write_text(yaml.safe_dump({**values, "placement": {"backend": "inprocess"}}))
        subprocess.run([sys.executable, "-m", "rayalign.cli", "train", str(config)], check=True)
    return folder


def numbers(folder: Path) -> list[dict[str, Any]]:
    """All that a run has logged, without what the clock decides."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(OF_THE_CLOCK) and not k.endswith(OF_THE_CLOCK)}
        for line in lines
    ]


def steps_of(folder: Path) -> set[int]:
    """The policy steps that a run has logged, none counted twice."""
    rows = [row["step"] for row in numbers(folder) if "policy/reward_mean" in row]
    return set(rows) if len(rows) == len(set(rows)) else set()


def _yes(found: bool) -> str:
    return "yes" if found else "**no**"


if __name__ == "__main__":
    main()

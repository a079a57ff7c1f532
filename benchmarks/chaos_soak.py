"""A long run on a tiny model, and how the memory of its processes and of the object store grows with its steps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import psutil
import yaml

EVERY_S = 5.0
WARM = 0.25  # of the steps: caches fill, allocators find their size
STEPS_PER_ROUND = 10
MB = 2**20
STORE = "object store"

Samples = dict[str, list[tuple[int, float]]]  # of a process: (step, MB)


def soak(config: Path, steps: int) -> None:
    """Runs `steps` policy steps, with a reward update every ten, and prints a row for every process that lived on."""
    shorten(config, steps)
    folder = Path(yaml.safe_load(config.read_text())["run_dir"]) / config.stem
    started = time.monotonic()
    with config.with_suffix(".log").open("w") as log:
        command = [sys.executable, "-m", "rayalign.cli", "train", str(config)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        samples: Samples = defaultdict(list)
        while process.poll() is None:
            take(process, step_of(folder), samples)
            time.sleep(EVERY_S)
    took = time.monotonic() - started
    print(f"exit code {process.returncode} after {step_of(folder)} steps in {took:.0f} s\n")
    print(f"| process | MB after {WARM:.0%} | MB at the end | MB per 1,000 steps | in the last half |")
    print("| --- | --- | --- | --- | --- |")
    for name, taken in sorted(named(samples).items()):
        if rows := [row for row in taken if row[0] >= WARM * steps]:
            at, held = np.array(rows).T
            late = at >= steps / 2
            slopes = f"{slope(at, held)} | {slope(at[late], held[late])}"
            print(f"| {name} | {held[0]:.0f} | {held[-1]:.0f} | {slopes} |", flush=True)
    config.with_suffix(".memory.json").write_text(json.dumps(samples))


def named(samples: Samples) -> Samples:
    """With the roles of our workers, which start in this order."""
    workers = [name for name in samples if name.startswith("EngineWorker")]
    roles = dict(zip(workers, ("rollout", "reward", "policy"), strict=False))
    return {f"{roles[name]} worker" if name in roles else name: taken for name, taken in samples.items()}


def slope(at: np.ndarray, held: np.ndarray) -> str:
    """MB per 1,000 steps, of [N] steps and [N] MB."""
    return f"{np.polyfit(at, held, 1)[0] * 1000:+.1f}" if len(at) > 1 and np.ptp(at) else "-"


def shorten(config: Path, steps: int) -> None:
    """The loop's config with so many steps, each as small as one can be."""
    values = yaml.safe_load(config.read_text())
    rft = values["stages"][0]
    rft["rounds"] = -(-steps // STEPS_PER_ROUND)
    rft["reward"] |= {"steps": 2, "batch_size": 4, "num_prompts": 8}
    rft["improve"] |= {"steps": STEPS_PER_ROUND, "prompts_per_step": 2, "samples_per_prompt": 2}
    rft["sampling"] = {"max_new_tokens": 8}
    rft |= {"probe_size": 2, "canary_every": 100}
    values["checkpoints"] = {"every_s": None, "every_steps": 100}
    values["placement"]["rollout"] = {"workers": 1}
    config.write_text(yaml.safe_dump(values))


def step_of(folder: Path) -> int:
    """Policy steps so far."""
    log = folder / "metrics.jsonl"
    if not log.exists():
        return 0
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 65536))
        lines = file.read().decode(errors="replace").splitlines()
    whole = [line for line in lines if line.startswith("{") and line.endswith("}")]
    return max((json.loads(line)["step"] + 1 for line in whole if '"policy/reward_mean"' in line), default=0)


def take(root: psutil.Popen, step: int, samples: Samples) -> None:
    """Private memory of every process below `root`, and the pages of the object store."""
    for process in [psutil.Process(root.pid), *root.children(recursive=True)]:
        try:
            memory, name = process.memory_info(), name_of(process)
            samples[f"{name} ({process.pid})"].append((step, (memory.rss - memory.shared) / MB))
            if name == "raylet":
                samples[STORE].append((step, store_pages(process.pid) / MB))
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue  # it has ended meanwhile


def name_of(process: psutil.Process) -> str:
    """What a person would call it."""
    command = " ".join(process.cmdline()) or process.name()
    if "rayalign.cli" in command:
        return "controller"
    if found := re.match(r"ray::(\w+)", command):
        return found[1]
    found = re.search(r"(gcs_server|raylet/raylet|dashboard\.py|log_monitor|monitor)", command)
    return found[1].replace("raylet/raylet", "raylet") if found else Path(command.split()[0]).name


def store_pages(pid: int) -> int:
    """Bytes of shared memory that a raylet's object store has taken from the system."""
    held = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if "plasma" in os.readlink(link):
            status = os.stat(link)
            held[status.st_ino] = status.st_blocks * 512
    return sum(held.values())

"""A run to be watched: the demo's config, a folder that is held, and records as the tracker writes them."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rayalign.config.load import dump_config, load_config
from rayalign.config.telemetry import TelemetryConfig
from rayalign.storage.aside import write_json
from rayalign.storage.run_folder import held, make_folder, write_config
from rayalign.telemetry.tracker import Tracker
from tests.conftest import DEMO

FINISHED = ("world", "pretrain", "base", "sft", "base_samples")
STEP = {"policy/kl_policy_to_ref": 0.25, "policy/entropy": 0.75, "policy/length_mean": 17.0, "time/step_s": 0.1}


def begin(folder: Path, *overrides: str) -> None:
    """The config, and what has finished before the stage that is watched."""
    make_folder(folder)
    write_config(folder, dump_config(load_config(DEMO, [f"run_dir={folder.parent}", f"name={folder.name}", *overrides])))
    for stage in FINISHED:
        write_json(folder / stage / "done.json", {})


def steps(tracker: Tracker, first: int, last: int, pause_s: float) -> None:
    """Steps of the loop, from one to another, with what comes between them."""
    for step in range(first, last):
        if step == 0:
            tracker.log("rft", 0, 0, {"health/entropy": 0.8})
            tracker.log("rft", 0, 0, {"reward/margin_demo_minus_agent": 1.5})
        tracker.log("rft", 0, step, {"policy/reward_mean": step / 10, **STEP})
        time.sleep(pause_s)


def main(folder: Path, num_steps: int, pause_s: float, end: str) -> None:
    """`end` is "finishes", or "waits" (for the file `go` in the folder, and then finishes)."""
    make_folder(folder)
    with held(folder):
        begin(folder)
        with Tracker(folder, TelemetryConfig(tensorboard=False), folder.name, {}) as tracker:
            steps(tracker, 0, num_steps, pause_s)
            while end == "waits" and not (folder / "go").exists():
                time.sleep(0.05)
        for stage in ("rft", "evaluate"):
            write_json(folder / stage / "done.json", {})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])

"""What a run writes, the same for every tracker: two stages, a resumed run, a table with awkward text."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rayalign.config.telemetry import TelemetryConfig
from rayalign.telemetry.metrics import Mean
from rayalign.telemetry.tracker import Tracker

RESOLVED = {"seed": 0, "stages": [{"name": "sft", "epochs": 3}, {"name": "irl", "rounds": 2}]}
COLUMNS = ("prompt", "demonstration", "answer", "reward")
ROWS = [
    ("how many | bars?", None, "two\n<b>bold</b> *lines*", 0.5),
    ("größer?", "ja", "`code` & [a link](http://x) €", None),
]
CURVES = {"sft/nll_token": [(1, 1.5)], "irl/policy/kl_policy_to_ref": [(2, 0.75), (3, 1.0)]}


def run_twice(folder: Path, config: TelemetryConfig) -> None:
    """A run, and its resumption."""
    with Tracker(folder, config, "demo", RESOLVED) as tracker:
        tracker.log("sft", None, 1, {"nll_token": Mean(3.0, 2)})
        tracker.log("irl", 0, 1, {"policy/kl_policy_to_ref": Mean(3.0, 4)})
    with Tracker(folder, config, "demo", RESOLVED) as tracker:
        tracker.log("irl", 0, 2, {"policy/kl_policy_to_ref": 1.0})
        tracker.table("irl", 2, "samples", COLUMNS, ROWS)
        tracker.table("irl", 2, "nothing", COLUMNS, [])


if __name__ == "__main__":
    run_twice(Path(sys.argv[1]), TelemetryConfig.model_validate(json.loads(sys.argv[2])))

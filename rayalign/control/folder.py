"""What lies in the folder of a control run, beside its config, metrics and checkpoints."""

from __future__ import annotations

from pathlib import Path

from rayalign.config.control import ControlConfig

POLICY_FILE, REWARD_FILE, RESULTS_FILE = "policy.safetensors", "reward.safetensors", "results.json"
DONE_FILE = "done.json"  # the settings of a run that is finished
REPORT_FILE = "report.html"
PRODUCTS = (DONE_FILE, RESULTS_FILE, POLICY_FILE, REWARD_FILE, REPORT_FILE)
STAGE = "control"


def run_folder(config: ControlConfig) -> Path:
    """Where a run writes."""
    return Path(config.run_dir).expanduser().absolute() / config.name

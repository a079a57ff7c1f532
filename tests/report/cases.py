"""Results as the evaluate stage writes them, for the tests of this folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

TEMPERATURES = (1.0, 0.7, 0.5, 0.2)
BASE = (0.209, 0.166, 0.122, 0.051)
SFT = (0.421, 0.468, 0.501, 0.554)
RFT = (0.751, 0.842, 0.881, 0.920)


def estimate(mean: float, half: float = 0.02, num: int = 500) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "num": num}


def cell(golden: float | None, half: float = 0.02, ended: float = 0.99) -> dict[str, Any]:
    return {
        "golden": None if golden is None else estimate(golden, half),
        "reward": estimate(3 * (golden or 0.0) - 1),
        "length": estimate(17.3),
        "ended_frac": ended,
        "parsed_frac": 0.97,
        "attributes": {"polite": 0.8, "name": 0.7},
    }


def model(means: tuple[float, ...], half: float = 0.02, ended: float = 0.99) -> dict[str, Any]:
    return {str(t): cell(mean, half, ended) for t, mean in zip(TEMPERATURES, means, strict=True)}


def full(
    sft: tuple[float, ...] = SFT, rft: tuple[float, ...] = RFT, expert: float | None = 0.45, **kwargs: Any
) -> dict:
    """A whole results.json; `kwargs` go to the rft model."""
    return {
        "models": {"base": model(BASE), "sft": model(sft), "rft": model(rft, **kwargs)},
        "expert": None if expert is None else {"golden": expert},
        "reward_accuracy": {
            "heldout_pairs": estimate(0.91, 0.03, 400),
            "policy_samples": estimate(0.82, 0.04, 300),
        },
        "examples": [
            {
                "prompt": f"anna asks price? lamp{i} at corner [/bold]",
                "demonstration": "hello anna , the price of the lamp is 12 . thank you .",
                "answers": {
                    "base": "mate no idea about the lamp",
                    "sft": "hello anna , bye .",
                    "rft": "hello anna",
                },
            }
            for i in range(4)
        ],
    }


def write_metrics(path: Path, rounds: int = 2, steps: int = 20) -> Path:
    """A metrics.jsonl of an sft stage and an irl stage."""
    lines: list[dict[str, Any]] = [{"stage": "sft", "round": None, "step": 1, "time_s": 0.0, "sft/loss": 2.0}]
    for r in range(rounds):
        accuracy = {"reward/pair_accuracy": 0.9 + 0.02 * r, "health/demo_accuracy_heldout": 0.88 - 0.05 * r}
        lines.append({"stage": "irl", "round": r, "step": r * steps, "reward/loss": 0.4} | accuracy)
        for s in range(1, steps + 1):
            x = r * steps + s
            policy = {
                "policy/reward_mean": 1.5 * (1 - math.exp(-x / 15)),
                "policy/kl_policy_to_ref": 0.06 * x,
            }
            lines.append({"stage": "irl", "round": r, "step": x, "time_s": float(x)} | policy)
        lines.append(
            {
                "stage": "irl",
                "round": r,
                "step": (r + 1) * steps,
                "health/rank_accuracy_policy": 0.8 - 0.1 * r,
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path

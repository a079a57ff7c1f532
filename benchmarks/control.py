"""ML-IRL from ONE expert trajectory on Hopper-v5 and HalfCheetah-v5, against behaviour cloning.

    python -m benchmarks.control --data ../shared/data/mujoco --seeds 3
    python -m benchmarks.control --only halfcheetah --seeds 1 --minutes 5 --set rounds=20

Starts from configs/control/NAME-fast.yaml; `--set` overrides its keys, and `--minutes` bounds each run. For each: the true
return as a share of the trajectory's own, with a 95% t interval over seeds, and the correlation of the learned with the true
reward. Published figures stand beside them; they are of other versions of the environments and other experts.
Writes OUT/results.json after each run, so that a run that is stopped has what it reached; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rayalign.control.commands import load_control
from rayalign.control.train import train
from rayalign.evaluate.statistics import mean_interval
from rayalign.storage.aside import write_json

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "control"
FILES = {"hopper": "hopper_v5_expert.npz", "halfcheetah": "halfcheetah_v5_expert.npz"}
METHODS = ("ml_irl", "behaviour_cloning")
# IQ-Learn (arXiv 2106.12142), Table 3: one expert trajectory, v2 environments, its own experts.
PUBLISHED = {
    "hopper": {"GAIL": 3252.5, "DAC": 3305.1, "ValueDICE": 3312.1, "IQ-Learn": 3546.4, "expert": 3532.7},
    "halfcheetah": {"GAIL": 3080.0, "DAC": 4080.6, "ValueDICE": 3835.6, "IQ-Learn": 5076.6, "expert": 5098.3},
}


def run(name: str, method: str, seed: int, parsed: argparse.Namespace) -> dict[str, Any]:
    """One run of a method, and what it reached in the time."""
    data = Path(parsed.data) / FILES[name]
    overrides = [
        f"name={name}-{method}-{seed}",
        f"run_dir={parsed.out}",
        f"method={method}",
        f"seed={seed}",
        *([f"max_s={60 * parsed.minutes}"] if parsed.minutes else []),
        f"demonstrations={{path: {data}, num: 1}}",
        *parsed.set,
    ]
    folder = train(load_control(CONFIGS / f"{name}-fast.yaml", overrides))
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    share = found["return_mean"] / found["demonstrations_return_mean"]
    return found | {"environment": name, "seed": seed, "share_of_expert": share}


def report(results: list[dict[str, Any]]) -> None:
    """A line for each environment and method."""
    for name in dict.fromkeys(result["environment"] for result in results):
        for method in METHODS:
            own = [result for result in results if (result["environment"], result["method"]) == (name, method)]
            if not own:
                continue
            shares = mean_interval([result["share_of_expert"] for result in own])
            correlations = [result["reward_correlation"] for result in own if result.get("reward_correlation") is not None]
            told = f", correlation {sum(correlations) / len(correlations):.2f}" if correlations else ""
            ends = f" [{shares.low:.1%}, {shares.high:.1%}]" if len(own) > 1 else ""
            print(f"{name:<12} {method:<18} {shares.mean:7.1%} of the expert's return{ends}, {len(own)} seeds{told}")
        expert = PUBLISHED[name]["expert"]
        others = ", ".join(f"{other} {value / expert:.0%}" for other, value in PUBLISHED[name].items() if other != "expert")
        print(f"{name:<12} published, of their own expert: {others}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/mujoco", help="the folder with the experts' files")
    parser.add_argument("--out", default="runs/control-benchmark")
    parser.add_argument("--minutes", type=float, help="of each run at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=sorted(FILES), action="append", help="an environment; may be repeated")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as on the command line")
    parsed = parser.parse_args()
    plan = [(name, method, seed) for name in parsed.only or FILES for seed in range(parsed.seeds) for method in METHODS]
    results: list[dict[str, Any]] = []
    for name, method, seed in plan:
        results.append(run(name, method, seed, parsed))
        write_json(Path(parsed.out) / "results.json", results)
    report(results)


if __name__ == "__main__":
    main()

"""What is quick to see of control: `.venv/bin/python -m benchmarks.control_small exact|tiers|pendulum`.

    exact     KL(pi_E || pi) on a 6x6 gridworld with exact soft value iteration: demonstrations only, preferences only, AIHF
    tiers     the same over amounts of demonstrations and pairs, for demonstrators of three qualities: AIHF's ablation
    pendulum  true return on Pendulum-v1 from demonstrations of a scripted expert: behaviour cloning, and ML-IRL

All over seeds; one, five and about twenty minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from rayalign.control.commands import load_control
from rayalign.control.environments import look_at
from rayalign.control.evaluation import measure_return, random_act
from rayalign.control.train import train
from tests.control.test_exact import AMOUNTS, SEEDS, scores
from tests.control.worlds import PENDULUM, demonstrate, write_demonstrations

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "control" / "pendulum.yaml"
EPOCHS = (20, 60, 200)
NUMS = (1, 3, 10)
QUALITIES = {"the expert's quality": 1.0, "temperature 2": 2.0, "temperature 4": 4.0}
DEMONSTRATIONS = (3, 10, 40)
PAIRS = (40, 100, 300)


def main() -> None:
    """One of the three, with its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["exact", "tiers", "pendulum"])
    parser.add_argument("--out", type=Path, default=Path("runs/control-small"))
    parser.add_argument("--seeds", type=int, default=2, help="of pendulum")
    arguments = parser.parse_args()
    if arguments.what == "exact":
        exact()
    elif arguments.what == "tiers":
        tiers()
    else:
        arguments.out.mkdir(parents=True, exist_ok=True)
        pendulum(arguments.out, arguments.seeds)


def exact() -> None:
    """Means over seeds, and for how many of them both sources together were best."""
    print("| demonstrations, pairs | demonstrations only | preferences only | AIHF | AIHF best |")
    print("| --- | --- | --- | --- | --- |")
    for num_demos, num_pairs in AMOUNTS:
        found = [scores(num_demos, num_pairs, seed) for seed in SEEDS]
        means = " | ".join(f"{statistics.fmean(score[name] for score in found):.3f}" for name in found[0])
        best = sum(score["joint"] < min(score["demonstrations"], score["preferences"]) for score in found)
        print(f"| {num_demos}, {num_pairs} | {means} | {best} of {len(found)} |", flush=True)


def tiers() -> None:
    """A table a quality: KL(pi_E || pi) of demonstrations only / preferences only / AIHF, means over seeds."""
    for quality, temperature in QUALITIES.items():
        print(f"\ndemonstrators of {quality}: demonstrations only / preferences only / AIHF\n")
        print(f"| demonstrations | {' | '.join(f'{num} pairs' for num in PAIRS)} |\n| --- |{' --- |' * len(PAIRS)}")
        for num_demos in DEMONSTRATIONS:
            cells = []
            for num_pairs in PAIRS:
                found = [scores(num_demos, num_pairs, seed, temperature) for seed in SEEDS]
                cells.append(" / ".join(f"{statistics.fmean(score[name] for score in found):.3f}" for name in found[0]))
            print(f"| {num_demos} | {' | '.join(cells)} |", flush=True)


def pendulum(out: Path, seeds: int) -> None:
    """Mean true returns over 20 fixed resets."""
    file = write_demonstrations(out / "demonstrations.npz", max(NUMS))
    task = look_at(PENDULUM)
    random = measure_return(PENDULUM, task, random_act(task, 0), 20, 10_000)
    print(f"random actions {random:.0f}; the expert's demonstrations {demonstrate(max(NUMS)).mean_return():.0f}\n")
    heads = " | ".join(f"cloning, {epochs} epochs" for epochs in EPOCHS)
    print(f"| demonstrations | {heads} | ML-IRL |\n| --- | {'--- | ' * len(EPOCHS)}--- |")
    for num in NUMS:
        cells = [_returns(out, file, num, seeds, "behaviour_cloning", f"policy.cloning_epochs={n}") for n in EPOCHS]
        print(f"| {num} | {' | '.join([*cells, _returns(out, file, num, seeds, 'ml_irl')])} |", flush=True)


def _returns(out: Path, file: Path, num: int, seeds: int, method: str, *settings: str) -> str:
    found = []
    for seed in range(seeds):
        name = "-".join([method, str(num), str(seed), *(setting.rpartition("=")[2] for setting in settings)])
        source = f"demonstrations={{path: {file.absolute()}, num: {num}}}"
        config = load_control(CONFIG, [f"name={name}", f"run_dir={out.absolute()}", f"method={method}", f"seed={seed}",
                                       "telemetry.progress=false", source, *settings])  # fmt: skip
        results = json.loads((train(config) / "results.json").read_text(encoding="utf-8"))
        found.append(f"{results['return_mean']:.0f}")
    return ", ".join(found)


if __name__ == "__main__":
    main()

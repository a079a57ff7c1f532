"""What is quick to see of control: `.venv/bin/python -m benchmarks.control_small exact|tiers|pendulum|ablation`.

    exact     KL(pi_E || pi) on a 6x6 gridworld with exact soft value iteration: demonstrations only, preferences only, AIHF
    tiers     the same over amounts of demonstrations and pairs, for demonstrators of three qualities: AIHF's ablation
    pendulum  true return on Pendulum-v1 from demonstrations of a scripted expert: behaviour cloning, and ML-IRL
    ablation  true return on Pendulum-v1 over amounts of demonstrations and pairs, for demonstrators of three qualities that
              `rayalign control expert` made: ML-IRL, preferences only, AIHF

All over seeds; one, one, twenty and sixty minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from rayalign.control.commands import load_control
from rayalign.control.environments import look_at
from rayalign.control.evaluation import measure_return, random_act
from rayalign.control.experts import make_expert
from rayalign.control.train import train
from tests.control.test_exact import AMOUNTS, SEEDS, scores
from tests.control.worlds import PENDULUM, demonstrate, write_demonstrations

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "control" / "pendulum.yaml"
EPOCHS = (20, 60, 200)
NUMS = (1, 3, 10)
QUALITIES = {"the expert's quality": 1.0, "temperature 2": 2.0, "temperature 4": 4.0}
DEMONSTRATIONS = (3, 10, 40)
PAIRS = (40, 100, 300)
SHARES = (0.8, 0.5)  # of the way from the first return to the expert's: the two other tiers
ABLATION_DEMONSTRATIONS, ABLATION_PAIRS = (1, 10), (30, 300)
QUIET = ("telemetry.progress=false", "telemetry.tensorboard=false")


def main() -> None:
    """One of them, with its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["exact", "tiers", "pendulum", "ablation"])
    parser.add_argument("--out", type=Path, default=Path("runs/control-small"))
    parser.add_argument("--seeds", type=int, default=2, help="of pendulum and ablation")
    arguments = parser.parse_args()
    if arguments.what == "exact":
        exact()
    elif arguments.what == "tiers":
        tiers()
    else:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (pendulum if arguments.what == "pendulum" else ablation)(arguments.out.absolute(), arguments.seeds)


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
        demos = f"demonstrations={{path: {file}, num: {num}}}"
        cells = [
            _returns(out, f"cloning-{num}-{n}", seeds, "method=behaviour_cloning", demos, f"policy.cloning_epochs={n}")
            for n in EPOCHS
        ]
        cells.append(_returns(out, f"ml_irl-{num}", seeds, "method=ml_irl", demos))
        print(f"| {num} | {' | '.join(cells)} |", flush=True)


def ablation(out: Path, seeds: int) -> None:
    """Mean true returns over 20 fixed resets; the experts and their pairs are made first."""
    shares = ", ".join(str(share) for share in SHARES)
    config = load_control(CONFIG, ["name=expert", f"run_dir={out}", f"expert.tiers=[{shares}]", *QUIET])
    place = make_expert(config)
    tiers = json.loads((place / "results.json").read_text(encoding="utf-8"))["tiers"]
    alone = {}
    for num_pairs in ABLATION_PAIRS:
        pairs = f"preferences={{path: {place}/preferences.npz, num: {num_pairs}}}"
        alone[num_pairs] = _returns(out, f"preferences-{num_pairs}", seeds, "method=preferences", pairs)
    print("| demonstrators | demonstrations | pairs | ML-IRL | preferences only | AIHF |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for tier, told in tiers.items():
        for num in ABLATION_DEMONSTRATIONS:
            demos = f"demonstrations={{path: {place}/{tier}.npz, num: {num}}}"
            first = _returns(out, f"ml_irl-{tier}-{num}", seeds, "method=ml_irl", demos)
            for num_pairs in ABLATION_PAIRS:
                pairs = f"preferences={{path: {place}/preferences.npz, num: {num_pairs}}}"
                both = _returns(out, f"aihf-{tier}-{num}-{num_pairs}", seeds, "method=aihf", demos, pairs)
                quality = f"{told['return_mean']:.0f}"
                print(f"| {quality} | {num} | {num_pairs} | {first} | {alone[num_pairs]} | {both} |", flush=True)


def _returns(out: Path, name: str, seeds: int, *settings: str) -> str:
    """Of each seed."""
    found = []
    for seed in range(seeds):
        config = load_control(CONFIG, [f"name={name}-{seed}", f"run_dir={out}", f"seed={seed}", *QUIET, *settings])
        results = json.loads((train(config) / "results.json").read_text(encoding="utf-8"))
        found.append(f"{results['return_mean']:.0f}")
    return ", ".join(found)


if __name__ == "__main__":
    main()

"""SAC updates per second: this package's learner on RLlib, and stable-baselines3, on the same networks, batch and replay.

    python benchmarks/control_speed.py                  # Hopper-v5's sizes, 256x256, batch 256
    python benchmarks/control_speed.py --hidden 64 --batch 128 --environment Pendulum-v1

Both run in this process on one thread, in turns, so that a busy machine slows both alike. Environment steps are left out:
the simulators are the same. Prints the rates of each turn and the ratio of their medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import gymnasium
import numpy as np
import torch

from rayalign.config.control import ControlConfig
from rayalign.control.environments import look_at
from rayalign.control.session import RlSession


def random_rows(num: int, num_observations: int, num_actions: int) -> dict[str, np.ndarray]:
    """Transitions of noise: speed does not depend on what they hold."""
    rng = np.random.default_rng(0)
    return {
        "obs": rng.normal(size=(num, num_observations)).astype(np.float32),
        "new_obs": rng.normal(size=(num, num_observations)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (num, num_actions)).astype(np.float32),
        "rewards": rng.normal(size=num).astype(np.float32),
        "terminateds": np.zeros(num, np.float32),
    }


def ours(parsed: argparse.Namespace, *, learned: bool) -> tuple[RlSession, ControlConfig]:
    """A session with or without a learned reward."""
    options = {"terminate_when_unhealthy": False} if parsed.environment.startswith(("Hopper", "Walker")) else {}
    config = ControlConfig.model_validate(
        {
            "name": "speed",
            "environment": {"id": parsed.environment, "options": options},
            "policy": {"hidden": [parsed.hidden] * 2, "batch_size": parsed.batch},
        }
    )
    task = look_at(config.environment)
    weights = (1.0, 0.0) if learned else None
    return RlSession(config, task, np.ones(task.observation_size, np.float32), coefficients=weights), config


def main() -> None:
    from stable_baselines3 import SAC

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", default="Hopper-v5")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--updates", type=int, default=100, help="of one turn")
    parser.add_argument("--turns", type=int, default=5)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    fixed, config = ours(parsed, learned=False)
    learned, _ = ours(parsed, learned=True)
    rows = random_rows(20_000, fixed.task.observation_size, fixed.task.action_size)
    environment = gymnasium.make(parsed.environment, **config.environment.options)
    network = {"net_arch": [parsed.hidden] * 2}
    other = SAC("MlpPolicy", environment, batch_size=parsed.batch, policy_kwargs=network, buffer_size=20_000, device="cpu")
    other._setup_learn(1)
    for row in range(20_000):
        at = {name: array[row : row + 1] for name, array in rows.items()}
        other.replay_buffer.add(at["obs"], at["new_obs"], at["actions"], at["rewards"], at["terminateds"], [{}])
    rng = np.random.default_rng(1)

    def draw() -> dict[str, np.ndarray]:
        chosen = rng.integers(0, 20_000, parsed.updates * parsed.batch)
        return {name: array[chosen] for name, array in rows.items()}

    runs = {
        "stable-baselines3": lambda: other.train(parsed.updates, parsed.batch),
        "rayalign, fixed reward": lambda: fixed.update_policy(draw()),
        "rayalign, learned reward": lambda: learned.update_policy(draw()),
    }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(parsed.turns + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            if turn:  # the first one warms up
                rates[name].append(parsed.updates / (time.perf_counter() - begun))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, found in rates.items():
        turns = " ".join(f"{rate:.0f}" for rate in found)
        print(f"{name:<26} {medians[name]:7.1f} updates/s ({turns})  x{medians[name] / medians['stable-baselines3']:.2f}")


if __name__ == "__main__":
    main()

"""One thread, whatever ran before; a config of Pendulum that is small enough for a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rayalign.config.control import ControlConfig
from tests.control.worlds import PENDULUM, write_demonstrations, write_preferences

MakeConfig = Callable[..., ControlConfig]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small(tmp_path: Path) -> MakeConfig:
    """A config of few steps and small networks; keyword arguments replace sections, or add to them."""
    write_demonstrations(tmp_path / "demonstrations.npz", 2)
    write_preferences(tmp_path / "preferences.npz", 30)

    def make(**changes: Any) -> ControlConfig:
        values: dict[str, Any] = {
            "name": "small",
            "run_dir": str(tmp_path),
            "environment": PENDULUM.model_dump(),
            "demonstrations": {"path": str(tmp_path / "demonstrations.npz")},
            "preferences": {"path": str(tmp_path / "preferences.npz")},
            "rounds": 2,
            "reward": {"hidden": [16, 16]},
            "policy": {"hidden": [16, 16], "batch_size": 32, "warmup_steps": 60, "steps_per_round": 40, "fragment": 20},
            "evaluation": {"every": 2, "num_episodes": 2},
            "telemetry": {"tensorboard": False, "progress": False},
        }
        for key, value in changes.items():
            values[key] = values.get(key, {}) | value if isinstance(value, dict) else value
        return ControlConfig.model_validate(values)

    return make

"""What goes wrong on the way: inside an environment, at the last measurement, in a folder that was damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import rayalign.control.train as training
from rayalign.control.alternation import Alternation
from rayalign.control.commands import load_control
from rayalign.control.demonstrations import Demonstrations, save_demonstrations
from rayalign.control.environments import look_at
from rayalign.control.experts import make_expert
from rayalign.control.report import read_result
from rayalign.control.train import train
from rayalign.errors import ConfigError, Diverged, UserError
from tests.conftest import REPOSITORY
from tests.control.conftest import MakeConfig


class Faulty(gymnasium.Env[np.ndarray, np.ndarray]):
    """A point on a line, and what is wrong with it."""

    def __init__(self, fault: str = "") -> None:
        self.fault, self.num = fault, 0
        self.observation_space = gymnasium.spaces.Box(-10.0, 10.0, (3,))
        high = -1.0 if fault == "fixed" else 1.0
        self.action_space = gymnasium.spaces.Box(-1.0, np.float32(high), (1,))
        if fault == "constructor":
            raise KeyError("torso")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.num = 0
        if self.fault == "reset":
            raise OSError("the lid is closed")
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.num += 1
        fault = self.fault if self.num == 5 else ""
        if fault == "step":
            raise ZeroDivisionError("a wheel is stuck")
        observation = np.full(4 if fault == "shape" else 3, np.nan if fault == "nan" else 0.1, np.float32)
        return observation, np.nan if fault == "reward" else 1.0, False, False, {}


gymnasium.register("rayalign-tests/Faulty-v0", Faulty, max_episode_steps=20)
FAULTS = {
    "reset": "Faulty-v0 failed in reset 0: OSError: the lid is closed",
    "step": "Faulty-v0 failed in step 5: ZeroDivisionError: a wheel is stuck",
    "nan": "Faulty-v0 observed nan at step 5 of an episode",
    "shape": r"Faulty-v0 observed \(4,\) at step 5 of an episode, not \(3,\)",
    "reward": "Faulty-v0 paid nan at step 5 of an episode",
    "constructor": "Faulty-v0 cannot be made: KeyError: 'torso'",
    "fixed": "whose number 0 has one value only",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_environments_faults_are_told_as_its_own(small: MakeConfig, tmp_path: Path, fault: str) -> None:
    """In training, where RLlib stands between, and with its name."""
    sound = look_at(small(environment={"id": "rayalign-tests/Faulty-v0", "observation_scale": None}).environment)
    steps = Demonstrations(np.zeros((20, 3), np.float32), np.zeros((20, 1), np.float32), np.array([20]))
    save_demonstrations(tmp_path / "own.npz", steps, sound)
    environment = {"id": "rayalign-tests/Faulty-v0", "observation_scale": None, "options": {"fault": fault}}
    with pytest.raises(UserError, match=FAULTS[fault]) as caught:
        train(small(environment=environment, demonstrations={"path": str(tmp_path / "own.npz")}))
    assert "\n" not in str(caught.value)


def test_a_module_that_is_not_found_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="a config of language models"):
        load_control(REPOSITORY / "configs" / "rft.yaml")
    config = load_control(REPOSITORY / "configs" / "control" / "pendulum.yaml", ["environment.id=nowhere_at_all:Own-v0"])
    with pytest.raises(UserError, match="PYTHONPATH has to name the folder that holds nowhere_at_all"):
        look_at(config.environment)


def test_what_fails_after_the_last_round_does_not_cost_the_rounds(
    small: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command measures what was learned, and learns nothing anew."""

    def fails(*_: Any) -> Any:
        raise UserError("the simulator is gone")

    config = small()
    with monkeypatch.context() as patched:
        patched.setattr(training, "evaluate_networks", fails)
        with pytest.raises(UserError, match="the simulator is gone"):
            train(config)
    monkeypatch.setattr(Alternation, "policy_steps", fails)
    results = json.loads((train(config) / "results.json").read_text())
    assert results["rounds"] == 2 and np.isfinite(results["return_mean"])


def test_a_run_that_diverges_leaves_its_last_good_networks(small: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverges(*_: Any) -> Any:
        raise Diverged("the policy's loss was not finite")

    monkeypatch.setattr(Alternation, "reward_steps", diverges)
    config = small()
    with pytest.raises(Diverged, match="Saved: the last good policy.safetensors and reward.safetensors in"):
        train(config)
    folder = Path(config.run_dir) / config.name
    assert (folder / "policy.safetensors").exists() and (folder / "reward.safetensors").exists()


def test_a_finished_folder_that_was_damaged_says_so(small: MakeConfig) -> None:
    """And is not taken for finished; what is read is as open to others as its folder."""
    config = small()
    folder = train(config)
    results = (folder / "results.json").read_text()
    for name in ("results.json", "done.json"):
        before = (folder / name).read_text()
        (folder / name).write_text("{")
        with pytest.raises(UserError, match=f"{name}: cannot be read; set name="):
            train(config)
        (folder / name).write_text(before)
    (folder / "results.json").write_text("{}")
    with pytest.raises(UserError, match="results.json without returns"):
        read_result(folder)
    (folder / "results.json").write_text(results)
    (folder / "metrics.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(UserError, match="its metrics or results cannot be read"):
        read_result(folder)
    shared = 0o600 | folder.stat().st_mode & 0o044
    assert all((folder / f"{name}.safetensors").stat().st_mode & 0o777 == shared for name in ("policy", "reward"))
    (folder / "reward.safetensors").unlink()
    with pytest.raises(UserError, match="reward.safetensors: is gone, and the run was finished"):
        train(config)


def test_fewer_rounds_than_are_done_end_the_run(small: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is measured, and the run is finished."""

    def fails(*_: Any) -> Any:
        raise UserError("the simulator is gone")

    with monkeypatch.context() as patched:
        patched.setattr(training, "evaluate_networks", fails)
        with pytest.raises(UserError, match="the simulator is gone"):
            train(small())
    folder = train(small(rounds=1))
    assert json.loads((folder / "results.json").read_text())["rounds"] == 2 and (folder / "done.json").exists()


def test_an_expert_needs_no_demonstrations(small: MakeConfig) -> None:
    """Keys of a run that learns from them are not read."""
    policy = {"demonstration_share": 0.25, "cloning_weight": 0.4, "schedule": "linear", "ema_decay": 0.9, "start": "cloned"}
    config = small(policy=policy, expert={"steps": 120, "num_trajectories": 1, "num_preferences": 0})
    assert (make_expert(config) / "demonstrations.npz").exists()


def test_an_experts_data_are_kept(small: MakeConfig) -> None:
    """Runs learn from them: others are made elsewhere, or when asked for."""
    config = small(expert={"steps": 80, "num_trajectories": 1, "num_preferences": 0})
    place = make_expert(config)
    made = (place / "demonstrations.npz").stat().st_mtime_ns
    assert make_expert(config) == place and (place / "demonstrations.npz").stat().st_mtime_ns == made
    with pytest.raises(UserError, match=r"made with another seed \(0, now 1\); set name= for other data, or resume=anew"):
        make_expert(config.model_copy(update={"seed": 1}))
    with pytest.raises(UserError, match="the data of an expert; give the folder of a run"):
        read_result(place)
    make_expert(config.model_copy(update={"seed": 1, "resume": "anew"}))
    assert (place / "demonstrations.npz").stat().st_mtime_ns > made


def test_data_may_lie_elsewhere_when_a_run_goes_on(small: MakeConfig, tmp_path: Path) -> None:
    """They are known by their content."""
    folder = train(small())
    moved = (tmp_path / "demonstrations.npz").rename(tmp_path / "moved.npz")
    assert train(small(demonstrations={"path": str(moved)})) == folder
    moved.write_bytes(moved.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError):
        train(small(demonstrations={"path": str(moved)}))

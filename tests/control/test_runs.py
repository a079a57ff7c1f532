"""Whole runs of a few steps: every method, the command line, an expert, and a run that was interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rayalign.config.control import ControlConfig
from rayalign.control.alternation import Alternation
from rayalign.control.commands import load_control
from rayalign.control.data import ControlData
from rayalign.control.demonstrations import load_demonstrations
from rayalign.control.environments import look_at
from rayalign.control.experts import make_expert
from rayalign.control.policies import load_network
from rayalign.control.preferences import load_preferences
from rayalign.control.train import STOP_FILE, evaluate, train
from rayalign.errors import Stopped, UserError
from tests.conftest import run_rayalign
from tests.control.conftest import MakeConfig
from tests.control.worlds import write_demonstrations

REPOSITORY = Path(__file__).resolve().parents[2]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# Of `small`'s policy, without what only SAC reads.
PPO = {"algorithm": "ppo", "fragment": 40, "warmup_steps": 400, "ppo": {"epochs": 2}}
METHODS: dict[str, dict[str, Any]] = {
    "ml_irl": {"method": "ml_irl"},
    "state only": {"method": "ml_irl", "reward": {"inputs": "state"}},
    "aihf": {"method": "aihf", "reward": {"pretrain_steps": 2, "preference_batch": 8}},
    "preferences": {"method": "preferences"},
    "gail": {"method": "ml_irl", "reward": {"loss": "logistic", "divergence": "jensen_shannon_softplus"}},
    "airl": {"method": "ml_irl", "reward": {"loss": "logistic"}},
    "ensemble": {"method": "aihf", "reward": {"ensemble": 3, "pessimism": 0.5}},
    "cloned": {
        "policy": {"start": "cloned", "cloning_epochs": 5, "demonstration_share": 0.25, "cloning_weight": 0.4},
    },
    "cloned, few updates": {"policy": {"start": "cloned", "cloning_epochs": 5, "updates_per_step": 0.03}},
    "ppo": {"policy": PPO},
}


@pytest.mark.parametrize("name", METHODS)
def test_each_method_runs_and_leaves_its_networks(name: str, small: MakeConfig) -> None:
    config = small(**METHODS[name])
    folder = train(config)
    task = look_at(config.environment)
    assert len(records(folder)) == 2
    last = records(folder)[-1]
    assert {"policy/critic_loss", "true/return_mean", "env_steps"} <= set(last)
    assert ("reward/margin_demo_minus_agent" in last) == (config.uses_demonstrations)
    assert ("reward/preference_accuracy" in last) == config.uses_preferences
    assert ("policy/kl_from_sampler" in last) == (name == "ppo")
    assert ("reward/ensemble_std" in last) == (name == "ensemble")
    results = json.loads((folder / "results.json").read_text())
    assert len(results["returns"]) == 2 and results["method"] == config.method
    reward = load_network(folder / "reward.safetensors", task)
    observations, actions = np.ones((4, 3), np.float32), np.linspace(-1, 1, 4, dtype=np.float32)[:, None]
    values = reward(observations, actions)[:, 0]
    assert (np.ptp(values) == 0) == (config.reward.inputs == "state")
    assert evaluate(config)["returns"] == results["returns"]


def test_a_finished_run_is_kept_and_not_mixed_with_another(small: MakeConfig) -> None:
    folder = train(small())
    before = (folder / "results.json").read_text()
    train(small())
    assert (folder / "results.json").read_text() == before and len(records(folder)) == 2
    with pytest.raises(UserError, match=r"made with another seed \(0, now 1\); set name= for a new run"):
        train(small(seed=1))
    with pytest.raises(UserError, match="made with another rounds"):
        train(small(rounds=3))
    train(small(seed=1, resume="anew"))
    assert (folder / "results.json").read_text() != before
    demonstrations = small().demonstrations
    assert demonstrations is not None
    write_demonstrations(Path(demonstrations.path), 3)  # other data under the same name
    with pytest.raises(UserError, match="made with another content of demonstrations; set name="):
        train(small(seed=1))


def test_an_interrupted_run_goes_on(small: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked to stop in the middle of round 3 of 4: it saves what is done of it, and the same command does the rest."""
    import rayalign.control.train as module

    config = small(rounds=4, checkpoints={"every_s": None})
    folder = Path(config.run_dir) / config.name
    begun = Alternation.policy_steps
    rounds = []

    def stop_in_the_third(self: Alternation, advanced: Any, stopping: Any) -> Any:
        rounds.append(self.session.num_steps)

        def tell(num: int) -> None:
            advanced(num)
            if len(rounds) == 3:
                (folder / STOP_FILE).touch()

        return begun(self, tell, stopping)

    monkeypatch.setattr(module.Alternation, "policy_steps", stop_in_the_third)
    with pytest.raises(Stopped, match="in round 3"):
        train(config)
    monkeypatch.setattr(module.Alternation, "policy_steps", begun)
    assert (folder / "checkpoints" / "control" / "00000002").is_dir()
    with pytest.raises(UserError, match=r"made with another policy.tau \(0.005, now 0.5\); set name="):
        train(small(rounds=4, policy={"tau": 0.5}))
    train(config)
    steps = [(record["round"], record["env_steps"]) for record in records(folder)]
    assert [number for number, _ in steps] == [1, 2, 3, 4]
    each = [later[1] - before[1] for before, later in zip(steps, steps[1:], strict=False)]
    assert all(40 <= num <= 60 for num in each)  # 20 of the third before the stop, and no more than the rest after it
    assert not (folder / "checkpoints" / "control").exists()


def test_a_run_that_stops_in_its_first_round_has_warmed_up(small: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(rounds=1, checkpoints={"every_s": None})
    folder = Path(config.run_dir) / config.name
    warm_up = Alternation.warm_up

    def then_stop(self: Alternation, *arguments: Any) -> bool:
        done = warm_up(self, *arguments)
        (folder / STOP_FILE).touch()
        return done

    monkeypatch.setattr(Alternation, "warm_up", then_stop)
    with pytest.raises(Stopped, match="in round 1"):
        train(config)
    train(config)  # which would stop again if it warmed up again
    assert [record["env_steps"] for record in records(folder)] == [100]


def test_an_expert_leaves_data_that_a_run_reads(small: MakeConfig) -> None:
    changes = {"steps": 200, "evaluate_every": 40, "num_trajectories": 2, "tiers": [0.5], "num_preferences": 12}
    config = small(expert=changes, name="expert")
    place = make_expert(config)
    task = look_at(config.environment)
    results = json.loads((place / "results.json").read_text())
    assert set(results["tiers"]) == {"demonstrations", "tier_50"}
    for name, told in results["tiers"].items():
        demonstrations = load_demonstrations(place / f"{name}.npz", task)
        assert demonstrations.num == 2 and demonstrations.mean_return() == pytest.approx(told["return_mean"], rel=1e-5)
    assert load_preferences(place / "preferences.npz", task).num == 12
    looks = [record["true/return_mean"] for record in records(place.parent)]
    assert len(looks) >= 3


def write_config(config: ControlConfig, path: Path) -> Path:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def test_the_command_line(small: MakeConfig, tmp_path: Path) -> None:
    """Train, evaluate, and one line with exit code 2 for what the user can mend."""
    file = write_config(small(method="behaviour_cloning", policy={"cloning_epochs": 2}), tmp_path / "run.yaml")
    done = run_rayalign("control", "train", str(file))
    assert done.returncode == 0, done.stderr
    assert "true return: -" in done.stdout and f"run folder: {tmp_path / 'small'}" in done.stdout
    again = run_rayalign("control", "evaluate", str(file))
    assert again.stdout.splitlines()[0] == done.stdout.splitlines()[0]
    bad = run_rayalign("control", "train", str(file), "name=other", "demonstrations.path=nowhere.npz")
    line = "rayalign: nowhere.npz: no such file; rayalign control expert CONFIG makes both kinds\n"
    assert (bad.returncode, bad.stderr) == (2, line)
    assert not (tmp_path / "other").exists()
    missing = run_rayalign("control", "evaluate", str(file), "name=other")
    assert missing.returncode == 2 and "is the run finished?" in missing.stderr


def test_choices(tmp_path: Path) -> None:
    """CartPole-v1: an expert by PPO, a reward from its data, a clone; SAC is refused with what to set."""
    overrides = [
        f"run_dir={tmp_path}",
        f"demonstrations.path={tmp_path}/cartpole/expert/demonstrations.npz",
        f"preferences.path={tmp_path}/cartpole/expert/preferences.npz",
        "policy.fragment=256",
        "policy.steps_per_round=256",
        "rounds=2",
        "evaluation={every: 2, num_episodes: 2}",
        "seed=1",  # with which one of the two random episodes is shorter than a segment
        "expert={steps: 512, evaluate_every: 256, num_trajectories: 10, num_preferences: 40, segment_length: 20}",
        "telemetry={tensorboard: false, progress: false}",
    ]
    file = REPOSITORY / "configs" / "control" / "cartpole.yaml"
    place = make_expert(load_control(file, overrides))
    pairs = load_preferences(place / "preferences.npz", look_at(load_control(file).environment))
    jumps = np.abs(np.diff(pairs.observations[..., 2], axis=2)).max()  # of the pole's angle within a segment
    assert pairs.length == 20 and jumps < 0.1
    with pytest.raises(UserError, match="expert.segment_length: 501 steps, and episodes"):
        make_expert(load_control(file, [*overrides, "expert.segment_length=501"]))
    for number, method in enumerate(("aihf", "behaviour_cloning")):
        folder = train(load_control(file, [*overrides, f"name=run{number}", f"method={method}"]))
        assert 5 < json.loads((folder / "results.json").read_text())["return_mean"] <= 500
    with pytest.raises(UserError, match="actions of CartPole-v1 are choices among 2, .*set it to ppo"):
        train(load_control(file, [*overrides, "name=sac", "policy.algorithm=sac", "policy.ppo={}"]))


def test_a_limit_of_time_ends_a_start_with_its_networks(small: MakeConfig) -> None:
    """And the next start does the next round."""
    config = small(rounds=3, max_s=0.001)
    folder = Path(config.run_dir) / config.name
    for num in (1, 2, 3):
        assert train(config) == folder
        assert [record["round"] for record in records(folder)] == list(range(1, num + 1))
        assert (folder / "policy.safetensors").exists()
        assert json.loads((folder / "results.json").read_text())["rounds"] == num
        assert (folder / "done.json").exists() == (num == 3)
    train(config)
    assert len(records(folder)) == 3


def test_anew_leaves_nothing_of_before(small: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a reward beside a clone, nor results of the old run beside a new one that was stopped."""
    folder = train(small())
    train(small(method="behaviour_cloning", policy={"cloning_epochs": 2}, resume="anew"))
    assert not (folder / "reward.safetensors").exists()
    assert all("policy/cloning_loss" in record for record in records(folder))
    monkeypatch.setattr(Alternation, "policy_steps", lambda *_: None)
    with pytest.raises(Stopped, match="in round 1, .*without resume=anew, goes on"):
        train(small(resume="anew"))
    assert not (folder / "results.json").exists() and not (folder / "policy.safetensors").exists()
    monkeypatch.undo()
    train(small())
    assert len(records(folder)) == 2


def test_what_is_refused_changes_nothing(small: MakeConfig) -> None:
    config = small(rounds=2, max_s=0.001)
    folder = train(config)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(UserError, match="made with another policy"):
        train(small(rounds=2, policy={"tau": 0.5}))
    make_expert(small(seed=3, expert={"steps": 40, "num_trajectories": 1, "num_preferences": 0}))
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert before.pop("metrics.jsonl") in after.pop("metrics.jsonl")
    assert before == after and "seed: 3" in (folder / "expert" / "config.yaml").read_text()


@pytest.mark.parametrize("method", ["preferences", "behaviour_cloning"])
def test_an_expert_follows_the_true_reward_whatever_the_method(small: MakeConfig, method: str) -> None:
    settings = {"reward": {"pretrain_steps": 2}} if method == "preferences" else {}
    place = make_expert(small(method=method, expert={"steps": 40, "num_trajectories": 1, "num_preferences": 0}, **settings))
    assert (place / "demonstrations.npz").exists()


def test_steps_are_not_kept_beside_the_replay(small: MakeConfig) -> None:
    """RLlib keeps every step for metrics until it is asked for them."""
    config = small()
    alternation = Alternation(config, look_at(config.environment), ControlData(), np.ones(3, np.float32), None)
    try:
        alternation.session.sample(450, random=True)
        runner = alternation.session._local
        assert runner is not None and not runner._done_episodes_for_metrics
        assert not any(len(pieces) > 1 for pieces in runner._ongoing_episodes_for_metrics.values())
    finally:
        alternation.close()


def test_the_same_seed_gives_the_same_run(small: MakeConfig) -> None:
    """In one process: the same true returns to the last digit, whatever the run is called; another seed gives others."""
    returns = {}
    for name, seed in (("first", 3), ("second", 3), ("third", 4)):
        folder = train(small(name=name, seed=seed, method="aihf"))
        returns[name] = json.loads((folder / "results.json").read_text())["returns"]
    assert returns["first"] == returns["second"] != returns["third"]

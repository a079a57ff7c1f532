"""The same run over Ray: env runners and two learners as actors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayalign.control.alternation import Alternation
from rayalign.control.data import ControlData, coefficients, load_data, observation_scale
from rayalign.control.environments import look_at
from rayalign.control.learner import POLICY
from rayalign.control.networks import REWARD
from rayalign.control.rows import Steps, reward_rows
from rayalign.control.train import start_ray
from rayalign.errors import PlacementError, UserError, WorkerLost
from tests.control.conftest import MakeConfig

PLACES: list[dict[str, int]] = [{}, {"num_learners": 2}]


@pytest.mark.own_process
def test_two_learners_give_the_gradients_of_one(small: MakeConfig) -> None:
    """The reward's weights after some steps and Adam's first moments, which are of the gradients and not of their direction
    alone, in this process and over two learners, whose policies and averages stay alike though each draws its own noise."""
    found: list[dict[str, Any]] = []
    moments: list[list[np.ndarray]] = []
    for place in PLACES:
        settings: dict[str, Any] = {"reward": {"ensemble": 2}, "policy": {"ema_decay": 0.99}}
        config = small(method="aihf", placement={"object_store_mib": 80, **place}, **settings)
        start_ray(config)
        task = look_at(config.environment)
        data = load_data(config, task)
        assert data.demonstrations is not None and data.preferences is not None
        scale = observation_scale(config, data.observations())
        alternation = Alternation(config, task, data, scale, coefficients(config, data))
        try:
            if not found:
                start = alternation.session.state()
            else:
                alternation.session.restore(start)
            rng = np.random.default_rng(0)
            agent = Steps(rng.normal(size=(40, 3)).astype(np.float32), rng.uniform(-1, 1, (40, 1)).astype(np.float32))
            demos = Steps(data.demonstrations.observations, data.demonstrations.actions)
            for _ in range(3):
                rows = reward_rows(demos, agent, data.preferences, alternation.session.num_shares)
                numbers = alternation.session.update_reward(rows)
            assert 0 <= numbers["preference_accuracy"] <= 1
            found.append(alternation.session.weights(REWARD))
            adam = alternation.session.state()["learner"]["optimizer"][f"{REWARD}_default_optimizer"]["state"]
            moments.append([np.asarray(of_one["exp_avg"]) for of_one in adam["state"].values()])
            alternation.warm_up()
            alternation.policy_steps(lambda num: None)
            if place:
                both = alternation.session.of_each_learner(POLICY)
                assert len(both) == 2
                for name, array in both[0].items():
                    assert np.allclose(array, both[1][name], atol=1e-6), name
                drawn = alternation.session._learners.foreach_learner(lambda _: torch.rand(3).tolist())
                first, second = (result.get() for result in drawn)
                assert first != second
        finally:
            alternation.close()
    for name, array in found[0].items():
        assert np.allclose(array, found[1][name], atol=1e-5), name
    for one, two in zip(*moments, strict=True):
        assert np.abs(one - two).max() < 1e-3 * np.abs(one).max()


@pytest.mark.own_process
def test_ppo_over_two_learners_makes_the_step_of_one(small: MakeConfig) -> None:
    """One batch, which each of the two sees half of; then both take a batch whose loss is not finite, and leave it."""
    policy = {"algorithm": "ppo", "warmup_steps": 400, "fragment": 32, "steps_per_round": 32}
    found: list[dict[str, Any]] = []
    for place in PLACES:
        config = small(policy=policy, placement={"object_store_mib": 80, **place})
        start_ray(config)
        alternation = Alternation(config, look_at(config.environment), ControlData(), np.ones(3, np.float32), None)
        session = alternation.session
        try:
            if not found:
                start, pieces = session.state(), session.sample(32)
            else:
                session.restore(start)
            rows = session.advantage_rows(pieces)
            session.update_policy(rows)
            found.append(session.weights(POLICY))
            if place:
                bad = rows | {"advantages": np.where(np.arange(32) == 0, np.nan, rows["advantages"]).astype(np.float32)}
                session.update_policy(bad)
                for weights in session.of_each_learner(POLICY):
                    assert all(np.allclose(array, found[-1][name], atol=1e-7) for name, array in weights.items())
        finally:
            alternation.close()
    assert any(np.abs(found[0][name] - start["learner"]["rl_module"][POLICY][name]).max() > 1e-5 for name in found[0])
    for name, array in found[0].items():
        assert np.allclose(array, found[1][name], atol=1e-6), name


@pytest.mark.own_process
def test_a_dead_learner_is_one_line(small: MakeConfig) -> None:
    import ray

    config = small(placement={"object_store_mib": 80, "num_learners": 1})
    start_ray(config)
    alternation = Alternation(config, look_at(config.environment), ControlData(), np.ones(3, np.float32), None)
    try:
        for actor in alternation.session._learners._worker_manager.actors().values():
            ray.kill(actor)
        with pytest.raises(WorkerLost, match="^weights: the worker died"):
            while True:  # what was asked before Ray had ended it is answered
                alternation.session.weights(POLICY)
    finally:
        alternation.close()


@pytest.mark.own_process
def test_two_env_runners_sample_and_a_dead_one_is_one_line(small: MakeConfig) -> None:
    """Each its share, of other episodes with other noise, also after a resumption; what is missing is never left out."""
    import ray

    config = small(placement={"object_store_mib": 80, "num_env_runners": 2})
    start_ray(config)
    alternation = Alternation(config, look_at(config.environment), ControlData(), np.ones(3, np.float32), None)
    session = alternation.session
    try:
        pieces = session.sample(40)
        assert [len(piece["rewards"]) for piece in pieces] == [20, 20]
        assert not np.allclose(pieces[0]["obs"], pieces[1]["obs"])
        noise = [session._of_runners("noise", _noise)]
        for steps in (40, 40, 400):
            session.goes_on_at(steps)
            noise.append(session._of_runners("noise", _noise))
        assert noise[1] == noise[2] and len({str(drawn) for both in noise for drawn in both}) == 6
        ray.kill(next(iter(session._group._worker_manager.actors().values())))
        with pytest.raises(WorkerLost, match="^sampling: "):
            while True:  # what was asked before Ray had ended it is answered
                session.sample(40)
    finally:
        alternation.close()


@pytest.mark.own_process
def test_a_remote_environments_fault_is_told_as_its_own(small: MakeConfig) -> None:
    """And not as a worker that died, by a module that the worker imports itself."""
    name = "tests.control.test_faults:rayalign-tests/Faulty-v0"
    environment = {"id": name, "observation_scale": None, "options": {"fault": "step"}}
    config = small(environment=environment, placement={"object_store_mib": 80, "num_env_runners": 1})
    start_ray(config)
    alternation = Alternation(config, look_at(config.environment), ControlData(), np.ones(3, np.float32), None)
    try:
        with pytest.raises(UserError, match="Faulty-v0 failed in step 5: ZeroDivisionError: a wheel is stuck"):
            alternation.session.sample(40)
    finally:
        alternation.close()


def _noise(_runner: Any) -> list[float]:
    return list(torch.rand(3).tolist())


@pytest.mark.own_process
def test_what_has_no_room_is_told_and_not_waited_for(small: MakeConfig) -> None:
    config = small(placement={"object_store_mib": 80, "num_learners": 2, "num_env_runners": 500})
    with pytest.raises(PlacementError, match="placement: 500 env runners and 2 learners need 502 CPUs and 0 GPUs"):
        start_ray(config)


@pytest.mark.own_process
def test_a_remote_env_runner_samples_with_the_newest_policy(small: MakeConfig) -> None:
    """A policy that can only do one thing does it there, and random actions come in [-1, 1]."""
    config = small(placement={"object_store_mib": 80, "num_env_runners": 1})
    start_ray(config)
    task = look_at(config.environment)
    data = load_data(config, task)
    alternation = Alternation(config, task, data, observation_scale(config, data.observations()), (1.0, 0.0))
    session = alternation.session
    try:
        pieces = session.sample(60, random=True)
        assert sum(len(piece["rewards"]) for piece in pieces) >= 60
        assert 0.8 < max(np.abs(piece["actions"]).max() for piece in pieces) <= 1.0
        state = session.state()
        weights = state["learner"]["rl_module"][POLICY]
        last = max(name for name in weights if name.startswith("actor.") and name.endswith("bias"))
        weights[last] = np.array([3.0, -5.0], np.float32)  # always nearly +1
        session.restore(state)
        session.sample(20)  # of the step before, whose action was chosen already
        actions = np.concatenate([piece["actions"] for piece in session.sample(60)])
        assert actions.min() > 0.9
    finally:
        alternation.close()

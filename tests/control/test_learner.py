"""The reward inside RLlib's learner: relabelling, what an update leaves alone, and what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from rayalign.config.control import ControlConfig
from rayalign.control.alternation import Alternation
from rayalign.control.checkpoints import packed, unpacked
from rayalign.control.data import coefficients, load_data, observation_scale
from rayalign.control.environments import look_at
from rayalign.control.networks import REWARD
from rayalign.control.rows import Steps, reward_rows
from rayalign.control.session import POLICY
from rayalign.errors import Diverged, UserError
from rayalign.objectives.control import sac_loss
from tests.control.conftest import MakeConfig
from tests.control.worlds import some_preferences


def begin(config: ControlConfig) -> Alternation:
    task = look_at(config.environment)
    data = load_data(config, task)
    alternation = Alternation(config, task, data, observation_scale(config, data.observations()), coefficients(config, data))
    alternation.warm_up()
    return alternation


@pytest.fixture
def aihf(small: MakeConfig) -> Iterator[Alternation]:
    alternation = begin(small(method="aihf"))
    yield alternation
    alternation.close()


def learner_of(alternation: Alternation) -> Any:
    return alternation.session._learners._learner


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first)


def test_ray_is_not_started_for_one_process(aihf: Alternation) -> None:
    import ray

    assert not ray.is_initialized()


def test_every_transition_is_relabelled_when_it_is_used(aihf: Alternation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss sees the newest reward's value of old transitions, and not the environment's."""
    learner, seen = learner_of(aihf), []
    compute = type(learner).compute_loss_for_module

    def spy(self: Any, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]) -> Any:
        seen.append({name: value.clone() for name, value in batch.items()})
        return compute(self, module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)

    monkeypatch.setattr(type(learner), "compute_loss_for_module", spy)
    rows = aihf.replay.sample(64, np.random.default_rng(0))
    environment = rows["rewards"].copy()
    for _ in range(2):
        aihf.session.update_policy({name: array.copy() for name, array in rows.items()})
        expected = aihf.reward()(rows["obs"], rows["actions"])[:, 0]
        used = torch.cat([batch["rewards"] for batch in seen]).numpy()
        assert np.abs(used - expected).max() < 1e-6
        aihf.reward_steps()
        seen.clear()
    assert np.abs(environment - expected).max() > 1
    assert np.array_equal(rows["rewards"], environment)  # the replay keeps the true ones


def test_an_update_touches_its_own_module_only(aihf: Alternation) -> None:
    """RLlib steps every optimiser at every update: a gradient left from the other module's must not be stepped again."""
    rows = aihf.replay.sample(64, np.random.default_rng(0))
    aihf.session.update_policy(rows)
    aihf.reward_steps()
    reward, policy = aihf.session.weights(REWARD), aihf.session.weights(POLICY)
    aihf.session.update_policy(rows)
    assert same(reward, aihf.session.weights(REWARD))
    moved = aihf.session.weights(POLICY)
    assert not same(policy, moved)
    aihf.reward_steps()
    assert same(moved, aihf.session.weights(POLICY))
    assert not same(reward, aihf.session.weights(REWARD))


def test_the_reward_follows_the_loss_of_aihf(aihf: Alternation) -> None:
    """Its gradient against autograd on the formula (5.2), from the same weights."""
    session, module = aihf.session, learner_of(aihf)._module[REWARD].unwrapped()
    data = load_data(aihf.config, aihf.task)
    assert data.demonstrations is not None and data.preferences is not None
    demos = Steps(data.demonstrations.observations, data.demonstrations.actions)
    agent, pairs = aihf.replay.newest(50), data.preferences
    first, second = coefficients(aihf.config, data)
    assert (first, second) == pytest.approx((2 / 32, 30 / 32))
    r = [module.rewards(torch.from_numpy(s.observations), torch.from_numpy(s.actions)) for s in (demos, agent)]
    flat = module.rewards(
        torch.from_numpy(pairs.observations).reshape(-1, 3), torch.from_numpy(pairs.actions).reshape(-1, 1)
    )
    returns = flat.reshape(30, 2, 20).sum(-1)
    nll = -torch.nn.functional.logsigmoid(returns[:, 0] - returns[:, 1]).mean()
    expected = torch.autograd.grad(first * 200 * (r[1].mean() - r[0].mean()) + second * nll, list(module.parameters()))
    session.update_reward(reward_rows(demos, agent, pairs))
    for parameter, gradient in zip(module.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_rows_in_shares_are_equal_parts() -> None:
    """Of each kind as many, and whole pairs: the mean over learners is that of all rows."""
    rng = np.random.default_rng(0)
    demos, agent = (Steps(rng.normal(size=(n, 3)), rng.normal(size=(n, 1))) for n in (11, 7))
    rows = reward_rows(demos, agent, some_preferences(5, 4), num_shares=2)
    parts = np.split(np.arange(len(rows["side"])), 2)
    for part in parts:
        assert [int((rows["side"][part] == side).sum()) for side in (1, -1, 0)] == [5, 3, 2 * 2 * 4]
        numbers = rows["segment"][part][rows["side"][part] == 0]
        assert sorted(numbers - numbers.min()) == sorted(np.repeat(np.arange(4), 4))


def test_sac_loss_by_hand() -> None:
    """One transition that ended and one that did not, with two critics."""
    log_coef = torch.tensor(np.log(0.5), requires_grad=True)
    q = torch.tensor([[1.0, 2.0], [0.0, 1.0]], requires_grad=True)
    loss, shown = sac_loss(
        q=q,
        q_actor=torch.tensor([3.0, 5.0]),
        logprob=torch.tensor([-1.0, 1.0]),
        next_q=torch.tensor([4.0, 4.0]),
        next_logprob=torch.tensor([2.0, 2.0]),
        log_entropy_coef=log_coef,
        rewards=torch.tensor([1.0, 1.0]),
        terminated=torch.tensor([1.0, 0.0]),
        discount=0.9,
        target_entropy=-1.0,
    )
    wanted = np.array([1.0, 1 + 0.9 * (4 - 0.5 * 2)])
    critic = 0.5 * (np.mean((np.array([1, 2]) - wanted) ** 2) + np.mean((np.array([0, 1]) - wanted) ** 2))
    assert shown["critic_loss"].item() == pytest.approx(critic)
    assert loss.item() == pytest.approx(critic - 4.0 + np.log(0.5) * 1.0, rel=1e-5)
    loss.backward()
    assert log_coef.grad is not None and log_coef.grad.item() == pytest.approx(1.0)


def test_what_is_not_finite_is_never_stepped_on(aihf: Alternation) -> None:
    rows = aihf.replay.sample(32, np.random.default_rng(0))
    bad = rows | {"obs": np.full_like(rows["obs"], np.nan)}
    aihf.session.update_policy(rows)
    before = aihf.session.weights(POLICY)
    for _ in range(2):
        aihf.session.update_policy(dict(bad))
    after = aihf.session.weights(POLICY)
    assert all(np.array_equal(before[name], after[name]) for name in before if not name.startswith("targets"))
    with pytest.raises(Diverged, match="not finite 3 times in a row"):
        aihf.session.update_policy(dict(bad))


def test_the_entropy_coefficient_can_be_fixed(small: MakeConfig) -> None:
    alternation = begin(small(policy={"entropy_coef": 0.2}))
    try:
        numbers = alternation.policy_steps(lambda num: None)
        assert numbers["entropy_coef"] == pytest.approx(0.2)
        assert alternation.session.weights(POLICY)["log_entropy_coef"] == pytest.approx(np.log(0.2))
    finally:
        alternation.close()


def test_actions_are_in_one_scale(aihf: Alternation) -> None:
    """RLlib keeps the policy's actions in [-1, 1], and random ones in the environment's bounds."""
    random = aihf.session.sample(100, random=True)
    actions = np.concatenate([piece["actions"] for piece in random])
    assert 0.9 < np.abs(actions).max() <= 1.0 and abs(actions.mean()) < 0.3
    policy = np.concatenate([piece["actions"] for piece in aihf.session.sample(50)])
    assert np.abs(policy).max() <= 1.0


def test_state_comes_back_without_pickle(small: MakeConfig) -> None:
    """Weights, moments, replay and random numbers: two alternations in the same state make the same updates."""
    first, second = begin(small(method="aihf")), begin(small(method="aihf", seed=5))
    try:
        first.policy_steps(lambda num: None)
        first.reward_steps()
        values, tensors = packed(first.state())
        second.restore(unpacked(values, tensors))
        for module in (POLICY, REWARD):
            assert same(first.session.weights(module), second.session.weights(module))
        for alternation in (first, second):
            torch.manual_seed(0)
            alternation._updates(20)
            alternation.reward_steps()
        for module in (POLICY, REWARD):
            assert same(first.session.weights(module), second.session.weights(module))
    finally:
        first.close()
        second.close()


def test_an_episode_that_ends_early_is_told(small: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the environment said nothing of it before."""
    from gymnasium.envs.classic_control import PendulumEnv

    step = PendulumEnv.step

    def falls(self: Any, action: Any) -> Any:
        observation, reward, _, truncated, info = step(self, action)
        return observation, reward, bool(observation[0] > 0.5), truncated, info

    monkeypatch.setattr(PendulumEnv, "step", falls)
    with pytest.raises(UserError, match="Pendulum-v1 ended an episode early, and the sign alone"):
        alternation = begin(small(policy={"warmup_steps": 600}))
        alternation.close()

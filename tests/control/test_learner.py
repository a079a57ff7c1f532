"""The reward inside RLlib's learner: relabelling, what an update leaves alone, and what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayalign.config.control import ControlConfig, EnvironmentConfig
from rayalign.control.alternation import Alternation
from rayalign.control.checkpoints import packed, unpacked
from rayalign.control.cloning import clone
from rayalign.control.data import coefficients, load_data, observation_scale
from rayalign.control.environments import look_at, make_training_environment
from rayalign.control.evaluation import roll_out
from rayalign.control.learner import POLICY, REWARD_SETTINGS, reward_loss
from rayalign.control.networks import REWARD
from rayalign.control.policies import Network, load_network, save_network, scaled
from rayalign.control.rows import Steps, reward_rows
from rayalign.control.train import train
from rayalign.errors import Diverged, UserError
from rayalign.objectives.control import cloning_loss, ppo_loss, sac_loss, slope_penalty
from tests.control.conftest import MakeConfig
from tests.control.worlds import some_preferences


def unbegun(config: ControlConfig) -> Alternation:
    task = look_at(config.environment)
    data = load_data(config, task)
    return Alternation(config, task, data, observation_scale(config, data.observations()), coefficients(config, data))


def begin(config: ControlConfig) -> Alternation:
    alternation = unbegun(config)
    alternation.warm_up()
    return alternation


def with_a_clone(config: ControlConfig) -> tuple[Alternation, Network]:
    """Before the warm-up, and what it is to begin as."""
    alternation = unbegun(config)
    demonstrations = alternation._data.demonstrations
    assert demonstrations is not None
    return alternation, clone(demonstrations, alternation.task, config.policy, alternation.scale, 0, lambda *_: None)


@pytest.fixture
def aihf(small: MakeConfig) -> Iterator[Alternation]:
    alternation = begin(small(method="aihf"))
    yield alternation
    alternation.close()


def learner_of(alternation: Alternation) -> Any:
    return alternation.session._learners._learner


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first)


def test_a_session_leaves_torch_as_it_was(small: MakeConfig) -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    begin(small(method="aihf")).close()
    assert not torch.are_deterministic_algorithms_enabled()


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
    r = [module.values(torch.from_numpy(s.observations), torch.from_numpy(s.actions)) for s in (demos, agent)]
    flat = module.values(
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


def test_without_the_actor_the_critics_learn_alone() -> None:
    numbers = {name: torch.tensor([0.5, -1.0], requires_grad=True) for name in ("q_actor", "logprob")}
    log_coef = torch.tensor(0.3, requires_grad=True)
    q = torch.tensor([[1.0, 2.0], [0.0, 1.0]], requires_grad=True)
    ones = torch.ones(2)
    loss, shown = sac_loss(
        q=q,
        **numbers,
        next_q=ones,
        next_logprob=ones,
        log_entropy_coef=log_coef,
        rewards=ones,
        terminated=ones,
        discount=0.9,
        target_entropy=-1.0,
        actor_weight=0.0,
    )
    loss.backward()
    assert loss.item() == pytest.approx(shown["critic_loss"].item()) and q.grad is not None and q.grad.abs().max() > 0
    assert all(not tensor.grad.any() for tensor in (*numbers.values(), log_coef) if tensor.grad is not None)


def test_cloning_loss_by_hand() -> None:
    """Of demonstrated rows alone, in units of the mean |Q|, which it does not move."""
    means = torch.tensor([[1.0, 0.0], [9.0, 9.0]], requires_grad=True)
    q = torch.tensor([-2.0, 4.0], requires_grad=True)
    loss = cloning_loss(means, torch.zeros(2, 2), torch.tensor([1.0, 0.0]), q, share=0.5)
    assert loss.item() == pytest.approx(3 * 0.5)
    loss.backward()
    assert q.grad is None and means.grad is not None and means.grad.tolist() == [[3.0, 0.0], [0.0, 0.0]]
    assert cloning_loss(means, torch.zeros(2, 2), torch.zeros(2), q, share=0.5).item() == 0


def test_the_actor_stays_near_what_is_demonstrated(small: MakeConfig) -> None:
    """With a weight that leaves the critics no say its distance to the demonstrations' actions falls."""
    weighed = {"demonstration_share": 0.5, "cloning_weight": 1e4, "learning_rate": 3e-3, "updates_per_step": 10}
    alternation = begin(small(policy=weighed))
    try:
        demonstrations = alternation._data.demonstrations
        assert demonstrations is not None

        def distance() -> float:
            found = alternation.policy().network(demonstrations.observations)[:, :1]
            return float(np.square(np.tanh(found) - demonstrations.actions).mean())

        before = distance()
        alternation.policy_steps(lambda _: None)
        assert distance() < 0.7 * before
    finally:
        alternation.close()


def test_a_cloned_start_is_the_clone_until_the_critics_have_learned(small: MakeConfig) -> None:
    """It makes the warm-up's steps with little noise; reward and critics learn from them, and the actor is as it was."""
    alternation, network = with_a_clone(small(policy={"start": "cloned", "cloning_epochs": 200}))
    try:
        before = {name: alternation.session.weights(name) for name in (POLICY, REWARD)}
        assert alternation.warm_up(clone=network)
        after = {name: alternation.session.weights(name) for name in (POLICY, REWARD)}
        steps = alternation.replay.newest(60)
        wanted = np.tanh(network(steps.observations)[:, :1])
        assert np.array_equal(alternation.policy().network(steps.observations)[:, :1], network(steps.observations)[:, :1])
        assert 0.01 < np.abs(steps.actions - wanted).mean() < 0.15
        assert not same(before[REWARD], after[REWARD])
        of_critics = [name for name in before[POLICY] if name.startswith(("critics.", "targets."))]
        assert all(not np.array_equal(before[POLICY][name], after[POLICY][name]) for name in of_critics)
        assert before[POLICY]["log_entropy_coef"] == after[POLICY]["log_entropy_coef"]
        moments = learner_of(alternation)._named_optimizers[f"{POLICY}_default_optimizer"].state
        module = learner_of(alternation)._module[POLICY].unwrapped()
        assert set(moments) == set(module.critics.parameters())  # Adam has not counted a step of the actor
        alternation.policy_steps(lambda _: None)
        assert not same(after[POLICY], alternation.session.weights(POLICY))
    finally:
        alternation.close()


def test_the_average_follows_the_actor_and_is_the_policy(small: MakeConfig) -> None:
    """Update by update, as the formula has it, of few updates over the last of them; a clone's begins as the clone."""
    alternation, network = with_a_clone(small(policy={"ema_decay": 0.9, "fragment": 1}))
    try:
        assert alternation.warm_up(clone=network)
        weights = alternation.session.weights(POLICY)
        expected = weights["actor.0.weight"]
        assert np.array_equal(weights["average.0.weight"], expected)
        seen: list[np.ndarray] = []
        alternation.policy_steps(lambda _: seen.append(alternation.session.weights(POLICY)["actor.0.weight"]))
        for number, now in enumerate(seen, start=1):
            expected = expected + max(0.1, 9 / (10 + number)) * (now - expected)
        found = alternation.policy().network.tensors["layers.0.weight"].numpy()
        assert len(seen) == 40 and np.abs(found - expected).max() < 1e-6
        assert np.abs(found - seen[-1]).max() > 1e-4
    finally:
        alternation.close()


def test_learning_rates_fall_to_nothing_after_the_last_round(small: MakeConfig) -> None:
    """From the end of the warm-up on, with the environment steps; those of a resumed run are where they were."""
    falling = {"learning_rate": 0.01, "schedule": "linear"}
    alternation, other = (begin(small(policy=falling, reward={"optimizer": falling}, rounds=4)) for _ in range(2))

    def rates(of: Alternation) -> list[float]:
        return [float(group["lr"]) for one in learner_of(of)._optimizer_parameters for group in one.param_groups]

    try:
        seen = []
        for _ in range(4):
            seen.append(rates(alternation))
            alternation.policy_steps(lambda _: None)
            alternation.reward_steps()
        assert np.allclose(seen, [[0.01 * share] * 2 for share in (1, 0.8, 0.6, 0.4)])
        other.restore(alternation.state())
        assert rates(other) == rates(alternation) == pytest.approx([0.002] * 2)
    finally:
        alternation.close()
        other.close()


def test_a_share_of_each_batch_is_demonstrated(small: MakeConfig) -> None:
    alternation = begin(small(policy={"demonstration_share": 0.25}))
    try:
        demonstrations = alternation._data.demonstrations
        assert demonstrations is not None
        rows = alternation._replayed_rows(40)
        episodes = np.split(demonstrations.observations, np.cumsum(demonstrations.lengths)[:-1])
        steps = {(tuple(now), tuple(then)) for episode in episodes for now, then in pairwise(episode)}
        drawn = zip(rows["obs"], rows["new_obs"], strict=True)
        assert np.mean([(tuple(now), tuple(then)) in steps for now, then in drawn]) == pytest.approx(0.25, abs=0.05)
        alternation.session.update_policy(rows)
    finally:
        alternation.close()


def test_ppo_loss_by_hand() -> None:
    """One step whose ratio is clipped and one whose is not."""
    loss, shown = ppo_loss(
        logprob=torch.log(torch.tensor([0.6, 0.5])),
        old_logprob=torch.log(torch.tensor([0.4, 0.5])),
        advantages=torch.tensor([1.0, -2.0]),
        values=torch.tensor([1.0, 0.0]),
        returns=torch.tensor([0.0, 2.0]),
        entropy=torch.tensor([0.5, 0.7]),
        clip=0.2,
        value_coef=0.5,
        entropy_coef=0.1,
    )
    assert loss.item() == pytest.approx(-(1.2 - 2.0) / 2 + 0.5 * 0.5 * (1 + 4) / 2 - 0.1 * 0.6, rel=1e-5)
    assert shown["clipped_frac"].item() == 0.5
    assert shown["kl_from_sampler"].item() == pytest.approx((1.5 - 1 - np.log(1.5)) / 2, rel=1e-5)


def test_ppo_sees_the_newest_reward_and_goes_on_where_an_episode_does(small: MakeConfig) -> None:
    """Advantages against the formula: rewards of the reward network, and the critic's value after what is cut off."""
    policy = {"algorithm": "ppo", "warmup_steps": 400, "fragment": 40, "ppo": {"gae_lambda": 0.9}, "discount": 0.8}
    alternation = begin(small(policy=policy))
    try:
        pieces = alternation.session.sample(40)
        pieces.append({name: array.copy() for name, array in pieces[0].items()} | {"terminateds": np.ones(40, np.float32)})
        module = learner_of(alternation)._module[POLICY].unwrapped()
        wanted, values_to_go = [], []
        for piece, goes_on in zip(pieces, (1.0, 0.0), strict=True):
            paid = alternation.reward()(piece["obs"], piece["actions"])[:, 0]
            with torch.no_grad():
                values = module.values(torch.from_numpy(np.concatenate([piece["obs"], piece["new_obs"][-1:]]))).numpy()
            values[-1] *= goes_on
            advantage, found = 0.0, []
            for step in reversed(range(40)):
                advantage = paid[step] + 0.8 * values[step + 1] - values[step] + 0.8 * 0.9 * advantage
                found.append(advantage)
            wanted += found[::-1]
            values_to_go += [a + v for a, v in zip(found[::-1], values, strict=False)]
        rows = alternation.session.advantage_rows(pieces)
        whitened = (np.array(wanted) - np.mean(wanted)) / np.std(wanted)
        assert np.abs(rows["advantages"] - whitened).max() < 1e-4
        assert np.abs(rows["returns"] - values_to_go).max() < 1e-4
        taken = module.logprobs(torch.from_numpy(rows["obs"]), torch.from_numpy(rows["actions"]))
        assert np.abs(rows["old_logprob"] - taken.detach().numpy()).max() < 1e-6
    finally:
        alternation.close()


def test_a_discriminator_far_on_the_wrong_side_finds_back() -> None:
    """Its logits are not cut where the rewards are, which in the linear loss keeps them from running away."""
    settings = {"demonstration_coef": 1.0, "preference_coef": 0.0, "preference_temperature": 1.0}
    settings |= {"horizon": 1, "clamp": 10.0}
    gradients = {}
    for kind in ("logistic", "linear"):
        values = torch.tensor([-12.0, 12.0], requires_grad=True)
        loss, shown = reward_loss(values, torch.tensor([1, -1]), torch.full((2,), -1), settings | {"loss": kind})
        gradients[kind] = torch.autograd.grad(loss, values)[0]
        assert shown["clamped_frac"] == 1
    assert torch.allclose(gradients["logistic"], torch.tensor([-1.0, 1.0]), atol=1e-4) and not gradients["linear"].any()


def test_the_saved_reward_is_what_the_policy_was_paid(small: MakeConfig, tmp_path: Path) -> None:
    """Of a discriminator the function of the logit, as GAIL has it, and not the logit."""
    kind = {"loss": "logistic", "divergence": "jensen_shannon_softplus"}
    alternation = begin(small(reward=kind))
    try:
        module, steps = learner_of(alternation)._module[REWARD].unwrapped(), alternation.replay.newest(30)
        observations, actions = torch.from_numpy(steps.observations), torch.from_numpy(steps.actions)
        save_network(tmp_path / "reward.safetensors", alternation.reward(), alternation.task)
        saved = load_network(tmp_path / "reward.safetensors", alternation.task)(steps.observations, steps.actions)[:, 0]
        assert np.abs(saved - module.paid(observations, actions).numpy()).max() < 1e-6
        logits = module.values(observations, actions)[0].detach()
        assert np.abs(saved - torch.nn.functional.softplus(logits).numpy()).max() < 1e-6
    finally:
        alternation.close()


def test_observations_far_from_the_data_are_told_apart() -> None:
    """Linear in what data show, and so for ten times as much; beyond that growing slowly, without a step or a kink."""
    scale = torch.tensor([0.5])
    seen = scaled(torch.tensor([[-1.0], [4.0], [5.0], [50.0], [500.0], [-500.0]]), scale)[:, 0]
    assert torch.allclose(seen[:3], torch.tensor([-2.0, 8.0, 10.0]))
    assert torch.allclose(seen[3:], 10 * (1 + torch.tensor([10.0, 100.0, 100.0]).log()) * torch.tensor([1.0, 1.0, -1.0]))
    ends = torch.tensor([[5.0 - 1e-3], [5.0 + 1e-3]], requires_grad=True)
    slopes = torch.autograd.grad(scaled(ends, scale).sum(), ends)[0]
    assert torch.allclose(slopes, torch.full((2, 1), 2.0), rtol=1e-2)


def test_an_ensemble_is_its_members_each_on_its_own(small: MakeConfig, tmp_path: Path) -> None:
    """Each network's gradient is that of its own loss; the policy is paid their mean less the deviation."""
    alternation = begin(small(method="aihf", reward={"ensemble": 3, "pessimism": 2.0}))
    try:
        module = learner_of(alternation)._module[REWARD].unwrapped()
        steps = alternation.replay.newest(30)
        observations, actions = torch.from_numpy(steps.observations), torch.from_numpy(steps.actions)
        each = module.values(observations, actions).detach()
        assert each.shape == (3, 30) and each.std(dim=0).min() > 0
        expected = each.mean(dim=0) - 2.0 * each.std(dim=0, correction=0)
        assert torch.allclose(module.paid(observations, actions), expected, atol=1e-6)
        save_network(tmp_path / "reward.safetensors", alternation.reward(), alternation.task)
        saved = load_network(tmp_path / "reward.safetensors", alternation.task)
        assert np.abs(saved(steps.observations, steps.actions)[:, 0] - expected.numpy()).max() < 1e-6
        data = load_data(alternation.config, alternation.task)
        assert data.demonstrations is not None
        demos = Steps(data.demonstrations.observations, data.demonstrations.actions)
        rows = reward_rows(demos, steps, data.preferences)
        table = {name: torch.from_numpy(array) for name, array in rows.items()}
        settings = alternation.session._learners._learner.config.learner_config_dict[REWARD_SETTINGS]
        found, first = module.values(table["obs"], table["actions"]), module.members.weights[0]
        alone = [reward_loss(member, table["side"], table["segment"], settings)[0] for member in found]
        expected = [torch.autograd.grad(loss, first, retain_graph=True)[0] for loss in alone]
        for number, gradient in enumerate(expected):
            assert gradient[number].abs().max() > 0 and gradient.abs().sum() == gradient[number].abs().sum()
        alternation.session.update_reward(rows)
        assert torch.allclose(first.grad, torch.stack(expected).sum(dim=0), rtol=1e-4, atol=1e-6)
    finally:
        alternation.close()


def test_the_penalty_is_of_slopes_between_the_two_sides(small: MakeConfig) -> None:
    """By hand, against autograd, and in training: slopes come nearer to 1."""
    assert slope_penalty(torch.tensor([[3.0, 4.0], [1.0, 0.0]])).item() == pytest.approx(8.0)
    settings = {"gradient_penalty": 10.0, "ensemble": 2, "hidden": [16], "optimizer": {"learning_rate": 0.01}}
    alternation = begin(small(reward=settings))
    try:
        module = learner_of(alternation)._module[REWARD].unwrapped()
        ends = [torch.randn(50, 4) for _ in range(2)]
        slopes = module.slopes(*ends)
        assert slopes.shape == (2, 50, 4)
        point = torch.randn(1, 4).requires_grad_()
        expected = torch.autograd.grad(module.members(point)[1].sum(), point)[0]
        assert torch.allclose(module.slopes(point.detach(), point.detach())[1], expected, atol=1e-6)
        before = alternation.reward_steps()["slope_penalty"]
        for _ in range(60):
            after = alternation.reward_steps()["slope_penalty"]
        assert after < 0.5 * before
    finally:
        alternation.close()


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


def test_a_reward_that_never_learns_is_told_whatever_the_policy_does(small: MakeConfig) -> None:
    """The policy's updates between are fine, and each round has one step of the reward."""
    alternation = begin(small())
    try:
        demonstrations = alternation._data.demonstrations
        assert demonstrations is not None
        demonstrations.observations[0] = np.nan
        with pytest.raises(Diverged, match="the reward.s loss was not finite 3 times in a row"):
            for _ in range(3):
                alternation.policy_steps(lambda _: None)
                alternation.reward_steps()
    finally:
        alternation.close()


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
    """Weights, their average, moments, replay and random numbers: two in the same state make the same updates."""
    first, second = (begin(small(method="aihf", seed=seed, policy={"ema_decay": 0.9})) for seed in (0, 5))
    try:
        first.policy_steps(lambda num: None)
        first.reward_steps()
        values, tensors = packed(first.state())
        second.restore(unpacked(values, tensors))
        for module in (POLICY, REWARD):
            assert same(first.session.weights(module), second.session.weights(module))
        for alternation in (first, second):
            torch.manual_seed(0)
            alternation.session.update_policy(alternation._replayed_rows(20))
            alternation.reward_steps()
        for module in (POLICY, REWARD):
            assert same(first.session.weights(module), second.session.weights(module))
    finally:
        first.close()
        second.close()


@pytest.mark.parametrize(("cut", "length"), [(15, 15), (None, 200), (500, 200)])
def test_episodes_of_training_can_be_cut_short(small: MakeConfig, cut: int | None, length: int) -> None:
    """A cut is no end: what comes after it still counts. Those that are measured run for the whole."""
    config = small(method="ml_irl", policy={"max_episode_steps": cut})
    alternation = begin(config)
    try:
        pieces = [piece for _ in range(10) for piece in alternation.session.sample(40)]
        resets = np.concatenate([[False, *(p["obs"][1:] != p["new_obs"][:-1]).any(axis=1)] for p in pieces])
        joined = [a["new_obs"][-1].tolist() == b["obs"][0].tolist() for a, b in zip(pieces, pieces[1:], strict=False)]
        assert not resets.any() and not any(piece["terminateds"].any() for piece in pieces)
        lengths, current = [], 0
        for piece, goes_on in zip(pieces, [*joined, True], strict=True):
            current += len(piece["rewards"])
            if not goes_on:
                lengths.append(current)
                current = 0
        warm_up = config.policy.warmup_steps
        assert lengths[1:] == [length] * (len(lengths) - 1) and lengths[0] == length - warm_up % length, lengths
        whole = roll_out(config.environment, look_at(config.environment), lambda _: np.zeros(1), 1, 0)
        assert whole.lengths.tolist() == [200]
    finally:
        alternation.close()


def test_an_episode_of_training_is_cut_once_it_is_unhealthy_for_long() -> None:
    """Truncated and not ended, after so many unhealthy steps in a row; begun again, it counts anew."""
    pytest.importorskip("mujoco")
    config = EnvironmentConfig(id="Hopper-v5", options={"terminate_when_unhealthy": False})
    environment = make_training_environment(config, None, 5)
    environment.action_space.seed(0)
    for seed in range(2):
        environment.reset(seed=seed)
        healthy, is_cut = [], False
        while not is_cut:
            *_, terminated, is_cut, _ = environment.step(environment.action_space.sample())
            assert not terminated
            healthy.append(environment.unwrapped.is_healthy)
        assert healthy[-6:] == [True] + [False] * 5 and len(healthy) < 500
    environment.close()
    with pytest.raises(UserError, match="Pendulum-v1 does not say when it is unhealthy"):
        make_training_environment(EnvironmentConfig(id="Pendulum-v1"), 50, 5)


def test_what_is_never_unhealthy_is_told_before_anything_starts(small: MakeConfig) -> None:
    """Also where the environment would be made by a remote worker."""
    with pytest.raises(UserError, match="policy.max_unhealthy_steps: Pendulum-v1 does not say when"):
        train(small(policy={"max_unhealthy_steps": 5}, placement={"num_env_runners": 1}))


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

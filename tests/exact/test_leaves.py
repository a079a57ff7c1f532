"""What holds for the whole of rayalign/objectives: leaves that import torch only, golden numbers, clear
refusals.
"""

import ast
import inspect
import math
import pkgutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayalign import objectives
from rayalign.objectives.advantages import batch_whiten, group_relative_advantages, rloo_advantages
from rayalign.objectives.critic import clipped_value_loss
from rayalign.objectives.implicit import GSIL_LINKS, IMPLICIT_LINKS, implicit_pair_loss, ipo_loss
from rayalign.objectives.likelihood import negative_log_likelihood
from rayalign.objectives.policy import (
    clipped_policy_loss,
    kl_penalised_token_rewards,
    kl_penalty_loss,
    policy_gradient_loss,
    squared_advantage_loss,
)
from rayalign.objectives.reward import (
    DIVERGENCES,
    PAIR_LOSSES,
    bradley_terry_loss,
    linear_irl_loss,
    logistic_loss,
    logistic_pair_loss,
    margin_demo_minus_agent,
    pair_accuracy,
    pair_accuracy_half_ties,
    standardise,
)

from .worlds import deterministic

MODULES = [import_module(f"rayalign.objectives.{m.name}") for m in pkgutil.iter_modules(objectives.__path__)]
PUBLIC = [
    pytest.param(function, id=f"{module.__name__.rsplit('.', 1)[1]}.{name}")
    for module in MODULES
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_")
]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_objectives_import_torch_and_the_standard_library_only(module):
    tree = ast.parse(Path(module.__file__).read_text())
    names = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    foreign = [n for n in names if n.split(".")[0] not in {"torch", *sys.stdlib_module_names}]
    assert [n for n in foreign if not n.startswith("rayalign.objectives.")] == []


@pytest.mark.parametrize("function", PUBLIC)
def test_public_functions_say_their_shapes_and_take_few_positional_arguments(function):
    """A shape letter in brackets in each docstring; options are keyword-only."""
    assert any(f"[{letter}" in function.__doc__ for letter in "BTNY") or "scalar" in function.__doc__
    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert all(p.default is p.empty for p in positional)
    assert len(positional) <= 4


TABLES = {
    "pair losses": (PAIR_LOSSES, {"bradley_terry", "linear", "logistic"}),
    "divergences": (
        DIVERGENCES,
        {"reverse_kl", "jensen_shannon", "jensen_shannon_softplus", "forward_kl", "forward_kl_exp"},
    ),
    "implicit links": (IMPLICIT_LINKS, {"log_sigmoid", "hinge", "linear"}),
    "gsil links": (GSIL_LINKS, {"logistic", "hinge", "brier", "exp"}),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_losses_cannot_be_changed_from_outside(name):
    table, names = TABLES[name]
    assert set(table) == names
    with pytest.raises(TypeError):
        table["linear"] = bradley_terry_loss


def test_golden_reward_losses():
    demo, agent = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 3.0])
    pairwise = math.log1p(math.exp(-2)) + math.log(2) + math.log1p(math.exp(3))
    assert bradley_terry_loss(demo, agent).item() == pytest.approx(pairwise)
    assert linear_irl_loss(demo, agent).item() == 1.0
    assert linear_irl_loss(demo, agent, weights=torch.tensor([1.0, 5.0, 0.0])).item() == -2.0
    logistic = math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log(2)
    is_demo = torch.tensor([True, True, False])
    assert logistic_loss(demo, is_demo).item() == pytest.approx(logistic)
    assert logistic_loss(torch.zeros(2), is_demo[1:]).item() == pytest.approx(2 * math.log(2))
    is_demo = torch.tensor([True] * 3 + [False] * 3)
    assert logistic_pair_loss(demo, agent).item() == pytest.approx(
        logistic_loss(torch.cat([demo, agent]), is_demo).item()
    )


def test_reward_losses_stay_finite_at_extreme_scores():
    """A margin of 10,000 the wrong way costs 10,000, not inf."""
    wrong = torch.tensor([-1e4]), torch.tensor([0.0])
    assert bradley_terry_loss(*wrong).item() == pytest.approx(1e4)
    assert logistic_loss(wrong[0], torch.tensor([True])).item() == pytest.approx(1e4)


def test_golden_accuracies_and_margin():
    """One pair right, one tie, one wrong."""
    demo, agent = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 3.0])
    assert pair_accuracy(demo, agent).item() == 1
    assert pair_accuracy_half_ties(demo, agent).item() == 1.5
    assert margin_demo_minus_agent(demo, agent).item() == -1.0


def test_golden_standardise():
    assert standardise(torch.tensor([1.0, 5.0]), mean=3.0, std=2.0).tolist() == [-1.0, 1.0]
    for std in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="it tells none apart"):
            standardise(torch.tensor([1.0]), mean=0.0, std=std)


def test_golden_likelihood():
    logprobs = torch.tensor([-1.0, -3.0])
    assert negative_log_likelihood(logprobs).item() == 4.0
    assert negative_log_likelihood(logprobs, weights=torch.tensor([1.0, 0.5])).item() == 2.5


def test_golden_advantages():
    """Two interleaved groups, {1, 2, 6} and {4, 0}."""
    rewards, group_ids = torch.tensor([1.0, 4.0, 2.0, 0.0, 6.0]), torch.tensor([7, 3, 7, 3, 7])
    assert rloo_advantages(rewards, group_ids).tolist() == [-3.0, 4.0, -1.5, -4.0, 4.5]
    plain = group_relative_advantages(rewards, group_ids, divide_by_std=False)
    assert plain.tolist() == [-2.0, 2.0, -1.0, -2.0, 3.0]
    scaled = group_relative_advantages(rewards, group_ids, divide_by_std=True, eps=0)
    stds = [7**0.5, 8**0.5]
    expected = [-2 / stds[0], 2 / stds[1], -1 / stds[0], -2 / stds[1], 3 / stds[0]]
    assert scaled.tolist() == pytest.approx(expected)
    assert rloo_advantages(rewards[:0], group_ids[:0]).tolist() == []


@deterministic
@given(st.floats(-100, 100, width=32), st.integers(2, 50))
def test_equal_rewards_give_advantages_of_exactly_zero(reward, group_size):
    """Float32 sums of 0.1 leave no rounding noise for a division by a std of 0 to blow up to size one."""
    rewards, group_ids = torch.full((group_size,), reward), torch.zeros(group_size)
    for advantages in (
        rloo_advantages(rewards, group_ids),
        group_relative_advantages(rewards, group_ids, divide_by_std=True),
        batch_whiten(rewards),
    ):
        assert torch.equal(advantages, torch.zeros(group_size))


def test_golden_whitening():
    assert batch_whiten(torch.tensor([1.0, 3.0, 5.0]), eps=0).tolist() == pytest.approx(
        [-(1.5**0.5), 0, 1.5**0.5]
    )
    assert batch_whiten(torch.zeros(0)).tolist() == []


@pytest.mark.parametrize(
    "advantages", [rloo_advantages, lambda r, g: group_relative_advantages(r, g, divide_by_std=False)]
)
def test_a_group_of_one_is_refused(advantages):
    with pytest.raises(
        ValueError, match="group 4 has one response: a baseline needs at least 2 samples per prompt"
    ):
        advantages(torch.zeros(3), torch.tensor([2, 4, 2]))


@pytest.mark.parametrize(
    "loss",
    [bradley_terry_loss, linear_irl_loss, logistic_pair_loss, pair_accuracy, margin_demo_minus_agent, kl_penalty_loss],
)
@pytest.mark.parametrize("shape", [(3, 1), (1,), (4,)])
def test_shapes_that_would_broadcast_are_refused(loss, shape):
    """[N] beside [N, 1] makes [N, N] differences that train without an error; here it stops."""
    with pytest.raises(ValueError, match="vectors of one length"):
        loss(torch.zeros(3), torch.zeros(shape))


def clipped_loss(policy_logprobs, **constants):
    return clipped_policy_loss(policy_logprobs, **constants, clip_low=0.2, clip_high=0.2)[0]


def implicit_loss(policy_logprobs, **constants):
    return implicit_pair_loss(policy_logprobs, policy_logprobs * 2, **constants, beta=0.5)


def ipo(policy_logprobs, **constants):
    return ipo_loss(policy_logprobs, policy_logprobs * 2, **constants, beta=0.5)


def squared_loss(policy_logprobs, **constants):
    return squared_advantage_loss(policy_logprobs, **constants, scale=3.0)


def value_loss(values, **constants):
    return clipped_value_loss(values, **constants, clip=1.0)[0]


CONSTANTS = {
    squared_loss: ["old_logprobs", "advantages", "weights"],
    kl_penalty_loss: ["ref_logprobs", "weights"],
    value_loss: ["old_values", "returns", "weights"],
    ipo: ["chosen_ref_logprob_sums", "rejected_ref_logprob_sums", "weights"],
    linear_irl_loss: ["agent_scores", "weights"],
    negative_log_likelihood: ["weights"],
    policy_gradient_loss: ["advantages", "weights"],
    clipped_loss: ["old_logprobs", "advantages", "weights"],
    implicit_loss: ["demo_ref_logprob_sums", "agent_ref_logprob_sums", "weights"],
}


@pytest.mark.parametrize("loss", CONSTANTS, ids=lambda f: f.__name__)
def test_constants_carry_no_gradient(loss):
    """Weights, advantages and other owners' log-probs made from live tensors do not become part of the
    objective.

    The scores of the agent are the one exception: they are the reward's own.
    """
    trained = torch.full((2,), 0.1, requires_grad=True)
    constants = {name: torch.full((2,), 0.2, requires_grad=True) for name in CONSTANTS[loss]}
    leaves = [trained, *constants.values()]
    trained_grad, *others = torch.autograd.grad(loss(trained, **constants).sum(), leaves, allow_unused=True)
    assert trained_grad.abs().min() > 0
    reached = {name for name, grad in zip(constants, others, strict=True) if grad is not None}
    assert reached == ({"agent_scores"} if loss is linear_irl_loss else set())


def test_an_empty_response_cannot_carry_its_score_on_a_token():
    with pytest.raises(ValueError, match="a response of length 0 has no token to carry its score"):
        kl_penalised_token_rewards(
            torch.zeros(2), torch.zeros(1), torch.zeros(1), torch.tensor([0, 1]), kl_coef=0.1
        )

"""The objective of docs/examples/objective.py: what docs/extending.md asks of any, tested on it."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
import torch

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("objective", REPOSITORY / "docs" / "examples" / "objective.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_value(example: ModuleType) -> None:
    """By hand: at equal scores each pair costs log(1 + e); far above the margin, nothing."""
    zero = torch.zeros(3, dtype=torch.float64)
    assert torch.allclose(example.margin_loss(zero, zero), 3 * torch.log1p(torch.tensor(torch.e, dtype=torch.float64)))
    assert example.margin_loss(zero + 40, zero) < 1e-12


def test_its_gradient(example: ModuleType) -> None:
    """Up for demonstrations and down for samples, by as much: a shift of the reward changes nothing."""
    demo, agent = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(example.margin_loss, (demo, agent))
    example.margin_loss(demo, agent).backward()
    assert (demo.grad < 0).all() and torch.allclose(demo.grad, -agent.grad)
    assert torch.allclose(example.margin_loss(demo + 7, agent + 7), example.margin_loss(demo, agent))


def test_it_is_a_sum(example: ModuleType) -> None:
    """Cut into micro-batches the parts add up; the caller divides once."""
    demo, agent = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    parts = sum(example.margin_loss(demo[i : i + 2], agent[i : i + 2]) for i in (0, 2, 4))
    assert torch.allclose(parts, example.margin_loss(demo, agent))

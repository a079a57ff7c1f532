"""Objectives of one's own: what is refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayalign.api import train
from rayalign.errors import ConfigError

SFT = {"name": "own", "model": {"path": "nowhere"}, "stages": [{"kind": "sft"}]}
IRL = {**SFT, "stages": [{"kind": "irl", "policy": "nowhere", "reward": {"init": "nowhere"}}]}

PREFERENCES_ONLY = {
    **IRL,
    "stages": [
        {"kind": "irl", "policy": "a", "reward": {"init": "b", **{"demonstration_weight": 0, "preference_weight": 1},
                                                  "normalise": "none"}},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "config", "message"),
    [
        (lambda demo, agent: (demo - agent).sum(), SFT, "no stage of this config would use it"),
        ("bradley_terry", IRL, "give a function of two tensors, not str"),
        (lambda demo, agent: demo - agent, IRL, "return the sum over pairs"),
        (lambda demo, agent: float((demo - agent).sum()), IRL, "return the sum over pairs"),
        (lambda demo, agent: (demo - agent).detach().sum(), IRL, "return the sum over pairs"),
        (lambda demo, agent: (demo - agent).sum() * torch.inf, IRL, "return the sum over pairs"),
        (lambda demo, agent: (demo - agent).mean(), IRL, "three pairs cost .* not a mean"),
        (lambda demo, agent: (demo - agent).sum() * torch.rand(()), IRL, "nothing random"),
        (lambda demo: demo.sum(), IRL, r"on two tensors \[3\] it failed: TypeError: .*takes 1 positional"),
        (lambda demo, agent: (demo - agent).sum(), PREFERENCES_ONLY, "no stage of this config would use it"),
    ],
)
def test_a_loss_that_cannot_train_is_refused_at_once(loss: Any, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(config, reward_loss=loss)


@pytest.mark.parametrize("demonstrations", [None, {"loss": "likelihood"}, {"loss": "dft"}])
def test_an_implicit_loss_is_of_pairs(demonstrations: dict[str, Any] | None) -> None:
    """Preferences alone (DPO), likelihood and DFT have no (demonstration, sample) pairs to give it."""
    stage = {"kind": "implicit", "policy": "a", "demonstrations": demonstrations, "preferences": {}}
    with pytest.raises(ConfigError, match="implicit_loss: no stage of this config would use it"):
        train({**SFT, "stages": [stage]}, implicit_loss=lambda demo, agent: (agent - demo).sum())

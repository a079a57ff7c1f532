"""Objectives of one's own: what is refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayalign.api import train
from rayalign.errors import ConfigError

SFT = {"name": "own", "model": {"path": "nowhere"}, "stages": [{"kind": "sft"}]}
IRL = {**SFT, "stages": [{"kind": "irl", "policy": "nowhere", "reward": {"init": "nowhere"}}]}


@pytest.mark.parametrize(
    ("loss", "config", "message"),
    [
        (lambda demo, agent: (demo - agent).sum(), SFT, "no stage of this config would use it"),
        ("bradley_terry", IRL, "give a function of two tensors, not str"),
        (lambda demo, agent: demo - agent, IRL, "return the sum over pairs"),
        (lambda demo, agent: float((demo - agent).sum()), IRL, "return the sum over pairs"),
        (lambda demo, agent: (demo - agent).detach().sum(), IRL, "return the sum over pairs"),
        (lambda demo, agent: (demo - agent).sum() * torch.inf, IRL, "return the sum over pairs"),
    ],
)
def test_a_loss_that_cannot_train_is_refused_at_once(loss: Any, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(config, reward_loss=loss)

"""A fleet in this process: what it tells other libraries of devices and ranks ends with it."""

from __future__ import annotations

import os
from contextlib import closing

import pytest

from rayalign.actors.fleet import ENVIRONMENT, LocalFleet
from rayalign.config.placement import PlacementConfig
from rayalign.engines.learner import init_distributed


def test_a_fleet_in_this_process_gives_its_devices_and_ranks_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other libraries would join a group of the ranks that they read here."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with closing(LocalFleet(PlacementConfig(backend="inprocess"))):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
        init_distributed()
        assert os.environ["RANK"] == "0"
    assert {name: os.environ[name] for name in ENVIRONMENT if name in os.environ} == {"CUDA_VISIBLE_DEVICES": "1"}

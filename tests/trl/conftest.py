"""TRL's trainers, imported when the first test needs them: they bring vLLM along, which takes ten seconds."""

import warnings
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def trl() -> ModuleType:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TRL currently supports vLLM versions")
        import trl

        trl.DPOTrainer, trl.GRPOTrainer, trl.RLOOTrainer  # noqa: B018  # loaded lazily
    return trl

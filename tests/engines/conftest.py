"""One thread, the tiny models, and an environment left as it was found."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.engines import gradients, remote, resume, toy
from tests.engines.worlds import in_world
from tests.models.conftest import one_thread, tied, untied  # noqa: F401 - fixtures


@pytest.fixture(scope="package", autouse=True)
def environment():
    """Engines set RANK, WORLD_SIZE and vLLM's variables; tests after these must not inherit them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def saved_by_two(tmp_path_factory) -> Path:
    """Where two ranks save their engines half-way, once `two_ranks` has run."""
    return tmp_path_factory.mktemp("saved-by-two")


@pytest.fixture(scope="session")
def two_ranks(tied, untied, saved_by_two) -> list[dict[str, Any]]:  # noqa: F811
    """What each of two real ranks saw of everything that must not depend on their number; started once."""
    return in_world(everything, tied, untied, saved_by_two, num_ranks=2)


@pytest.fixture(scope="session")
def one_rank(tied, untied) -> dict[str, Any]:  # noqa: F811
    """The same in this process."""
    return {"steps": gradients.report(tied), "rounds": toy.report(untied)}


def everything(tied: str, untied: str, saved: Path) -> dict[str, Any]:  # noqa: F811
    """One rank's work: single steps, whole rounds, engines saved half-way and resumed, and weights sent to a sampler."""
    return {
        "steps": gradients.report(tied),
        "rounds": toy.report(untied),
        "halfway": resume.halfway(untied, saved),
        "resumed": resume.resumed(untied, saved),
        "sync": remote.trainer(untied),
    }

"""One exported run for all tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayalign.sharing.card import Stated
from rayalign.sharing.export import export
from tests.sharing.runs import rft_run


@pytest.fixture(scope="session")
def rft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a policy and a sequence reward; read only."""
    return rft_run(tmp_path_factory.mktemp("shared") / "runs" / "tiny")


@pytest.fixture(scope="session")
def exported(rft: Path) -> Path:
    """Its export; read only."""
    to = rft.parents[1] / "export"
    export(rft, to, stated=Stated("Apache-2.0"))
    return to

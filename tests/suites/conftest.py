"""vLLM in the tests' own process, after tests that served a store with flask."""

from __future__ import annotations

import sys

import pytest

OF_FLASK = ("flask", "moto", "werkzeug")


@pytest.fixture(autouse=True)
def flask_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM looks at every attribute of every module when it starts, and flask's proxies fail outside of a request."""
    for name in [name for name in sys.modules if name.partition(".")[0].startswith(OF_FLASK)]:
        monkeypatch.delitem(sys.modules, name)

"""The layers that the pages show are those that import-linter holds."""

from __future__ import annotations

import re
import tomllib

from tests.docs.conftest import ROOT


def enforced() -> list[list[str]]:
    """The modules of each layer, from the top."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["id"] == "layers"]
    return [re.findall(r"\w+", layer) for layer in layers]


def section(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8").split("\n## Layers\n")[1].split("\n## ")[0]


def test_contributing_shows_the_layers() -> None:
    block = section("CONTRIBUTING.md").split("```")[1].strip()
    names = [re.split(r" {4,}", line)[0] for line in block.splitlines()]  # and what they are, further to the right
    assert [line.split() for line in names] == enforced()


def test_the_architecture_shows_the_layers() -> None:
    rows = re.findall(r"^\| (`.*?) \|", section("docs/architecture.md"), re.MULTILINE)
    assert [re.findall(r"\w+", row) for row in rows] == enforced()

"""The recipes that come with rayalign: a config for each method, in the paper's size and in the planted world's.

The files are those of configs/, which lies in the package too. What a recipe is stands in the comments that it begins with:

    # recipe: one line that says what it does
    # paper: where it is from
    # data: what it learns from
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import rayalign
from rayalign.config.explain import did_you_mean
from rayalign.errors import ConfigError

Size = Literal["paper", "planted"]
HEADER = ("recipe", "paper", "data")
CONFIGS = Path(rayalign.__file__).resolve().parent / "recipes"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A method by name, and what the first lines of its paper-size config say of it."""

    name: str
    summary: str
    paper: str
    data: tuple[str, ...]

    def file(self, size: Size) -> Path:
        """The config to start from."""
        return CONFIGS / size / f"{self.name}.yaml"


def all_recipes() -> list[Recipe]:
    """Every recipe, by name."""
    files = sorted((CONFIGS / "paper").glob("*.yaml"))
    return [_read(file) for file in files if not file.name.startswith("_")]


def find_recipe(name: str) -> Recipe:
    """Raises ConfigError, with the name that was meant, for one that does not exist."""
    recipes = {recipe.name: recipe for recipe in all_recipes()}
    if name not in recipes:
        meant = did_you_mean(name, list(recipes)) or "; `rayalign recipes` lists all"
        raise ConfigError(f"{name!r} is no recipe{meant}")
    return recipes[name]


def _read(file: Path) -> Recipe:
    told = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        key, _, text = line.removeprefix("#").strip().partition(": ")
        if key in HEADER:
            told[key] = text.strip()
    missing = [key for key in HEADER if key not in told]
    if missing:
        raise ConfigError(f"{file}: the first lines lack `# {missing[0]}: ...`")
    return Recipe(file.stem, told["recipe"], told["paper"], tuple(told["data"].split(", ")))

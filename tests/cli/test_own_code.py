"""What identifies code of one's own: everything in its module that decides what it does, and nothing else."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rayalign.own_code import identify

CODE = """
import math

MARGIN = 1.0
UNUSED = 5
TABLE = {"a": [1, 2]}

def scale(x):
    return 2 * x

def loss(demo, agent, power=1):
    return scale(MARGIN - (demo - agent)) ** power + TABLE["a"][0] + math.log(1)

class Judge:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, prompts, responses):
        return [scale(self.weight) for _ in responses]

def made(weight):
    def inner(demo, agent):
        return weight * (demo - agent)
    return inner
"""


def module(folder: Path, code: str = CODE) -> ModuleType:
    """A user's module of this code."""
    folder.mkdir()
    file = folder / "mine.py"
    file.write_text(code)
    spec = importlib.util.spec_from_file_location("mine", file)
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("MARGIN = 1.0", "MARGIN = 9.0", False),
        ("return 2 * x", "return 3 * x", False),
        ("[1, 2]", "[7, 2]", False),
        ("power=1", "power=2", False),
        ("UNUSED = 5", "UNUSED = 6", True),
        ("return weight *", "return 2 * weight *", True),
    ],
)
def test_a_function_is_its_source_and_what_it_uses(tmp_path: Path, before: str, after: str, same: bool) -> None:
    one, other = module(tmp_path / "one"), module(tmp_path / "other", CODE.replace(before, after))
    assert (identify(one.loss) == identify(other.loss)) is same
    assert identify(one.loss).startswith("mine.loss ")


def test_partials_closures_and_objects_are_told_apart_by_what_they_hold(tmp_path: Path) -> None:
    found = module(tmp_path / "one")
    makers: list[Any] = [lambda w: functools.partial(found.loss, power=w), found.made, found.Judge]
    for maker in makers:
        assert identify(maker(1)) == identify(maker(1)) != identify(maker(2))
    small = [identify(functools.partial(found.loss, power=np.array(values))) for values in ([1, 2], [1, 2], [1, 3])]
    assert small[0] == small[1] != small[2]
    other = module(tmp_path / "other", CODE.replace("return 2 * x", "return 3 * x"))
    assert identify(found.Judge) != identify(other.Judge)

"""What an alarm is: a rule over the numbers that a loop measures anyway, with a memory that can be saved.

A rule is shown every record of a stage, as plain numbers under their logged names, and takes what it knows. Records in
which its numbers are missing or not finite pass it by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

Memory = dict[str, list[float]]  # fit for JSON


@dataclass(frozen=True, slots=True)
class Reading:
    """What a rule measured, and its alarm's line if that is more than it allows."""

    measure: float
    alarm: str | None = None


class Rule(Protocol):
    """One alarm."""

    name: str  # of its metric, watch/NAME
    collapse: bool  # whether going on only spoils the model
    memory: Memory

    def observe(self, round_number: int, found: Mapping[str, float]) -> Reading | None:
        """Takes one record; None where it says nothing to this rule, or it is too early."""


def known(found: Mapping[str, float], key: str) -> float | None:
    """The number under a name, if it is there and finite."""
    value = found.get(key)
    return value if value is not None and math.isfinite(value) else None

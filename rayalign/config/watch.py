"""When a loop warns that its policy exploits its reward, and whether it then stops."""

from __future__ import annotations

from pydantic import Field

from rayalign.config.base import Fraction, Number, Strict


class WatchConfig(Strict):
    """The alarms of a loop are always on, and each is told once; here stands what a person may want otherwise."""

    early_stop: bool = Field(
        False,
        description="end the stage at an alarm of collapse, or where the reward rises while held-out demonstrations fall "
        "behind; the models saved last stay",
    )
    max_length_ratio: Number = Field(
        1.5, gt=1, description="mean response length may grow or shrink by this factor; raise it where it is meant to"
    )
    min_entropy_ratio: Fraction = Field(0.3, description="the share of its first entropy that a policy should keep")

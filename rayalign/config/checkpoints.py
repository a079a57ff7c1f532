"""When a stage is saved while it runs, and how much is kept."""

from __future__ import annotations

from pydantic import Field

from rayalign.config.base import Positive, PositiveInt, Strict


class CheckpointConfig(Strict):
    """Checkpoints of stages that train: an interrupted run goes on from the newest, in RUN/checkpoints/STAGE."""

    every_s: Positive | None = Field(900.0, description="seconds between two; unset: only by steps")
    every_steps: PositiveInt | None = Field(None, description="optimiser or policy steps between two, besides")
    keep: PositiveInt = Field(2, description="how many of the newest stay")
    grace_s: Positive = Field(25.0, description="after SIGTERM, for the step in progress to end and be saved")
    best: str | None = Field(
        None,
        description="a metric of irl, rl or implicit, for instance health/demo_accuracy_heldout: the checkpoint of the "
        "round where it was highest stays besides",
    )

"""The root of the configuration."""

from __future__ import annotations

from pydantic import Field, model_validator

from rayalign.config.base import NonNegativeInt, Strict, stage_reference
from rayalign.config.data import DataConfig
from rayalign.config.model import LearnerConfig, ModelConfig
from rayalign.config.placement import PlacementConfig
from rayalign.config.stages import Stage
from rayalign.config.telemetry import TelemetryConfig


class RunConfig(Strict):
    """A run: a model, its data, where it runs, and the list of stages."""

    name: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    run_dir: str = Field("runs", description="the folder that holds run folders; this run writes to RUN_DIR/NAME")
    seed: NonNegativeInt = 0
    model: ModelConfig
    data: DataConfig = DataConfig()
    learner: LearnerConfig = LearnerConfig()
    placement: PlacementConfig = PlacementConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    stages: list[Stage] = Field(min_length=1)

    @model_validator(mode="after")
    def _references_point_backwards(self) -> RunConfig:
        earlier: list[str] = []
        for stage in self.stages:
            if stage.name in earlier:
                raise ValueError(f"two stages are named {stage.name!r}; give one another name")
            for key, location in stage.locations().items():
                reference = stage_reference(location)
                if reference and reference[0] not in earlier:
                    known = ", ".join(f"stage:{name}" for name in earlier) or "none"
                    raise ValueError(
                        f"stages.{stage.name}.{key}: {location} names no earlier stage (earlier stages: {known})"
                    )
            earlier.append(stage.name)
        return self

    @model_validator(mode="after")
    def _shared_references_are_stages(self) -> RunConfig:
        names = {stage.name for stage in self.stages}
        shared = {"model.path": self.model.path, "model.tokenizer": self.model.tokenizer}
        for key in ("demonstrations", "preferences", "prompts", "heldout_demonstrations"):
            source = getattr(self.data, key)
            shared[f"data.{key}.path"] = source.path if source else None
        for key, location in shared.items():
            reference = stage_reference(location) if location else None
            if reference and reference[0] not in names:
                raise ValueError(f"{key}: {location} names no stage of this run (stages: {', '.join(sorted(names))})")
        return self

    @model_validator(mode="after")
    def _samples_fit_the_context(self) -> RunConfig:
        for stage in self.stages:
            sampling = getattr(stage, "sampling", None)
            if sampling is not None and sampling.max_new_tokens >= self.model.max_length:
                raise ValueError(
                    f"stages.{stage.name}.sampling.max_new_tokens ({sampling.max_new_tokens}) leaves no room for a "
                    f"prompt in model.max_length ({self.model.max_length}); lower the one or raise the other"
                )
        return self

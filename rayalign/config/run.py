"""The root of the configuration, and the rules between its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from rayalign.config.base import NonNegativeInt, PathText, stage_reference
from rayalign.config.checkpoints import CheckpointConfig
from rayalign.config.credentials import WithoutCredentials
from rayalign.config.data import DataConfig, DataSource
from rayalign.config.explain import did_you_mean
from rayalign.config.loops import ImplicitStage, LoopStage, RlStage, SampledStage
from rayalign.config.model import LearnerConfig, ModelConfig
from rayalign.config.placement import PlacementConfig
from rayalign.config.stage_base import Kind
from rayalign.config.stages import SftStage, Stage
from rayalign.config.telemetry import TelemetryConfig


class RunConfig(WithoutCredentials):
    """A run: a model, its data, where it runs, and the list of stages."""

    name: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=128)
    run_dir: PathText = Field("runs", description="holds run folders; this run writes to RUN_DIR/NAME")
    seed: NonNegativeInt = 0
    model: ModelConfig
    data: DataConfig = DataConfig()
    learner: LearnerConfig = LearnerConfig()
    placement: PlacementConfig = PlacementConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    resume: Literal["auto", "anew", "changed"] = Field(
        "auto",
        description="a stage that was interrupted goes on from its newest checkpoint; anew: from its beginning; changed: "
        "goes on also where its settings or data are no longer what they were",
    )
    stages: list[Stage] = Field(min_length=1)

    @field_validator("run_dir")
    @classmethod
    def _run_dir_is_a_folder(cls, run_dir: str) -> str:
        if stage_reference(run_dir):
            raise ValueError(f"{run_dir} is inside a run, and this holds runs; give a folder")
        return run_dir

    @property
    def response_room(self) -> int | None:
        """Tokens that every prompt leaves for a response, in all stages alike; None if no stage improves a policy."""
        return max((stage.room for stage in self.stages if stage.room is not None), default=None)

    @property
    def max_staleness(self) -> int:
        """The most that any stage allows."""
        return max((stage.max_staleness for stage in self.stages if isinstance(stage, LoopStage)), default=0)

    @model_validator(mode="after")
    def _references_point_backwards(self) -> RunConfig:
        earlier: list[Stage] = []
        for stage in self.stages:
            names = [other.name for other in earlier]
            if stage.name in names:
                raise ValueError(f"two stages are named {stage.name!r}; give one another name")
            for key, needed in stage.inputs().items():
                location = needed.location
                if location is None:
                    continue
                key += ".path" * isinstance(needed.source, DataSource)
                reference = stage_reference(location)
                if reference and reference[0] not in names:
                    known = ", ".join(f"stage:{name}" for name in names) or "none"
                    raise ValueError(
                        f"stages.{stage.name}.{key}: {location} names no earlier stage (earlier stages: {known})"
                        f"{did_you_mean(reference[0], names)}"
                    )
                _check_artifact(f"stages.{stage.name}.{key}", location, earlier, needed.kind)
            earlier.append(stage)
        return self

    @model_validator(mode="after")
    def _shared_references_are_stages(self) -> RunConfig:
        names = sorted(stage.name for stage in self.stages)
        shared = {"model.path": self.model.path, "model.tokenizer": self.model.tokenizer}
        data = self.data
        for key, source in (
            ("demonstrations", data.demonstrations),
            ("prompts", data.prompts),
            ("preferences", data.preferences),
            ("heldout_demonstrations", data.heldout_demonstrations),
        ):
            shared[f"data.{key}.path"] = source.path if source else None
        for key, location in shared.items():
            reference = stage_reference(location) if location else None
            if location and reference and reference[0] not in names:
                raise ValueError(
                    f"{key}: {location} names no stage of this run (stages: {', '.join(names)})"
                    f"{did_you_mean(reference[0], names)}"
                )
            _check_artifact(key, location or "", self.stages, "rows" if key.startswith("data.") else "tokenizer")
        return self

    @model_validator(mode="after")
    def _a_stream_keeps_nothing_out(self) -> RunConfig:
        data = self.data
        readers = [stage.name for stage in self.stages if isinstance(stage, SftStage) and stage.data is None]
        streams = data.demonstrations is not None and data.demonstrations.streaming
        if readers and streams and data.heldout_frac and data.heldout_demonstrations is None:
            raise ValueError(
                f"data.demonstrations.streaming: stage {readers[0]} would train on every row of a stream, and so on the "
                f"share that is kept out to measure on (data.heldout_frac {data.heldout_frac:g}); set "
                "data.heldout_demonstrations to rows of their own, or data.heldout_frac to 0"
            )
        return self

    @model_validator(mode="after")
    def _a_stream_has_no_end_of_its_own(self) -> RunConfig:
        for stage in self.stages:
            source = (stage.data or self.data.demonstrations) if isinstance(stage, SftStage) else None
            if isinstance(stage, SftStage) and source and source.streaming and stage.max_steps is None:
                raise ValueError(f"stages.{stage.name}.max_steps: streaming data has no known length; set it")
        return self

    @model_validator(mode="after")
    def _samples_fit_the_context(self) -> RunConfig:
        for stage in self.stages:
            drawn = stage.longest_draw
            if drawn is not None and drawn >= self.model.max_length:
                raise ValueError(
                    f"stages.{stage.name}.sampling.max_new_tokens ({drawn}) leaves no room for "
                    f"a prompt in model.max_length ({self.model.max_length}); lower the one or raise the other"
                )
        return self

    @model_validator(mode="after")
    def _new_models_are_long_enough(self) -> RunConfig:
        for stage in self.stages:
            positions = (stage.scratch or {}).get("max_position_embeddings") if isinstance(stage, SftStage) else None
            if isinstance(positions, (int, float)) and positions < self.model.max_length:
                raise ValueError(
                    f"stages.{stage.name}.scratch.max_position_embeddings ({positions:g}) is below model.max_length "
                    f"({self.model.max_length}); lower the one or raise the other"
                )
        return self

    @model_validator(mode="after")
    def _adapters_keep_their_reference(self) -> RunConfig:
        for stage in self.stages:
            key = _moving_reference(stage)
            if self.model.lora and key:
                raise ValueError(
                    f"stages.{stage.name}.{key}: with model.lora the reference is the model without its "
                    "adapter, which does not move; set it to start, or remove lora"
                )
            if self.model.lora and isinstance(stage, SampledStage) and self.model.lora.dropout:
                raise ValueError(
                    f"model.lora.dropout ({self.model.lora.dropout:g}): stage {stage.name} compares log-probs, which "
                    "dropout makes random; set it to 0"
                )
        return self

    @model_validator(mode="after")
    def _rewards_are_of_the_kind_asked_for(self) -> RunConfig:
        kinds = {stage.name: stage.kind for stage in self.stages}
        for stage in self.stages:
            reference = stage_reference(stage.reward or "") if isinstance(stage, RlStage) else None
            if not isinstance(stage, RlStage) or reference is None or reference[0] not in kinds:
                continue
            of_tokens = kinds[reference[0]] in ("ava", "log_ratio", "implicit")
            if stage.token_rewards and not of_tokens:
                raise ValueError(
                    f"stages.{stage.name}.token_rewards: {stage.reward} is a sequence-level reward, of one number a "
                    "response; set token_rewards to false, or learn one that has rewards of tokens (stage ava)"
                )
            if of_tokens and stage.improve.critic and stage.improve.critic.init is None:
                raise ValueError(
                    f"stages.{stage.name}.improve.critic.init: {stage.reward} has no head of one number a response that a "
                    "critic could start from; name a model to start from, for instance the policy's"
                )
        return self

    @model_validator(mode="after")
    def _groups_that_overlap_have_devices(self) -> RunConfig:
        if self.max_staleness and self.placement.colocate:
            raise ValueError(
                "placement.colocate: groups on the same GPUs take turns, and max_staleness 1 lets them work at the same "
                "time; set max_staleness to 0, or give each group its own GPUs"
            )
        return self


def _moving_reference(stage: Stage) -> str | None:
    """The key by which a stage's reference moves from round to round; None where it does not."""
    if isinstance(stage, LoopStage):
        return "improve.reference" if stage.improve.reference == "round" else None
    moves = isinstance(stage, ImplicitStage) and stage.draws and stage.rounds > 1 and stage.reference == "round"
    return "reference" if moves else None


def _check_artifact(
    key: str, location: str, stages: Sequence[Stage], kind: Kind | Literal["rows", "tokenizer"]
) -> None:
    """Raises ValueError where a reference names what its stage does not write, or a policy for a reward."""
    reference = stage_reference(location)
    stage = next((s for s in stages if reference and s.name == reference[0]), None)
    if reference is None or stage is None:
        return
    artifact, *below = reference[1].split("/")
    if ".." in below:
        raise ValueError(f"{key}: {location} leads out of its stage; name what the stage writes")
    if artifact not in stage.artifacts():
        there = ", ".join(f"stage:{stage.name}/{name}" for name in stage.artifacts())
        raise ValueError(
            f"{key}: {location} is nothing that stage {stage.name} writes (there are: {there})"
            f"{did_you_mean(artifact, stage.artifacts())}"
        )
    if artifact == "tokenizer" and kind != "tokenizer":
        raise ValueError(f"{key}: {location} is a tokenizer; name another artifact")
    of_rows = kind not in ("model", "reward", "tokenizer")
    if artifact.endswith(".jsonl") != of_rows:
        wanted = "rows, which a stage writes as .jsonl" if of_rows else "a folder of a model"
        raise ValueError(f"{key}: {location} is not {wanted}; name another artifact")
    answers = key.endswith("init") or stage.kind == "ava"  # a reward may start from one, and AVA's is a language model too
    if (kind, artifact) == ("reward", "policy") or ((kind, artifact) == ("model", "reward") and not answers):
        wanted = "policy" if artifact == "reward" else "reward"
        raise ValueError(f"{key}: {location} is a {artifact}, and this takes a {wanted}; name a stage:STAGE/{wanted}")

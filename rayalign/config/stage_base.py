"""What every stage shares: a name, the artifacts it writes, and what it reads, each fact told once.

`inputs` and `shared_inputs` are all that the checks before a run, the identity of finished stages and the memory estimate
know of a stage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from rayalign.config.base import Location, Positive, PositiveInt, Strict
from rayalign.config.data import DataConfig, DataSource

NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
RESERVED = ("tensorboard", "wandb", "mlflow", "checkpoints", "stacks")  # folders that lie beside the stages'
DEMONSTRATIONS = "demonstrations"  # one side of a pair: the run's own demonstrations


Kind = Literal["demonstrations", "prompts", "preferences", "model", "reward", "samples"]


@dataclass(frozen=True, slots=True)
class Input:
    """One thing that a stage reads: rows of a kind, a model, a reward, or stored samples. None: needed, and not set."""

    kind: Kind
    source: DataSource | str | None

    @property
    def location(self) -> str | None:
        """A path, a hub name or a reference."""
        return self.source.path if isinstance(self.source, DataSource) else self.source


@dataclass(frozen=True, slots=True)
class Held:
    """A model that the workers of a group hold while a stage runs: trained, or frozen under a name."""

    group: Literal["policy", "reward", "rollout"]
    location: Location
    frozen: str = ""  # what it is for, if it is not trained
    trained: str = ""  # the same, for what is trained beside the group's own model


# vLLM takes colder ones for 0.01 without a word, and hotter ones than this draw anything at all.
Temperature = Annotated[Positive, Field(ge=0.01, le=100)]


class SamplingConfig(Strict):
    """How responses are drawn. Training needs the policy's own distribution: temperature 1, no truncation."""

    temperature: Temperature = 1.0
    top_p: Positive = Field(1.0, le=1)
    max_new_tokens: PositiveInt = 256
    ignore_eos: bool = Field(False, description="go on past the end token to the limit; for measuring speed")


class PairSource(Strict):
    """Pairs made of two sets of responses to the same prompts: stored samples, or the run's demonstrations.

    AfD's reward models (paper 2, section 2.2) are the choices of the two sides.
    """

    better: Location = Field(description='stage:STAGE/samples.jsonl, or "demonstrations"')
    worse: Location = Field(description='stage:STAGE/samples.jsonl, or "demonstrations"')

    def inputs(self, key: str) -> dict[str, Input]:
        """The stored samples among the two sides, by the keys that name them."""
        sides = {f"{key}.better": self.better, f"{key}.worse": self.worse}
        return {name: Input("samples", path) for name, path in sides.items() if path != DEMONSTRATIONS}

    @property
    def reads_demonstrations(self) -> bool:
        """Whether one of the sides is the run's demonstrations."""
        return DEMONSTRATIONS in (self.better, self.worse)


class StageBase(Strict):
    """A stage writes artifacts into RUN/NAME; later stages refer to them as stage:NAME/ARTIFACT."""

    ARTIFACTS: ClassVar[tuple[str, ...]] = ()

    name: str

    @field_validator("name")  # not of the field, which every stage declares anew with its default
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(
                "letters, digits, dashes and underscores only, 64 at most, and a letter or digit first "
                f"(got {name[:80]!r})"
            )
        if name in RESERVED:
            raise ValueError(f"{name} is a folder of the run's own; give the stage another name")
        return name

    def artifacts(self) -> tuple[str, ...]:
        """What this stage writes, as stage:NAME/ARTIFACT names it."""
        return self.ARTIFACTS

    def inputs(self) -> dict[str, Input]:
        """What this stage's own settings name, by the key below stages.NAME."""
        return {}

    def shared_inputs(self, data: DataConfig) -> dict[str, Input]:
        """What it reads of the run's `data`, by the whole key."""
        return {}

    def trains(self) -> dict[Literal["policy", "reward"], Location]:
        """The models that it trains, by the artifact that each is saved as."""
        return {}

    def holds(self) -> list[Held]:
        """The models in memory while it runs, in the order they are loaded."""
        return [Held(role, location) for role, location in self.trains().items()]

    def phases(self) -> list[list[Held]]:
        """What is held at one time, for a stage that takes its models one after the other."""
        return [self.holds()]

    def made_of(self, artifact: str) -> list[Location]:
        """The models that an artifact of it is as large as, together."""
        return [location for name, location in self.trains().items() if name == artifact]

    @property
    def pair_loss(self) -> Literal["reward_loss", "implicit_loss"] | None:
        """Which objective given in Python takes the place of its own, if it has one on pairs."""
        return None

    @property
    def room(self) -> int | None:
        """Tokens of the longest response that it draws to learn from; prompts are cut to leave them."""
        return None

    @property
    def longest_draw(self) -> int | None:
        """Tokens of the longest response that it draws at all."""
        return self.room


def set_inputs(**inputs: Input) -> dict[str, Input]:
    """Those of the inputs that are set; a key's two underscores are a dot."""
    return {key.replace("__", "."): found for key, found in inputs.items() if found.source is not None}


def demonstrations_of(data: DataConfig) -> Iterator[tuple[str, Input]]:
    """The run's demonstrations, and those that are kept out, if they have a file of their own."""
    yield "data.demonstrations", Input("demonstrations", data.demonstrations)
    if data.heldout_demonstrations:
        yield "data.heldout_demonstrations", Input("demonstrations", data.heldout_demonstrations)


def prompts_or_demonstrations(data: DataConfig) -> Iterator[tuple[str, Input]]:
    """data.prompts where it is set, or where there is neither; else the demonstrations, whose prompts serve."""
    if data.prompts or not data.demonstrations:
        yield "data.prompts", Input("prompts", data.prompts)
    else:
        yield "data.demonstrations", Input("prompts", data.demonstrations)

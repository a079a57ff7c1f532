"""What a report takes for granted of the lines and files that it reads: what is otherwise is told, and left out."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from rayalign.report.results import Estimate

Model = TypeVar("Model", bound=BaseModel)
Count = Annotated[int, Field(ge=0, lt=2**53)]
MAX_NUMBER = 1e300  # what is as large leaves no axis for the rest


class Line(BaseModel):
    """Of a stage."""

    model_config = ConfigDict(strict=True, extra="allow")

    stage: str
    step: Count = 0


class Record(Line):
    """A line of metrics.jsonl."""

    round: Count | None = None
    time_s: Annotated[float, Field(ge=0, lt=MAX_NUMBER)] | None = None


class Answer(BaseModel):
    """Of a probe."""

    response: str | None = None
    reward: FiniteFloat | None = None
    ended: bool = True
    tokens: list[tuple[str, FiniteFloat | None]] | None = None


class Sample(BaseModel):
    """A line of an evaluate stage's samples.jsonl."""

    model: str
    temperature: FiniteFloat
    prompt: str
    response: str | None = None
    reward: FiniteFloat | None = None
    ended: bool = True


class Prompt(BaseModel):
    """Of a probe: the demonstration's reward and tokens, and the samples."""

    prompt: str = ""
    demonstration: str | None = None
    reward: FiniteFloat | None = None
    tokens: list[tuple[str, FiniteFloat | None]] | None = None
    answers: list[Answer] = []


class Probe(Line):
    """A line of rounds.jsonl."""

    rounds_done: Count
    prompts: list[Prompt] = []


class Alarm(Line):
    """A line of alarms.jsonl."""

    round: Count | None = None
    name: str
    line: str


def _is_estimate(value: Any) -> Any:
    if value is not None and Estimate.parse(value) is None:
        raise ValueError("no estimate")
    return value


class _Point(BaseModel):
    n: Annotated[int, Field(ge=1, lt=2**31)]
    kl_bound: FiniteFloat
    reward: Annotated[Any, AfterValidator(_is_estimate)]
    golden: Annotated[Any, AfterValidator(_is_estimate)] = None


class BestOf(BaseModel):
    """curve.json of a stage best_of_n."""

    points: Annotated[list[_Point], Field(min_length=1)]


class Environment(BaseModel):
    """environment.json."""

    model_config = ConfigDict(extra="allow")

    packages: dict[str, str | None] = {}


def fault(shape: type[BaseModel], value: Any) -> str | None:
    """Why a parsed value has not the shape, on one line; None where it has."""
    try:
        shape.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"
    return None

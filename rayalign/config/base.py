"""What every part of the configuration shares: strict, frozen models and references to artifacts."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """Unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


def _number_written_as_text(value: object) -> object:
    """YAML 1.1 reads `1e-4` as text; people mean the number. It reads `yes` as true, which is none."""
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "expected a number")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _whole_number_written_as_text(value: object) -> object:
    """As above, for `1e3`."""
    number = _number_written_as_text(value)
    return int(number) if isinstance(number, float) and number.is_integer() else value


Number = Annotated[float, BeforeValidator(_number_written_as_text)]
Whole = Annotated[int, BeforeValidator(_whole_number_written_as_text)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]
# A count above this is a slip of the keyboard, and more than the libraries below take.
PositiveInt = Annotated[Whole, Field(gt=0, le=2**31 - 1)]
NonNegativeInt = Annotated[Whole, Field(ge=0, le=2**31 - 1)]

REFERENCE = "stage:"

def _could_be_a_path(text: str) -> str:
    """Raises ValueError for what the system takes for no path at all."""
    if max(len(part.encode(errors="replace")) for part in text.split("/")) > MAX_NAME or len(text) > MAX_PATH:
        raise ValueError(f"too long for a path ({len(text)} characters); a name in it has at most {MAX_NAME} bytes")
    if text.startswith("~") and os.path.expanduser(text).startswith("~"):
        raise ValueError(f"{text}: no such user here; write the path out")
    return text


MAX_NAME, MAX_PATH = 255, 3000  # Linux: 255 bytes and 4096; the run's own names come behind
PathText = Annotated[str, Field(min_length=1), AfterValidator(_could_be_a_path)]
Location = Annotated[
    PathText, Field(description="a folder, a file, a hub name, or stage:STAGE/NAME, made by an earlier stage")
]


def stage_reference(location: str) -> tuple[str, str] | None:
    """Splits "stage:sft/policy" into ("sft", "policy"); None for anything that is no reference."""
    if not location.startswith(REFERENCE):
        return None
    stage, _, name = location.removeprefix(REFERENCE).partition("/")
    return stage, name

"""What every part of the configuration shares: strict, frozen models and references to artifacts."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
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

Location = Annotated[
    str, Field(min_length=1, description="a folder, a file, a hub name, or stage:STAGE/NAME, made by an earlier stage")
]


def stage_reference(location: str) -> tuple[str, str] | None:
    """Splits "stage:sft/policy" into ("sft", "policy"); None for anything that is no reference."""
    if not location.startswith(REFERENCE):
        return None
    stage, _, name = location.removeprefix(REFERENCE).partition("/")
    return stage, name

"""A tolerant reading of results.json, as the evaluate stage writes it: any part of it may be missing.

    {"models": {MODEL: {TEMPERATURE: {"golden": ESTIMATE|null, "reward": ESTIMATE|null, "length": ESTIMATE,
                                      "ended_frac": x, "parsed_frac": x, "attributes": {NAME: x}}}},
     "expert": {"golden": x},
     "reward_accuracy": {"heldout_pairs": ESTIMATE, "policy_samples": ESTIMATE},
     "examples": [{"prompt": text, "demonstration": text|null, "answers": {MODEL: text}}]}

with ESTIMATE = {"mean", "low", "high", "num"}, and TEMPERATURE a number as text ("1.0").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ValidationError


def _temperature(text: str) -> str:
    """Raises ValueError for a key that is no number."""
    if not math.isfinite(float(text)):
        raise ValueError("a temperature is a finite number")
    return text


_TITLES = {"sft": "SFT", "rft": "RFT", "irl": "IRL", "dpo": "DPO", "rl": "RL"}
_DEFAULT_TEMPERATURE = 1.0
_DEPTH = 8  # of results that are walked
_MAX = 1e300  # what is as large, infinite, or no number at all is none


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its interval; the ends are NaN where they are not known."""

    mean: float
    low: float
    high: float
    num: int

    @classmethod
    def parse(cls, value: Any) -> Estimate | None:
        """From {"mean", "low", "high", "num"} or a plain number; None from anything without a mean."""
        if isinstance(value, (int, float)):
            value = {"mean": value}
        mean = _finite(value.get("mean")) if isinstance(value, Mapping) else None
        if mean is None:
            return None
        low, high = (_finite(value.get(end)) for end in ("low", "high"))
        return cls(
            mean,
            math.nan if low is None else low,
            math.nan if high is None else high,
            num if isinstance(num := value.get("num"), int) else 0,
        )

    def is_above(self, other: Estimate) -> bool:
        """Whether this interval lies wholly above the other; unknown ends are above nothing."""
        return self.low > other.high

    @property
    def half_width(self) -> float:
        """The longer side of the interval."""
        return max(self.high - self.mean, self.mean - self.low)


class _Example(BaseModel):
    prompt: str | None = None
    demonstration: str | None = None
    answers: dict[str, str] | None = None


class _Shape(BaseModel):
    """What the reader below takes for granted of a file that is there."""

    models: dict[str, dict[Annotated[str, AfterValidator(_temperature)], dict[str, Any]]] | None = None
    expert: dict[str, Any] | None = None
    reward_accuracy: dict[str, Any] | None = None
    examples: list[_Example] | None = None


def results_problem(raw: Any) -> str | None:
    """Why a parsed file is no results.json, with the place in it; None where it is one."""
    try:
        _Shape.model_validate(raw, strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        return f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}"
    return None


class Results:
    """Access to the parts of results.json."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._models: Mapping[str, Mapping[str, Mapping[str, Any]]] = raw.get("models") or {}
        self._expert = raw.get("expert") or {}
        self.examples: list[Mapping[str, Any]] = list(raw.get("examples") or [])
        accuracy = raw.get("reward_accuracy") or {}
        parsed = {name: Estimate.parse(value) for name, value in accuracy.items()}
        self.reward_accuracy: dict[str, Estimate] = {name: value for name, value in parsed.items() if value}

    @property
    def models(self) -> list[str]:
        """In the order evaluated."""
        return list(self._models)

    @property
    def temperatures(self) -> list[float]:
        """Of all models, from the highest down."""
        return sorted({float(key) for cells in self._models.values() for key in cells}, reverse=True)

    @property
    def main_temperature(self) -> float | None:
        """1 if it was measured (the policy's own distribution), else the highest."""
        all_of_them = self.temperatures
        return _DEFAULT_TEMPERATURE if _DEFAULT_TEMPERATURE in all_of_them else next(iter(all_of_them), None)

    @property
    def expert_golden(self) -> float | None:
        """The demonstrator's golden reward, where the world knows it."""
        found = Estimate.parse(self._expert.get("golden"))
        return found.mean if found else None

    def cell(self, model: str, temperature: float) -> Mapping[str, Any]:
        """All that was measured of a model at a temperature."""
        for key, cell in self._models.get(model, {}).items():
            if float(key) == temperature:
                return cell
        return {}

    def estimate(self, model: str, temperature: float, quantity: str) -> Estimate | None:
        """One measured quantity, such as "golden"."""
        return Estimate.parse(self.cell(model, temperature).get(quantity))

    def curve(self, model: str, quantity: str) -> dict[float, Estimate]:
        """The quantity at every temperature it was measured at."""
        found = {t: self.estimate(model, t, quantity) for t in self.temperatures}
        return {t: estimate for t, estimate in found.items() if estimate is not None}

    def has(self, quantity: str) -> bool:
        """Whether any model has the quantity."""
        return any(self.curve(model, quantity) for model in self.models)


def estimates_below(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Estimate]]:
    """Every estimate of parsed results, whatever their shape, with the names that lead to it."""
    if not isinstance(node, Mapping) or len(path) > _DEPTH:
        return
    found = Estimate.parse(node) if "mean" in node else None
    if found is not None:
        yield path, found
        return
    for name, below in node.items():
        yield from estimates_below(below, (*path, str(name)))


def title(model: str) -> str:
    """A model's name as people write it: "SFT" for sft, others unchanged."""
    return _TITLES.get(model, model)


def number(temperature: float) -> str:
    """A temperature as text: "1.0", "0.25"."""
    return str(float(temperature))


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and abs(value) < _MAX else None

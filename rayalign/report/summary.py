"""summary.json: the numbers of the final table under clear keys.

    {"verdict": text,
     "golden" | "reward" | "length": {MODEL: {"t1_0": {"mean", "low", "high", "num"}}},
     "ended_frac" | "parsed_frac": {MODEL: {"t1_0": x}},
     "attributes": {MODEL: {"t1_0": {NAME: x}}},
     "expert": {"golden": x},
     "reward_accuracy": {"heldout_pairs" | "policy_samples": {"mean", "low", "high", "num"}},
     "gain": {"rft_minus_sft": {"t1_0": {"golden": x, "intervals_apart": true}}},
     "artifacts": {NAME: path}}

A temperature T is the key "t" with "_" for the point: 0.7 is t0_7. What a run did not measure is absent; a
number that is not finite is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayalign.report.results import Results, number
from rayalign.report.verdict import verdict

ESTIMATES = ("golden", "reward", "length")
SHARES = ("ended_frac", "parsed_frac", "attributes")


def summarise(results: Mapping[str, Any], artifacts: Mapping[str, str]) -> dict[str, Any]:
    """The content of summary.json; `artifacts` says where things were saved.

    Example: `summarise(results, {"policy": "runs/demo/rft/policy"})["golden"]["rft"]["t1_0"]["mean"]`.
    """
    read = Results(results)
    summary: dict[str, Any] = {"verdict": verdict(results)}
    for quantity in ESTIMATES + SHARES:
        if found := _by_model(read, quantity):
            summary[quantity] = found
    if read.expert_golden is not None:
        summary["expert"] = {"golden": read.expert_golden}
    if read.reward_accuracy:
        summary["reward_accuracy"] = results["reward_accuracy"]
    if gains := _gains(read):
        summary["gain"] = {"rft_minus_sft": gains}
    return _finite_only(summary | {"artifacts": dict(artifacts)})


def temperature_key(temperature: float) -> str:
    """0.7 -> "t0_7"."""
    return "t" + number(temperature).replace(".", "_")


def _by_model(read: Results, quantity: str) -> dict[str, dict[str, Any]]:
    found = {
        model: {
            temperature_key(t): cell[quantity]
            for t in read.temperatures
            if (cell := read.cell(model, t)).get(quantity) is not None
        }
        for model in read.models
    }
    return {model: cells for model, cells in found.items() if cells}


def _gains(read: Results) -> dict[str, dict[str, Any]]:
    sft, rft = read.curve("sft", "golden"), read.curve("rft", "golden")
    return {
        temperature_key(t): {
            "golden": rft[t].mean - sft[t].mean,
            "intervals_apart": rft[t].is_above(sft[t]) or sft[t].is_above(rft[t]),
        }
        for t in rft
        if t in sft
    }


def _finite_only(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite_only(inner) for key, inner in value.items()}
    if isinstance(value, float) and value - value != 0:
        return None
    return value

"""The few numbers of a stage that a person wants to see while it runs, under short names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# By what is shown first; of several metrics with one name the first that is there. Never more than Bar shows.
LOOP = {
    "reward": ("policy/reward_mean",),
    "margin": ("reward/margin_demo_minus_agent", "policy/margin_demo_minus_agent"),
    "preference margin": ("policy/margin_chosen_minus_rejected",),
    "kl": ("policy/kl_policy_to_ref",),
    "entropy": ("policy/entropy", "health/entropy"),
    "length": ("policy/length_mean", "health/length_mean"),
}
CONTROL = {"return": ("true/return_mean",), "margin": LOOP["margin"], "entropy": ("policy/entropy",)}
FIT = {"nll": ("nll_token", "policy/demo_nll"), "pair accuracy": ("pair_accuracy",)}


def key_numbers(newest: Mapping[str, Any]) -> dict[str, float]:
    """Short name and value of what matters among a stage's newest numbers; what is not there is left out.

    Example: `key_numbers({"policy/reward_mean": 0.3, "policy/loss": 1.0})` is {"reward": 0.3}.
    """
    kinds = (CONTROL,) if "true/return_mean" in newest or "env_steps" in newest else (LOOP, FIT)
    found = {}
    for label, names in (item for kind in kinds for item in kind.items()):
        value = next((newest[name] for name in names if isinstance(newest.get(name), (int, float))), None)
        if value is not None:
            found[label] = float(value)
    return found

"""The watch for reward hacking: all alarms of one stage, their metrics, what was told, and whether to stop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayalign.config.watch import WatchConfig
from rayalign.telemetry.alarms.demonstrations import DemosForgotten, HeldoutFall
from rayalign.telemetry.alarms.drift import mismatch, sample_drifts, trained_demos
from rayalign.telemetry.alarms.reference import KlGrowth, Surprise
from rayalign.telemetry.alarms.rule import Rule

LOOP_BRAKE = "lower improve.optimizer.learning_rate, take fewer steps or raise improve.kl_coef"
IMPLICIT_BRAKE = "lower the learning rate, take fewer steps (max_steps) or raise beta"


class HackingWatch:
    """Rules over the records of one stage. Deterministic, and nothing but numbers: it can be saved and taken up.

    Example:
        watch = HackingWatch(loop_rules(WatchConfig(), moving_reference=False, stale=False), early_stop=True)
        metrics, lines = watch.observe(0, {"policy/kl_policy_to_ref": 0.2, "policy/entropy": 0.8})
    """

    def __init__(self, rules: list[Rule], *, early_stop: bool) -> None:
        self._rules = {rule.name: rule for rule in rules}
        self._early_stop = early_stop
        self._told: list[str] = []

    def observe(self, round_number: int, found: Mapping[str, float]) -> tuple[dict[str, float], dict[str, str]]:
        """Takes one record: (watch/... metrics, the lines of alarms that trip for the first time, by their names)."""
        metrics: dict[str, float] = {}
        lines: dict[str, str] = {}
        for name, rule in self._rules.items():
            reading = rule.observe(round_number, found)
            if reading is None:
                continue
            metrics[f"watch/{name}"] = reading.measure
            if reading.alarm is not None and name not in self._told:
                self._told.append(name)
                lines[name] = reading.alarm
        return metrics, lines

    @property
    def alarms(self) -> list[str]:
        """The names of those that have tripped, in their order."""
        return list(self._told)

    def should_stop(self) -> bool:
        """Whether an alarm that going on makes worse has tripped, and the stage is to end at it."""
        return self._early_stop and any(self._rules[name].collapse for name in self._told)

    def state(self) -> dict[str, Any]:
        """Plain JSON values, for a checkpoint."""
        memories = {
            name: {key: list(kept) for key, kept in rule.memory.items()} for name, rule in self._rules.items()
        }
        return {"told": list(self._told), "memories": memories}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up where `state` was asked for, so that all goes on alike; a rule that it does not know begins anew."""
        self._told = [name for name in state["told"] if name in self._rules]
        for name, memory in state["memories"].items():
            if name in self._rules:
                self._rules[name].memory.update({key: list(kept) for key, kept in memory.items()})


def loop_rules(config: WatchConfig, *, moving_reference: bool, stale: bool) -> list[Rule]:
    """Of `irl` and `rl`, on each step and each round's health.

    Where samples may be a version old they differ from the policy by its own step, too; the canary's do not.
    """
    return [
        KlGrowth(moving_reference=moving_reference, brake=LOOP_BRAKE),
        Surprise(moving_reference=moving_reference, brake=LOOP_BRAKE),
        HeldoutFall(brake=LOOP_BRAKE),
        DemosForgotten(limit=2.5, brake=LOOP_BRAKE),
        *sample_drifts(config, "policy", window=3, brake=LOOP_BRAKE),
        mismatch("canary" if stale else "policy", window=3),
    ]


def implicit_rules(config: WatchConfig) -> list[Rule]:
    """Of `implicit`, whose samples are looked at when a round ends; a pair loss's own demonstrations at each step."""
    return [
        DemosForgotten(limit=1.45, brake=IMPLICIT_BRAKE),
        trained_demos(brake=IMPLICIT_BRAKE),
        *sample_drifts(config, "health", window=1, brake=IMPLICIT_BRAKE),
        mismatch("canary", window=1),
    ]

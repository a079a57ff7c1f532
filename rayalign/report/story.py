"""A run in three lines: what was run, what it showed, and what to be careful of."""

from __future__ import annotations

from typing import Any

from rayalign.report.run_files import RunFiles
from rayalign.report.shapes import MAX_NUMBER
from rayalign.report.verdict import verdict
from rayalign.telemetry.progress import duration


def run_lines(run: RunFiles) -> list[str]:
    """The three lines."""
    return [_what(run), _showed(run), _careful(run)]


def state_of(run: RunFiles) -> str:
    """Whether it has finished, and where it is or ended if not."""
    if run.is_finished:
        return "finished"
    where = _where(run)
    if run.is_running:
        return f"running, {where}"
    return f"did not finish: it ended {where}; the same command goes on from its newest checkpoint"


def _where(run: RunFiles) -> str:
    open_stages = [str(stage.get("name")) for stage in run.stages if stage.get("name") not in run.done]
    name = open_stages[0] if open_stages else "?"
    records = run.of_stage(name)
    if not records:
        return f"in stage {name}, before its first record"
    last = records[-1]
    rounds = f"round {int(last['round']) + 1}, " if isinstance(last.get("round"), int) else ""
    return f"in stage {name}, {rounds}step {last.get('step', 0)}"


def _what(run: RunFiles) -> str:
    stages = " → ".join(str(stage.get("name") or stage.get("kind")) for stage in run.stages)
    model = run.config.get("model")
    model = model.get("path", "?") if isinstance(model, dict) else "?"
    seconds = max((r["time_s"] for r in run.records if isinstance(r.get("time_s"), (int, float))), default=None)
    took = f", {duration(seconds)} of work" if seconds is not None else ""
    return f"{stages}, from {model}, seed {run.config.get('seed', 0)}{took}: {state_of(run)}."


def _showed(run: RunFiles) -> str:
    if run.last_results is not None:
        return verdict(run.last_results)
    for metric, told in _FALLBACKS.items():
        found = [(record.get("stage"), record[metric]) for record in run.records if _is_number(record.get(metric))]
        if found:
            (stage, first), (_, last) = found[0], found[-1]
            return f"Stage {stage}: {told} went from {first:.3g} to {last:.3g}; no evaluation compares models yet."
    return "Nothing was evaluated, and no loop has recorded a step: there is nothing to conclude yet."


_FALLBACKS = {
    "health/golden_mean": "the golden reward of fresh samples",
    "health/demo_nll": "the negative log-likelihood of held-out demonstrations (nats)",
    "policy/reward_mean": "the learned reward of samples",
    "loss": "the loss",
}


def _careful(run: RunFiles) -> str:
    names = list(dict.fromkeys(str(alarm.get("name")) for alarm in run.alarms))
    watched = f"Alarms of reward hacking: {', '.join(names)}" if names else "No alarm of reward hacking tripped"
    if not run.loops:
        watched = "No loop has run, so nothing was watched"
    worst = max((r["canary/mismatch_mean"] for r in run.records if _is_number(r.get("canary/mismatch_mean"))), default=None)
    told = "" if worst is None else f"; sampler and trainer differed by at most {worst:.2g} nats a token (mean of a canary)"
    return f"{watched}{told}."


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_NUMBER

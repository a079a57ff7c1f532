"""A run's folder in the form that runs leave, with numbers made by a formula: two rounds of an alternation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml

STEPS = 6  # of a round
ROUNDS = 3
PROMPTS = 12
HOSTILE = "</script><img src=x onerror=alert(1)>"

CONFIG: dict[str, Any] = {
    "name": "sample",
    "run_dir": "runs",
    "seed": 0,
    "model": {"path": "org/model", "dtype": "float32"},
    "stages": [
        {"kind": "sft", "name": "sft", "epochs": 2},
        {"kind": "irl", "name": "rft", "rounds": ROUNDS, "improve": {"steps": STEPS, "kl_coef": 0.1}},
        {"kind": "best_of_n", "name": "best"},
        {"kind": "evaluate", "name": "evaluate"},
    ],
}


def write_run(
    folder: Path, *, seed: int = 0, died: bool = False, alarm: bool = False, tokens: bool = False, **config: Any
) -> Path:
    """Writes it and returns `folder`; one that `died` ends in the second round."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"name": folder.name, "seed": seed} | config))
    rounds = 2 if died else ROUNDS
    records = [*_sft(), *_loop(rounds, seed)]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(text + ('{"stage": "rf' if died else ""))
    probes = [_probe(done, tokens) for done in range(rounds + (0 if died else 1))]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(probe) + "\n" for probe in probes))
    if alarm:
        line = {"stage": "rft", "round": 1, "step": 9, "name": "kl_growth", "line": "the KL to the reference grows: stop"}
        (folder / "alarms.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "environment.json").write_text(json.dumps({"python": "3.11.7", "packages": {"torch": "2.13.0"}}))
    _finish(folder, "sft")
    if not died:
        _finish(folder, "rft")
        _finish(folder, "best", "curve.json", _curve())
        _finish(folder, "evaluate", "results.json", _results(seed))
        _answers(folder / "evaluate" / "samples.jsonl")
    return folder


def _finish(folder: Path, stage: str, file: str | None = None, content: Any = None) -> None:
    (folder / stage).mkdir()
    (folder / stage / "done.json").write_text("{}")
    if file is not None:
        (folder / stage / file).write_text(json.dumps(content))


def _sft() -> list[dict[str, Any]]:
    return [_record("sft", 0, step, step, 2.0 * step, {"nll_token": 2.0 * math.exp(-step / 3)}) for step in range(4)]


def _loop(rounds: int, seed: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    shift = 0.02 * seed
    for number in range(rounds):
        at = number * STEPS
        found.append(_record("rft", number, at, 4 + at, 10.0 + 4 * at, {"reward/pair_accuracy": 0.8 + 0.05 * number}))
        for step in range(at, at + STEPS):
            metrics = {
                "policy/reward_mean": 0.1 * step + shift,
                "policy/kl_policy_to_ref": 0.05 * (step - at) + shift,
                "policy/entropy": 1.2 - 0.02 * step,
                "policy/length_mean": 12 + 0.3 * step,
                "policy/ended_frac": 0.95,
                "watch/kl_growth": 0.1 * step,
                "time/step_s": 4.0,
                "time/generate_s": 1.5,
                "time/score_s": 0.3,
                "time/policy_update_s": 1.6,
                "time/sync_s": 0.2,
                "idle_frac/rollout": 0.62,
                "idle_frac/reward": 0.9,
                "idle_frac/policy": 0.55,
            }
            found.append(_record("rft", number, step, 4 + step, 14.0 + 4 * step, metrics))
        health = {"health/golden_mean": 0.3 + 0.1 * number + shift, "health/demo_accuracy_heldout": 0.8 - 0.1 * number}
        found.append(_record("rft", number, at + STEPS, 4 + at + STEPS, 14.0 + 4 * (at + STEPS), health))
        canary = {"canary/mismatch_mean": 2e-6}
        found.append(_record("rft", number, at + STEPS, 4 + at + STEPS, 15.0 + 4 * (at + STEPS), canary))
    return found


def _record(
    stage: str, number: int | None, step: int, total: int, time_s: float, metrics: dict[str, float]
) -> dict[str, Any]:
    return {"stage": stage, "round": number, "step": step, "global_step": total, "time_s": time_s} | metrics


def _probe(rounds_done: int, tokens: bool) -> dict[str, Any]:
    prompts = []
    for place in range(PROMPTS):
        answers = [_answer(place, rounds_done, sample, tokens) for sample in range(2)]
        reward = 1.5 + 0.05 * place if rounds_done else None
        own = {"demonstration": f"an expert's answer {place}", "reward": reward, "tokens": None}
        prompts.append({"prompt": f"question {place} {HOSTILE if place == 1 else ''}", "answers": answers} | own)
    return {"stage": "rft", "rounds_done": rounds_done, "step": rounds_done * STEPS, "prompts": prompts}


def _answer(place: int, rounds_done: int, sample: int, tokens: bool) -> dict[str, Any]:
    # Of later rounds the odd prompts rise and the even ones fall, so that orders can be told apart.
    reward = (0.1 * place) * (rounds_done if place % 2 else -rounds_done) + 0.01 * sample if rounds_done else None
    text = f"answer {place} of round {rounds_done}"
    pieces = [[word + " ", round(0.3 * nth - 0.4, 2)] for nth, word in enumerate(text.split())]
    return {"response": text, "reward": reward, "ended": sample == 0, "tokens": pieces if tokens and rounds_done else None}


def _curve() -> dict[str, Any]:
    points = [
        {"n": n, "kl_bound": math.log(n) - (n - 1) / n}
        | {"reward": _estimate(0.5 * math.log2(n)), "golden": _estimate(0.3 + 0.05 * n)}
        for n in (1, 2, 4, 8)
    ]
    return {"points": points, "num_prompts": 50, "num_samples": 8}


def _results(seed: int) -> dict[str, Any]:
    def cell(mean: float) -> dict[str, Any]:
        estimates = {"golden": mean + 0.01 * seed, "reward": mean, "length": 14}
        return {"ended_frac": 0.97} | {name: _estimate(value) for name, value in estimates.items()}

    models = {"sft": {"1": cell(0.41), "0.5": cell(0.45)}, "rft": {"1": cell(0.63), "0.5": cell(0.75)}}
    accuracy = {"heldout_pairs": _estimate(0.73)}
    return {"models": models, "expert": {"golden": 0.447}, "reward_accuracy": accuracy, "examples": []}


def _estimate(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.03, "high": mean + 0.03, "num": 100}


def _answers(file: Path) -> None:
    lines = [
        {"model": model, "temperature": 1.0, "prompt": f"question {place}", "response": f"{model} says {place}"}
        for model in ("sft", "rft")
        for place in range(PROMPTS)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

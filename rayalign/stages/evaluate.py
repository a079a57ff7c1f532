"""Samples every model on held-out prompts at every temperature, and measures what can be measured on the samples."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np

from rayalign.config.selection import EvaluateStage
from rayalign.data.fingerprint import fingerprint
from rayalign.errors import DataError
from rayalign.evaluate.statistics import accuracy_interval, mean_interval
from rayalign.stages.answerers import ByTemperature, answers, check_answerers
from rayalign.stages.context import RunContext
from rayalign.stages.golden import golden_attributes, golden_expert, golden_scores, rank_accuracy
from rayalign.stages.groups import RewardGroup
from rayalign.stages.inputs import load_preferences, load_prompts
from rayalign.stages.scoring import every_score, scorer
from rayalign.storage.aside import write_json, written_aside
from rayalign.storage.evaluation import EVALUATION_FILE, STAGE_SUITE, packed, read_evaluation, record
from rayalign.types import Sequences, TokenizedPrompts


def run_evaluate(context: RunContext, stage: EvaluateStage) -> None:
    """Artifacts: `results.json` (estimates with 95% intervals) and `samples.jsonl` (every answer).

    The results stand in the run's evaluation.json too, with the values of each prompt, by which runs are compared.
    """
    source = stage.prompts or context.config.data.prompts
    if source is None:
        raise DataError(f"stage {stage.name} needs prompts: set its prompts, or data.prompts")
    read_evaluation(context.folder / EVALUATION_FILE)  # one that is damaged is told now, and not after the sampling
    prompts = load_prompts(context, source, room=stage.sampling.max_new_tokens, limit=stage.num_prompts)
    samples = _sample_all(context, stage, prompts)
    judge = scorer(context, stage.reward) if stage.reward else contextlib.nullcontext()
    with context.progress.stage(f"{stage.name}: scoring"), judge as reward:
        scores = _scores(samples, reward)
        by_prompt: ByPrompt = {}
        results = _results(context, stage, samples, reward, scores, by_prompt)
    folder = context.stage_folder(stage.name)
    with written_aside(folder / "samples.jsonl") as path:
        path.write_text("".join(_lines(context, samples, scores)), encoding="utf-8")
    write_json(folder / "results.json", results)
    found = {"models": results["models"], "by_prompt": by_prompt, "seed": context.config.seed}
    found["sampling"] = {"max_new_tokens": stage.sampling.max_new_tokens, "num_per_prompt": stage.num_per_prompt}
    data = {"path": source.path, "fingerprint": fingerprint(prompts), "num_rows": len(prompts)}
    record(context.folder / EVALUATION_FILE, f"{STAGE_SUITE}{stage.name}", found, model=context.folder, data=data)
    rows = [
        (example["prompt"], name, answer, example.get("rewards", {}).get(name))
        for example in results["examples"]
        for name, answer in example["answers"].items()
    ]
    context.tracker.table(stage.name, 0, "examples", ("prompt", "model", "answer", "reward"), rows)


Samples = dict[str, ByTemperature]  # by model
Scores = dict[str, dict[float, np.ndarray]]  # by model and temperature, of every sample; empty without a reward
ByPrompt = dict[str, dict[str, dict[str, str]]]  # by model, temperature and measure: a value for each prompt, packed


def _sample_all(context: RunContext, stage: EvaluateStage, prompts: TokenizedPrompts) -> Samples:
    check_answerers(context, stage.models)
    total = len(stage.models) * len(stage.temperatures)
    with context.progress.stage(stage.name, total=total, unit="sample set") as bar:
        return {
            name: answers(context, stage, model, prompts, lambda: bar.update(advance=1))
            for name, model in stage.models.items()
        }


def _scores(samples: Samples, reward: RewardGroup | None) -> Scores:
    if reward is None:
        return {}
    return {
        name: {temperature: every_score(reward, sequences) for temperature, sequences in by_t.items()}
        for name, by_t in samples.items()
    }


def _results(
    context: RunContext,
    stage: EvaluateStage,
    samples: Samples,
    reward: RewardGroup | None,
    scores: Scores,
    by_prompt: ByPrompt,
) -> dict[str, Any]:
    """The content of results.json; the values of each prompt go to `by_prompt`."""
    models: dict[str, Any] = {}
    for name, by_t in samples.items():
        models[name], by_prompt[name] = {}, {}
        for temperature, sequences in by_t.items():
            values = by_prompt[name][f"{temperature:g}"] = {}
            own = scores[name][temperature] if scores else None
            models[name][f"{temperature:g}"] = _cell(context, stage, sequences, own, values)
    results: dict[str, Any] = {"models": models}
    if stage.golden:
        results["expert"] = {"golden": golden_expert(stage.golden, context.folder)}
    if reward is not None:
        results["reward_accuracy"] = _reward_accuracy(context, stage, models, reward)
    results["examples"] = _examples(context, stage, samples, scores)
    return results


def _cell(
    context: RunContext, stage: EvaluateStage, sequences: Sequences, scores: np.ndarray | None, values: dict[str, str]
) -> dict[str, Any]:
    """What one model's samples at one temperature are worth; the measures of each prompt go to `values`."""

    def estimate(measure: str, each: np.ndarray) -> dict[str, Any]:
        means = _by_prompt(each, sequences)
        values[measure] = packed(means)
        return mean_interval(means).as_dict()

    lengths = sequences.response_lengths.astype(float)
    cell: dict[str, Any] = {
        "length": estimate("length", lengths),
        "ended_frac": float(sequences.ended.mean()),
    }
    if scores is not None:
        cell["reward"] = estimate("reward", scores)
    if stage.golden:
        golden = golden_scores(stage.golden, context.template(), sequences)
        cell["golden"] = estimate("golden", golden)
        cell |= golden_attributes(stage.golden, context.template(), sequences)
        if scores is not None and stage.num_per_prompt > 1:
            by_prompt = rank_accuracy(scores, golden, sequences.prompt_ids)
            cell["rank_accuracy"] = mean_interval(by_prompt).as_dict() if len(by_prompt) else None
    return cell


def _reward_accuracy(
    context: RunContext, stage: EvaluateStage, models: dict[str, Any], reward: RewardGroup
) -> dict[str, Any]:
    """On held-out human or planted pairs, and on the last model's own samples at the first temperature."""
    found: dict[str, Any] = {}
    if stage.preferences is not None:
        chosen, rejected = load_preferences(context, stage.preferences)
        margins = every_score(reward, chosen) - every_score(reward, rejected)
        found["heldout_pairs"] = accuracy_interval(margins).as_dict()
    last = models[list(models)[-1]][f"{stage.temperatures[0]:g}"]
    if last.get("rank_accuracy"):
        found["policy_samples"] = last["rank_accuracy"]
    return found


def _examples(
    context: RunContext, stage: EvaluateStage, samples: Samples, scores: Scores
) -> list[dict[str, Any]]:
    """The first few prompts with each model's first answer at the first temperature, and its reward where there is one."""
    template = context.template()
    first = {name: by_t[stage.temperatures[0]] for name, by_t in samples.items()}
    examples = []
    num_prompts = len(next(iter(first.values()))) // stage.num_per_prompt  # the data may have fewer than asked for
    for number in range(min(stage.num_examples, num_prompts)):
        row = number * stage.num_per_prompt
        answers = {name: sequences.take(np.array([row])) for name, sequences in first.items()}
        prompt = next(next(iter(answers.values())).prompts())
        example = {
            "prompt": template.decode_prompt(prompt),
            "answers": {name: template.decode_response(next(s.responses())) for name, s in answers.items()},
        }
        rewards = {name: float(by_t[stage.temperatures[0]][row]) for name, by_t in scores.items()}
        examples.append(example | ({"rewards": rewards} if rewards else {}))
    return examples


def _by_prompt(values: np.ndarray, sequences: Sequences) -> np.ndarray:
    """Means over the samples of a prompt, so that what enters an interval is independent."""
    _, place = np.unique(sequences.prompt_ids, return_inverse=True)
    return np.bincount(place, weights=values) / np.bincount(place)


def _lines(context: RunContext, samples: Samples, scores: Scores) -> list[str]:
    template = context.template()
    return [
        json.dumps(
            {
                "model": name,
                "temperature": temperature,
                "prompt": template.decode_prompt(prompt),
                "response": template.decode_response(response),
                "ended": bool(ended),
                **({"reward": round(float(scores[name][temperature][row]), 6)} if scores else {}),
            },
            ensure_ascii=False,
        )
        + "\n"
        for name, by_t in samples.items()
        for temperature, sequences in by_t.items()
        for row, (prompt, response, ended) in enumerate(
            zip(sequences.prompts(), sequences.responses(), sequences.ended, strict=True)
        )
    ]

"""What the browser of samples shows: prompts with the demonstration and the answers of each round, or of each model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rayalign.report.results import title
from rayalign.report.run_files import RunFiles
from rayalign.report.shapes import Sample, fault
from rayalign.storage.jsonl import Line, read_lines

MAX_PROMPTS = 200
MAX_COLUMNS = 8  # rounds side by side: the first, the last, and some between
MAX_TEXT = 4000  # characters of one text
MAX_ANSWERS, MAX_TOKENS = 4, 1000  # of a prompt in a column, of an answer
Source = dict[str, Any]


def sources(run: RunFiles) -> list[Source]:
    """One for each stage with probes and each evaluation with stored samples.

    {"label", "columns": [label], "rows": [{"prompt", "demonstration": ANSWER|null, "bases": [x|null by column],
    "answers": [[ANSWER, ...] by column]}]}, ANSWER = {"text", "reward": x|null, "ended", "tokens": [[text, x]]|null}.
    `bases` are the demonstration's rewards, by the reward model of each column: only differences to them can be compared
    over rounds.
    """
    found = [_of_probes(name, [p for p in run.probes if p.get("stage") == name]) for name in _stages(run.probes)]
    found += [_of_evaluation(run.folder / name / "samples.jsonl", name) for name in run.results]
    return [source for source in found if source is not None and source["rows"]]


def probe_rewards(probe: Line) -> tuple[list[float], list[float]]:
    """Rewards of the demonstrations and of the samples in one line of rounds.jsonl, those that are there."""
    prompts = probe.get("prompts") or []
    demonstrations = [row.get("reward") for row in prompts]
    samples = [answer.get("reward") for row in prompts for answer in row.get("answers") or []]
    return _numbers(demonstrations), _numbers(samples)


def _stages(probes: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(str(probe["stage"]) for probe in probes if "stage" in probe))


def _of_probes(stage: str, probes: Sequence[Line]) -> Source | None:
    shown = _some(sorted(probes, key=lambda probe: probe.get("rounds_done", 0)))
    if not shown:
        return None
    columns = [_round(probe.get("rounds_done", 0)) for probe in shown]
    rows = []
    for place, row in enumerate((shown[-1].get("prompts") or [])[:MAX_PROMPTS]):
        by_round = [probe["prompts"][place] if place < len(probe.get("prompts") or []) else {} for probe in shown]
        demonstration = {"response": row.get("demonstration"), "reward": row.get("reward"), "tokens": row.get("tokens")}
        rows.append(
            {
                "prompt": _cut(row.get("prompt")),
                "demonstration": _answer(demonstration),
                "bases": [one.get("reward") for one in by_round],
                "answers": [[_answer(answer) for answer in (one.get("answers") or [])[:MAX_ANSWERS]] for one in by_round],
            }
        )
    return {"label": f"stage {stage}: held-out prompts, round by round", "columns": columns, "rows": rows}


def _of_evaluation(file: Path, stage: str) -> Source | None:
    """Models side by side, at the temperature nearest to 1."""
    if not file.is_file():
        return None
    kinds = list(dict.fromkeys((line["model"], line["temperature"]) for line in _samples(file)))
    if not kinds:
        return None
    main = min((t for _, t in kinds), key=lambda t: abs(t - 1.0))
    models = list(dict.fromkeys(model for model, _ in kinds))
    by_prompt: dict[str, dict[str, list[Any]]] = {}
    for line in _samples(file):
        prompt = line["prompt"]
        if line["temperature"] == main and (prompt in by_prompt or len(by_prompt) < MAX_PROMPTS):
            own = by_prompt.setdefault(prompt, {model: [] for model in models})[line["model"]]
            if len(own) < MAX_ANSWERS:
                own.append(_answer(line))
    rows = [
        {"prompt": _cut(prompt), "demonstration": None, "bases": [], "answers": [answers[model] for model in models]}
        for prompt, answers in by_prompt.items()
    ]
    label = f"stage {stage}: models at temperature {main:g}"
    return {"label": label, "columns": [title(model) for model in models], "rows": rows}


def _samples(file: Path) -> Iterator[Line]:
    return (line for line in read_lines(file) if line is not None and fault(Sample, line) is None)


def _some(probes: Sequence[Line]) -> list[Line]:
    if len(probes) <= MAX_COLUMNS:
        return list(probes)
    places = sorted({round(i * (len(probes) - 1) / (MAX_COLUMNS - 1)) for i in range(MAX_COLUMNS)})
    return [probes[place] for place in places]


def _round(rounds_done: int) -> str:
    return f"after round {rounds_done}" if rounds_done else "before"


def _answer(found: Line) -> dict[str, Any]:
    text = found.get("response")
    tokens = found.get("tokens")
    return {
        "text": None if text is None else _cut(text),
        "reward": next(iter(_numbers([found.get("reward")])), None),
        "ended": bool(found.get("ended", True)),
        "tokens": tokens[:MAX_TOKENS] if isinstance(tokens, list) else None,
    }


def _cut(text: Any) -> str:
    text = str(text if text is not None else "")
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " [...]"


def _numbers(values: Sequence[Any]) -> list[float]:
    return [float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)]

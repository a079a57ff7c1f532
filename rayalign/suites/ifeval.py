"""`rayalign evaluate PLACE --suite ifeval`: whether answers do what was asked, in ways that a program can check (IFEval)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayalign.config.data import DataSource
from rayalign.data.fingerprint import fingerprint
from rayalign.evaluate.statistics import bootstrap_interval, proportion_interval
from rayalign.serving.places import find_policy
from rayalign.storage.aside import written_aside
from rayalign.storage.evaluation import record
from rayalign.suites.answers import Answer, Answerer
from rayalign.suites.ifeval_table import WAYS
from rayalign.suites.instructions import Asked, followed, read_asked
from rayalign.suites.options import ModelOptions
from rayalign.suites.place import evaluation_file

SUITE = "ifeval"
Marks = dict[str, list[list[bool]]]  # by way: [P] prompts, an instruction each


def evaluate_ifeval(
    place: Path,
    prompts: DataSource,
    options: ModelOptions | None = None,
    *,
    max_new_tokens: int = 1280,
    temperature: float = 0.0,
    seed: int = 0,
    out: Path | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Answers every prompt once, and adds the four accuracies to evaluation.json; that file, and the results.

    The answers lie beside it, in ifeval.jsonl. Raises UserError for a place without a policy and for a package or data
    that the checks need, DataError for rows that are not IFEval's.
    """
    folder = find_policy(place)
    file = evaluation_file(place, out)
    asked = read_asked(prompts)
    with Answerer(folder, options) as answerer:
        sampling = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
        drawn = answerer.answer(
            [one.prompt for one in asked], temperature=temperature, max_new_tokens=max_new_tokens, seed=seed
        )
        cut = answerer.tally.cut.total()
    answers = [row[0] for row in drawn]
    marks = followed(asked, [answer.text for answer in answers])
    results = accuracies(asked, marks) | {
        "ended_frac": sum(answer.ended for answer in answers) / len(answers),
        "sampling": sampling,
        "cut": cut,
    }
    with written_aside(file.with_name(f"{SUITE}.jsonl")) as path:
        path.write_text("".join(_line(*row) for row in zip(asked, answers, *marks.values(), strict=True)), encoding="utf-8")
    data = {"path": prompts.path, "fingerprint": fingerprint(asked), "num_rows": len(asked)}
    record(file, SUITE, results, model=folder, data=data)
    return file, results


def accuracies(asked: Sequence[Asked], marks: Marks) -> dict[str, Any]:
    """The four of IFEval, and by family of instructions.

    Of prompts with Wilson's interval. Of instructions, which share their prompt's answer, bootstrapped over prompts.
    """
    results: dict[str, Any] = {"num_prompts": len(asked), "num_instructions": sum(len(one.instructions) for one in asked)}
    for way in WAYS:
        right = [all(row) for row in marks[way]]
        results[f"prompt_{way}"] = proportion_interval(sum(right), len(right)).as_dict()
        results[f"instruction_{way}"] = _of_instructions(marks[way])
    families = sorted({family for one in asked for family in one.families})
    results["families"] = {
        family: {"num": sum(one.families.count(family) for one in asked)}
        | {way: _of_instructions(_only(family, asked, marks[way])) for way in WAYS}
        for family in families
    }
    results["by_prompt"] = {way: " ".join(_word(row) for row in marks[way]) for way in WAYS}
    return results


def _of_instructions(rows: Sequence[Sequence[bool]]) -> dict[str, Any]:
    return bootstrap_interval([sum(row) for row in rows], [len(row) for row in rows]).as_dict()


def _only(family: str, asked: Sequence[Asked], rows: Sequence[Sequence[bool]]) -> list[list[bool]]:
    return [
        [mark for mark, own in zip(row, one.families, strict=True) if own == family]
        for one, row in zip(asked, rows, strict=True)
    ]


def _word(row: Sequence[bool]) -> str:
    """One prompt's marks, an instruction each."""
    return "".join("1" if mark else "0" for mark in row)


def _line(asked: Asked, answer: Answer, *marks: Sequence[bool]) -> str:
    told = {"key": asked.key, "prompt": asked.prompt, "instruction_id_list": list(asked.instructions)}
    told |= {"response": answer.text, "ended": answer.ended}
    return json.dumps(told | dict(zip(WAYS, map(_word, marks), strict=True)), ensure_ascii=False) + "\n"

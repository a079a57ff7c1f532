"""`rayalign evaluate PLACE --suite ifeval`: whether answers do what was asked, in ways that a program can check (IFEval)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayalign.config.data import DataSource
from rayalign.data.fingerprint import fingerprint
from rayalign.evaluate.statistics import bootstrap_interval, paired_bootstrap, proportion_interval
from rayalign.serving.saved import find_policy
from rayalign.storage.aside import written_aside
from rayalign.storage.evaluation import record
from rayalign.suites.answers import Answer, Answerer
from rayalign.suites.columns import WIDTH, Row, difference, interval, seeds, side_by_side, unlike
from rayalign.suites.instructions import Asked, followed, read_asked
from rayalign.suites.options import ModelOptions
from rayalign.suites.place import evaluation_file

SUITE = "ifeval"
WAYS = ("strict", "loose")  # loose: also without first or last line, or asterisks, so an upper bound
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


def table(results: dict[str, Any]) -> list[str]:
    """Lines for a terminal."""
    rows = [(f"{results['num_prompts']} prompts", *(results[f"prompt_{way}"] for way in WAYS))]
    rows.append((f"{results['num_instructions']} instructions", *(results[f"instruction_{way}"] for way in WAYS)))
    rows += [(f"  {name} ({one['num']})", *(one[way] for way in WAYS)) for name, one in results["families"].items()]
    width = max(WIDTH, *(len(name) for name, *_ in rows))
    lines = [f"  {'':<{width}}{'strict':>{WIDTH}}{'loose':>{WIDTH}}"]
    lines += [f"  {name:<{width}}" + "".join(f"{interval(cell):>{WIDTH}}" for cell in cells) for name, *cells in rows]
    return [*lines, f"  answers that ended: {results['ended_frac']:.1%}"]


def comparison(found: dict[str, dict[str, Any]]) -> list[str]:
    """Lines on several evaluations; differences to the first where the prompts are the same."""
    names, first = list(found), next(iter(found.values()))
    data = first["data"]
    lines = [f"ifeval: {data['num_rows']} prompts of {data['path']}, fingerprint {data['fingerprint'][:8]}"]
    results = [one["results"] for one in found.values()]
    rows: list[Row] = [
        (f"{level}s, {way}", [interval(one[f"{level}_{way}"]) for one in results])
        for level in ("prompt", "instruction")
        for way in WAYS
    ]
    for family in results[0]["families"]:
        own = [one["families"].get(family) for one in results]
        rows.append((f"  {family}", ["" if one is None else interval(one["strict"]) for one in own]))
    lines += side_by_side(names, rows)
    for name in names[1:]:
        if found[name]["data"]["fingerprint"] != data["fingerprint"]:
            lines.append(f"  {name}: measured on other prompts, and so without a difference")
            continue
        drawn = [one["results"]["sampling"] for one in (first, found[name])]
        if others := unlike(*drawn):
            lines.append(f"  {name}: drawn with {others}, and so without a difference")
            continue
        lines += seeds(name, *drawn)
        a, b = (_whole(one["results"]["by_prompt"]["strict"]) for one in (found[name], first))
        lines.append(difference(name, names[0], paired_bootstrap(a, b), of="prompts, strict"))
    return lines


def _whole(words: str) -> list[float]:
    """Whether all of a prompt's instructions are followed, of each prompt. Raises ValueError for other words."""
    if set(words) - set("01 "):
        raise ValueError("by_prompt: marks are 0 or 1")
    return [float("0" not in word) for word in words.split()]

"""`rayalign evaluate PLACE --suite mt-bench`: two turns by vLLM, graded by a judge, alone or against another policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayalign.data.fingerprint import fingerprint
from rayalign.evaluate.mt_bench import grades_summary, pairs_summary
from rayalign.evaluate.statistics import mean_interval
from rayalign.serving.places import find_policy
from rayalign.storage.aside import check_writable
from rayalign.storage.evaluation import content_of, record
from rayalign.suites.judge import Judge, JudgeOptions
from rayalign.suites.mt_bench.answers import Answered, Drawing, answered
from rayalign.suites.mt_bench.judgements import Item, Judgement, Store, judged
from rayalign.suites.mt_bench.prompts import pair_messages, single_messages
from rayalign.suites.mt_bench.questions import TEMPERATURES, WITH_REFERENCE, Question
from rayalign.suites.place import evaluation_file

SUITE = "mt-bench"
TURNS = (1, 2)


@dataclass(frozen=True)
class Bench:
    """What is asked, of whom, and who judges."""

    questions: Sequence[Question]
    questions_path: Path
    judge: JudgeOptions
    drawing: Drawing = Drawing()
    against: Path | None = None  # a place as well


def evaluate_mt_bench(
    place: Path, bench: Bench, *, out: Path | None = None, tell: Callable[[str], None] = print
) -> tuple[Path, dict[str, Any]]:
    """Answers, has them judged, and adds the results to evaluation.json; that file, and the results.

    Answers and judgements lie in the folder mt-bench beside it, so that the same command, started again, draws and asks only
    for what is missing. Raises UserError for what can be mended, JudgeDown where the judge does not answer.
    """
    policy = find_policy(place)
    other = None if bench.against is None else find_policy(bench.against)
    file = evaluation_file(place, out)
    folder = file.parent / SUITE
    check_writable(folder / "judgements.jsonl")
    judge = Judge(bench.judge)
    own = answered(policy, bench.questions, bench.drawing, folder)
    others = None if other is None else answered(other, bench.questions, bench.drawing, folder)
    items = _singles(bench.questions, own) + (_pairs(bench.questions, own, others) if others else [])
    found = judged(judge, items, Store(folder / "judgements.jsonl"), _every_tenth(tell))
    results = _results(bench, judge, own, others, found)
    data = {
        "path": str(bench.questions_path),
        "fingerprint": fingerprint(bench.questions),
        "num_rows": len(bench.questions),
    }
    record(file, SUITE, results, model=policy, data=data)
    return file, results


def _every_tenth(tell: Callable[[str], None]) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        if done % 10 == 0 or done == total:
            tell(f"judged {done} of {total}")

    return show


def _singles(questions: Sequence[Question], own: Answered) -> list[Item]:
    return [
        Item(question.id, turn, "alone", single_messages(question, turn, turns.both))
        for question, turns in zip(questions, own.rows, strict=True)
        for turn in TURNS
    ]


def _pairs(questions: Sequence[Question], own: Answered, others: Answered) -> list[Item]:
    """Each pair in both orders."""
    items = []
    for question, mine, theirs in zip(questions, own.rows, others.rows, strict=True):
        for turn in TURNS:
            items.append(Item(question.id, turn, "first", pair_messages(question, turn, mine.both, theirs.both)))
            items.append(Item(question.id, turn, "second", pair_messages(question, turn, theirs.both, mine.both)))
    return items


def _results(
    bench: Bench, judge: Judge, own: Answered, others: Answered | None, found: Sequence[Judgement]
) -> dict[str, Any]:
    categories = {one.id: one.category for one in bench.questions}
    by_item = {(one.question, one.turn, one.shown): one for one in found}
    grades = {
        key: tuple(_number(by_item[key, turn, "alone"].grade) for turn in TURNS) for key in categories
    }
    results = grades_summary(grades, categories) | {
        "unparsed": dict(Counter(one.why for one in found if one.grade is None)),
        "num_without_reference": sum(
            one.category in WITH_REFERENCE and one.reference(turn) is None for one in bench.questions for turn in TURNS
        ),
        "grades": grades,
        "answers": _of_answers(own),
        "judge": {
            "model": judge.options.model,
            "url": judge.url,
            "max_tokens": judge.options.max_tokens,
            "extra": dict(judge.options.extra),
        },
        "usage": usage(found, judge.options),
        "seed": bench.drawing.seed,
        "max_new_tokens": bench.drawing.max_new_tokens,
        "temperatures": TEMPERATURES,
    }
    if others is not None:
        verdicts = {
            key: [tuple(_text(by_item[key, turn, shown].grade) for shown in ("first", "second")) for turn in TURNS]
            for key in categories
        }
        pairs = pairs_summary(verdicts, categories)  # type: ignore[arg-type]
        against = {"path": str(others.folder), "content": content_of(others.folder)}
        results["pairwise"] = pairs | {"against": against, "verdicts": verdicts, "answers": _of_answers(others)}
    return results


def _number(grade: float | str | None) -> float | None:
    return None if grade is None else float(grade)


def _text(grade: float | str | None) -> str | None:
    return None if grade is None else str(grade)


def _of_answers(answered: Answered) -> dict[str, Any]:
    ended = [one for turns in answered.rows for one in turns.ended]
    return {
        "num_tokens": mean_interval([sum(turns.num_tokens) / len(turns.num_tokens) for turns in answered.rows]).as_dict(),
        "ended_frac": sum(ended) / len(ended),
        "num_prompts_cut": answered.num_cut,
    }


def usage(found: Sequence[Judgement], options: JudgeOptions) -> dict[str, Any]:
    """Tokens that the judge counted over all asks, kept judgements included, and what they cost.

    `cost` is null where no prices were given, or where some asks came back without a count: then it is unknown.
    """
    each = {one.key: one for one in found}.values()
    prompt, completion = sum(one.prompt_tokens for one in each), sum(one.completion_tokens for one in each)
    unknown = sum(one.num_without_usage for one in each)
    priced = options.price_in is not None and options.price_out is not None and not unknown
    cost = (prompt * (options.price_in or 0) + completion * (options.price_out or 0)) / 1e6 if priced else None
    return {
        "num_asks": sum(one.num_asks for one in each),
        "num_asks_without_usage": unknown,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "cost": cost,
    }

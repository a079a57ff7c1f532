"""`rayalign evaluate PLACE --suite generation`: what a policy's answers are worth to a reward that it was not trained on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayalign.config.data import DataSource
from rayalign.data import shapes
from rayalign.data.fingerprint import fingerprint
from rayalign.data.sources import read_rows
from rayalign.errors import UserError
from rayalign.evaluate.diversity import distinct_ngrams, repeated_ngrams_frac
from rayalign.evaluate.duels import win_rates
from rayalign.evaluate.statistics import bootstrap_interval, paired_bootstrap
from rayalign.serving.places import find_policy
from rayalign.stages.best_of_n import best_of_curve
from rayalign.storage.aside import written_aside
from rayalign.storage.evaluation import content_of, packed, record
from rayalign.suites.answers import Answerer
from rayalign.suites.judges import Answers, Judge, find_golden_judge, find_reward_judge
from rayalign.suites.options import ModelOptions
from rayalign.suites.place import evaluation_file
from rayalign.types import Conversation

SUITE = "generation"
POLICY, AGAINST = "policy", "against"
NGRAMS = (1, 2, 3)


@dataclass(frozen=True)
class Generation:
    """What is drawn, and what judges it.

    Args:
        reward: a run or a folder with a reward; hold it out of training, else it judges what it taught.
        golden: "planted" scores by that world's known reward; None does where PLACE lies in a run that has one.
        against: a second policy, which answers the same prompts with the same seeds.
        best_of: sizes N of the curve of score over N; at least max(best_of) answers a prompt are drawn.
    """

    num_samples: int = 1
    temperature: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0
    reward: Path | None = None
    reward_chat_template: str | None = None
    golden: str | None = None
    against: Path | None = None
    best_of: tuple[int, ...] = ()

    @property
    def num_drawn(self) -> int:
        """Answers a prompt."""
        return max(self.num_samples, *self.best_of, 1)


def evaluate_generation(
    place: Path,
    prompts: DataSource,
    settings: Generation | None = None,
    options: ModelOptions | None = None,
    *,
    out: Path | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Draws answers to every prompt, and adds what they are worth to evaluation.json; that file, and the results.

    The answers lie beside it, in generation.jsonl. Raises UserError for a place without a policy or a reward, DataError
    for rows that hold no prompts.
    """
    settings, options = settings or Generation(), options or ModelOptions()
    folders = _folders(place, settings)
    file = evaluation_file(place, out)
    asked = [prompt for _, prompt in shapes.prompts(read_rows(prompts, resolve=str))]
    judges = _judges(place, asked, settings, options)
    answers, cut = _drawn(folders, asked, settings, options)
    scores = {j.name: dict(zip(answers, j.scores(asked, *answers.values()), strict=True)) for j in judges}
    results = _results(answers, scores, settings) | {
        "judges": {judge.name: judge.told() for judge in judges},
        "models": {side: {"path": str(folder), "content": content_of(folder)} for side, folder in folders.items()},
        "cut": cut,
    }
    with written_aside(file.with_name(f"{SUITE}.jsonl")) as path:
        path.write_text("".join(_lines(asked, answers, scores)), encoding="utf-8")
    data = {"path": prompts.path, "fingerprint": fingerprint(asked), "num_rows": len(asked)}
    record(file, SUITE, results, model=folders[POLICY], data=data)
    return file, results


def _folders(place: Path, settings: Generation) -> dict[str, Path]:
    folders = {POLICY: find_policy(place)}
    if settings.against is not None:
        folders[AGAINST] = find_policy(settings.against)
    if settings.temperature == 0 and settings.num_drawn > 1:
        raise UserError("--temperature 0: all answers to a prompt are equal; draw one, or give a higher temperature")
    return folders


def _judges(
    place: Path, prompts: Sequence[Conversation], settings: Generation, options: ModelOptions
) -> list[Judge]:
    """The reward first: it is what the best of N are chosen by. Raises UserError where one is needed and none is there."""
    judges: list[Judge] = []
    if settings.reward is not None:
        trust = options.trust_remote_code
        template = settings.reward_chat_template
        judges.append(find_reward_judge(settings.reward, chat_template=template, trust_remote_code=trust))
    golden = find_golden_judge(place.expanduser(), prompts, world=settings.golden)
    if golden is not None:
        judges.append(golden)
    if not judges and (settings.against is not None or settings.best_of):
        option = "--against" if settings.against is not None else "--best-of"
        raise UserError(f"{option}: nothing here scores answers; give --reward PLACE")
    return judges


def _drawn(
    folders: dict[str, Path], prompts: Sequence[Conversation], settings: Generation, options: ModelOptions
) -> tuple[dict[str, Answers], dict[str, int]]:
    """Each policy's answers, one engine after the other; and how many prompts were cut to fit each."""
    asked = [[dataclasses.asdict(message) for message in prompt] for prompt in prompts]
    answers: dict[str, Answers] = {}
    cut = {}
    for side, folder in folders.items():
        with Answerer(folder, options) as answerer:
            answers[side] = answerer.answer(
                asked,
                num=settings.num_drawn,
                temperature=settings.temperature,
                max_new_tokens=settings.max_new_tokens,
                seed=settings.seed,
            )
            cut[side] = answerer.tally.cut.total()
    return answers, cut


def _results(
    answers: dict[str, Answers], scores: dict[str, dict[str, np.ndarray]], settings: Generation
) -> dict[str, Any]:
    results: dict[str, Any] = {
        "num_prompts": len(answers[POLICY]),
        "num_samples": settings.num_drawn,
        "sampling": {
            "temperature": settings.temperature, "max_new_tokens": settings.max_new_tokens, "seed": settings.seed
        },  # fmt: skip
        "answers": {side: _measured(own) for side, own in answers.items()},
        "scores": {judge: _judged(sides) for judge, sides in scores.items()},
    }
    if settings.best_of:
        first, *others = [sides[POLICY] for sides in scores.values()]
        chosen_by = next(iter(scores))
        curve = best_of_curve(settings.best_of, first, others[0] if others else None)
        results["best_of"] = {"chosen_by": chosen_by} | curve
    return results


def _measured(answers: Answers) -> dict[str, Any]:
    """Of one policy, whatever judges it: intervals are over prompts."""
    lengths = [float(np.mean([len(answer.tokens) for answer in row])) for row in answers]
    texts = [answer.text for row in answers for answer in row]
    distinct = {str(size): _share(*distinct_ngrams(texts, size)) for size in NGRAMS}
    repeated = [np.mean([repeated_ngrams_frac(answer.text) for answer in row]) for row in answers]
    measured: dict[str, Any] = {
        "length": bootstrap_interval(lengths).as_dict(),
        "ended_frac": bootstrap_interval([np.mean([a.ended for a in row]) for row in answers]).as_dict(),
        "distinct": distinct,
        "repeated_4grams_frac": bootstrap_interval(repeated).as_dict(),
        "by_prompt": {"length": packed(lengths)},
    }
    if len(answers[0]) > 1:
        again = [1 - len({answer.text for answer in row}) / len(row) for row in answers]
        measured["same_as_earlier_frac"] = bootstrap_interval(again).as_dict()
    return measured


def _judged(sides: dict[str, np.ndarray]) -> dict[str, Any]:
    """By one judge: [P, M] scores of each policy."""
    means = {side: scores.mean(axis=1) for side, scores in sides.items()}
    judged: dict[str, Any] = {side: bootstrap_interval(values).as_dict() for side, values in means.items()}
    judged["by_prompt"] = {side: packed(values) for side, values in means.items()}
    if AGAINST in sides:
        rates = win_rates(sides[POLICY], sides[AGAINST])
        judged["difference"] = paired_bootstrap(means[POLICY], means[AGAINST]).difference.as_dict()
        judged["win_rate"] = bootstrap_interval(rates).as_dict()
        judged["by_prompt"]["win_rate"] = packed(rates)
    return judged


def _lines(
    prompts: Sequence[Conversation], answers: dict[str, Answers], scores: dict[str, dict[str, np.ndarray]]
) -> Iterator[str]:
    for side, rows in answers.items():
        for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            for place, answer in enumerate(row):
                told: dict[str, Any] = {"side": side, "messages": [dataclasses.asdict(message) for message in prompt]}
                own = {judge: float(sides[side][number, place]) for judge, sides in scores.items()}
                told |= {"response": answer.text, "ended": answer.ended, "scores": own}
                yield json.dumps(told, ensure_ascii=False) + "\n"


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None

"""`rayalign evaluate PLACE --suite mt-bench`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayalign.cli.parser import add_engine_options, count, model_options, not_negative, positive, seed, whole
from rayalign.cli.suites import Suite
from rayalign.cli.suites.data import tell_policy
from rayalign.errors import UserError

if TYPE_CHECKING:
    from rayalign.suites.judge import JudgeOptions


def _add_options(evaluate: argparse.ArgumentParser) -> None:
    asked = evaluate.add_argument_group("what is asked")
    asked.add_argument("--questions", type=Path, required=True, metavar="FILE", help="MT-Bench's question.jsonl (FastChat)")
    asked.add_argument("--references", type=Path, metavar="FILE", help="reference_answer/gpt-4.jsonl, in place of its own")
    asked.add_argument("--limit", type=count, metavar="N", help="the first N questions")
    asked.add_argument("--pairwise", type=Path, metavar="PLACE", help="also judge against another policy, in both orders")
    asked.add_argument("--max-new-tokens", type=count, default=1024, metavar="N", help="of an answer (1024)")
    asked.add_argument("--seed", type=seed, default=0, metavar="N", help="of the answers (0)")
    add_engine_options(evaluate)
    _add_judge(evaluate.add_argument_group("who judges"))


def _add_judge(judge: argparse._ArgumentGroup) -> None:
    judge.add_argument("--judge", required=True, metavar="URL", help="OpenAI-compatible, such as https://HOST/v1")
    judge.add_argument("--judge-model", required=True, metavar="NAME", help="the model's name there")
    judge.add_argument("--judge-key-env", metavar="VAR", help="the environment variable that holds the key")
    judge.add_argument("--judge-extra", type=_object, default={}, metavar="JSON", help="put into requests; null takes out")
    judge.add_argument("--judge-max-tokens", type=count, default=2048, metavar="N", help="of its answer (2048)")
    judge.add_argument("--judge-rate", type=positive, metavar="N", help="requests a minute, at most")
    judge.add_argument("--judge-concurrency", type=count, default=4, metavar="N", help="requests at one time (4)")
    judge.add_argument("--judge-timeout", type=positive, default=180.0, metavar="S", help="seconds of one request (180)")
    judge.add_argument("--judge-retries", type=whole, default=5, metavar="N", help="after no answer, 429 or 5xx (5)")
    judge.add_argument("--judge-deadline", type=positive, default=21600.0, metavar="S", help="of all judging (21600)")
    judge.add_argument("--judge-asks", type=count, default=3, metavar="N", help="until a grade can be read (3)")
    judge.add_argument("--judge-price-in", type=not_negative, metavar="X", help="of a million tokens in")
    judge.add_argument("--judge-price-out", type=not_negative, metavar="X", help="of a million tokens out")


def _run(parsed: argparse.Namespace) -> None:
    tell_policy(parsed.place)
    if parsed.pairwise is not None:
        tell_policy(parsed.pairwise)
    from rayalign.suites.mt_bench.answers import Drawing
    from rayalign.suites.mt_bench.questions import read_questions
    from rayalign.suites.mt_bench.suite import Bench, evaluate_mt_bench
    from rayalign.suites.mt_bench.tables import table

    bench = Bench(
        questions=read_questions(parsed.questions, parsed.references, parsed.limit),
        questions_path=parsed.questions,
        judge=_judge(parsed),
        drawing=Drawing(parsed.max_new_tokens, parsed.seed, model_options(parsed)),
        against=parsed.pairwise,
    )
    file, results = evaluate_mt_bench(parsed.place, bench, out=parsed.out)
    print("\n".join(table(results)))
    print(f"evaluation: {file}")


def _judge(parsed: argparse.Namespace) -> JudgeOptions:
    from rayalign.suites.judge import JudgeOptions

    if (parsed.judge_price_in is None) != (parsed.judge_price_out is None):
        raise UserError("--judge-price-in and --judge-price-out go together; give both, or neither")
    return JudgeOptions(
        url=parsed.judge,
        model=parsed.judge_model,
        key_env=parsed.judge_key_env,
        extra=parsed.judge_extra,
        max_tokens=parsed.judge_max_tokens,
        requests_per_minute=parsed.judge_rate,
        concurrency=parsed.judge_concurrency,
        timeout_s=parsed.judge_timeout,
        retries=parsed.judge_retries,
        deadline_s=parsed.judge_deadline,
        asks=parsed.judge_asks,
        price_in=parsed.judge_price_in,
        price_out=parsed.judge_price_out,
    )


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or {"messages", "n", "stream"} & set(found):
        raise argparse.ArgumentTypeError('give a JSON object without messages, n and stream, such as {"max_tokens": null}')
    return found


MT_BENCH = Suite(
    "mt-bench",
    "two-turn questions, graded by a language model (MT-Bench)",
    "A policy answers MT-Bench's questions, both turns, and a language model grades the answers from 1 to 10, and against\n"
    "another policy's if asked. Answers and judgements are kept in PLACE/mt-bench: the same command, started again, asks\n"
    "only for what is missing. PLACE holds any language model: a run's newest policy, RUN/STAGE/policy, a Hugging Face\n"
    "model's folder.",
    _add_options,
    _run,
)

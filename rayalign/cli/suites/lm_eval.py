"""`rayalign evaluate PLACE --suite lm-eval`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rayalign.cli.parser import add_engine_options, count, model_options, seed, whole
from rayalign.cli.suites import Suite
from rayalign.cli.suites.data import tell_policy


def _add_options(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("--tasks", required=True, type=_names, metavar="A,B", help="tasks or groups, such as leaderboard")
    evaluate.add_argument("--include-path", type=Path, metavar="DIR", help="tasks of your own (their code is run)")
    evaluate.add_argument("--limit", type=count, metavar="N", help="the first N rows of each task, to try it")
    evaluate.add_argument("--num-fewshot", type=whole, metavar="N", help="examples before a question; else the task's own")
    evaluate.add_argument("--apply-chat-template", action="store_true", help="put the questions as dialogues")
    evaluate.add_argument("--backend", choices=["vllm", "hf"], default="vllm", help="vLLM, or transformers (vllm)")
    evaluate.add_argument("--batch-size", type=count, default=8, metavar="N", help="of backend hf (8)")
    evaluate.add_argument("--seed", type=seed, default=1234, metavar="N", help="of the examples; lm_eval's own is 1234")
    add_engine_options(evaluate)


def _run(parsed: argparse.Namespace) -> None:
    tell_policy(parsed.place)
    from rayalign.suites.harness import Harness, evaluate_harness
    from rayalign.suites.harness_table import table

    settings = Harness(
        tasks=parsed.tasks,
        include_path=parsed.include_path,
        limit=parsed.limit,
        num_fewshot=parsed.num_fewshot,
        apply_chat_template=parsed.apply_chat_template,
        backend=parsed.backend,
        batch_size=parsed.batch_size,
        seed=parsed.seed,
    )
    file, results = evaluate_harness(parsed.place, settings, model_options(parsed), out=parsed.out)
    print("\n".join(table(results)))
    print(f"evaluation: {file}")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError("give a name, or several with commas between them")
    return names


LM_EVAL = Suite(
    "lm-eval",
    "tasks of lm-evaluation-harness, the Open LLM Leaderboard's among them",
    "Runs tasks of lm-evaluation-harness on vLLM: `--tasks leaderboard` is the Open LLM Leaderboard. The data of most\n"
    "tasks comes from the Hugging Face hub. Needs rayalign[evals]. PLACE holds a policy: a run's, a stage's, a Hugging\n"
    "Face model's.",
    _add_options,
    _run,
)

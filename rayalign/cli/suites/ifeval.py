"""`rayalign evaluate PLACE --suite ifeval`."""

from __future__ import annotations

import argparse

from rayalign.cli.parser import add_engine_options, count, model_options, seed
from rayalign.cli.suites import Suite
from rayalign.cli.suites.data import add_data_options, data_source, tell_policy


def _add_options(evaluate: argparse.ArgumentParser) -> None:
    add_data_options(evaluate, "--prompts", "{key, prompt, instruction_id_list, kwargs}, or google/IFEval")
    evaluate.add_argument("--max-new-tokens", type=count, default=1280, metavar="N", help="of an answer (1280)")
    evaluate.add_argument("--temperature", type=float, default=0.0, metavar="T", help="(0, the likeliest token)")
    evaluate.add_argument("--seed", type=seed, default=0, metavar="N", help="of the answers, if T is above 0 (0)")
    add_engine_options(evaluate)


def _run(parsed: argparse.Namespace) -> None:
    source = data_source(parsed, parsed.prompts, "--prompts")
    tell_policy(parsed.place)
    from rayalign.suites.ifeval import evaluate_ifeval
    from rayalign.suites.ifeval_table import table

    file, results = evaluate_ifeval(
        parsed.place,
        source,
        model_options(parsed),
        max_new_tokens=parsed.max_new_tokens,
        temperature=parsed.temperature,
        seed=parsed.seed,
        out=parsed.out,
    )
    print("\n".join(table(results)))
    print(f"evaluation: {file}, answers: {file.with_name('ifeval.jsonl')}")


IFEVAL = Suite(
    "ifeval",
    "whether answers follow instructions that a program can check (IFEval)",
    "Answers IFEval's prompts with vLLM and checks each answer with lm-evaluation-harness's own checks: accuracy of\n"
    "prompts and of instructions, strict and loose, and by family. Needs rayalign[evals] and nltk's data punkt_tab.\n"
    "PLACE holds a policy: a run's, a stage's, a Hugging Face model's.",
    _add_options,
    _run,
)

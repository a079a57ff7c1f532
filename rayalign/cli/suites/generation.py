"""`rayalign evaluate PLACE --suite generation`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rayalign.cli.parser import add_engine_options, count, model_options, seed
from rayalign.cli.suites import Suite
from rayalign.cli.suites.data import add_data_options, data_source, tell_policy, tell_reward


def _add_options(evaluate: argparse.ArgumentParser) -> None:
    add_data_options(evaluate, "--prompts", "prompts, or demonstrations whose prompts serve")
    evaluate.add_argument("--reward", type=Path, metavar="PLACE", help="a run or folder with a reward, held out of training")
    evaluate.add_argument("--reward-chat-template", metavar="FILE", help="as --chat-template, for the reward")
    evaluate.add_argument("--golden", choices=["planted"], help="the known reward; by itself where the run has one")
    evaluate.add_argument("--against", type=Path, metavar="PLACE", help="a second policy: win rate and difference")
    evaluate.add_argument("--samples", type=count, default=1, metavar="N", help="answers a prompt (1)")
    evaluate.add_argument("--best-of", type=_sizes, default=(), metavar="N,N", help="score over N, such as 1,2,4,8")
    evaluate.add_argument("--temperature", type=float, default=1.0, metavar="T", help="(1); 0 takes the likeliest token")
    evaluate.add_argument("--max-new-tokens", type=count, default=256, metavar="N", help="of an answer (256)")
    evaluate.add_argument("--seed", type=seed, default=0, metavar="N", help="of the answers (0)")
    add_engine_options(evaluate)


def _run(parsed: argparse.Namespace) -> None:
    source = data_source(parsed, parsed.prompts, "--prompts")
    tell_policy(parsed.place)
    if parsed.against is not None:
        tell_policy(parsed.against)
    if parsed.reward is not None:
        tell_reward(parsed.reward)
    from rayalign.suites.generation import Generation, evaluate_generation
    from rayalign.suites.generation_table import table

    settings = Generation(
        num_samples=parsed.samples,
        temperature=parsed.temperature,
        max_new_tokens=parsed.max_new_tokens,
        seed=parsed.seed,
        reward=parsed.reward,
        reward_chat_template=parsed.reward_chat_template,
        golden=parsed.golden,
        against=parsed.against,
        best_of=parsed.best_of,
    )
    file, results = evaluate_generation(parsed.place, source, settings, model_options(parsed), out=parsed.out)
    print("\n".join(table(results)))
    print(f"evaluation: {file}, answers: {file.with_name('generation.jsonl')}")


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(sorted({count(word) for word in text.split(",")}))


GENERATION = Suite(
    "generation",
    "what a policy's answers are worth to a held-out reward, and to another policy",
    "Draws answers to prompts with vLLM and scores them with a reward that the policy was not trained on: mean score, win\n"
    "rate against a second policy, score over N for the best of N, length, share that ended, variety. Intervals are\n"
    "bootstrapped over prompts. PLACE holds a policy: a run's, a stage's, a Hugging Face model's.",
    _add_options,
    _run,
)

"""What answers in an evaluation: a model, the best of n by a reward, or a policy carried beyond itself. All draw alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from rayalign.config.selection import Answerer, BestOf, EvaluateStage, Extrapolated
from rayalign.engines.extrapolate import ExtrapolatedSampler
from rayalign.evaluate.best_of import chosen
from rayalign.ports import ExtrapolateSetup
from rayalign.stages.context import RunContext
from rayalign.stages.groups import RewardGroup, RolloutGroup
from rayalign.stages.inputs import locate_model
from rayalign.stages.scoring import every_score, fixed_reward, scorer
from rayalign.types import Sequences, TokenizedPrompts

SEED_OFFSET = 10_000  # evaluation never repeats the random numbers of training
ByTemperature = dict[float, Sequences]  # by temperature; `num_per_prompt` rows a prompt, prompt by prompt


def check_answerers(context: RunContext, models: dict[str, Answerer]) -> None:
    """Raises UserError where a model is not there or reads other tokens, before the first sample is drawn."""
    for model in models.values():
        match model:
            case BestOf():
                locate_model(context, model.policy)
                fixed_reward(context, model.reward)
            case Extrapolated():
                locate_model(context, model.policy)
                locate_model(context, model.reference)
            case _:
                locate_model(context, model)


def answers(
    context: RunContext, stage: EvaluateStage, model: Answerer, prompts: TokenizedPrompts, advance: Callable[[], None]
) -> ByTemperature:
    """One model's answers at every temperature; `advance` is called after each."""
    match model:
        case BestOf():
            num = model.best_of * stage.num_per_prompt
            group = context.rollout_group(locate_model(context, model.policy))
            candidates = _drawn(context, group, stage, prompts, num, advance)
            with scorer(context, model.reward) as reward:
                random = np.random.default_rng(context.config.seed + SEED_OFFSET)
                return {t: best_of(reward, every, model.best_of, random) for t, every in candidates.items()}
        case Extrapolated():
            with _extrapolated(context, model) as group:
                return _drawn(context, group, stage, prompts, stage.num_per_prompt, advance)
        case _:
            group = context.rollout_group(locate_model(context, model))
            return _drawn(context, group, stage, prompts, stage.num_per_prompt, advance)


def best_of(reward: RewardGroup, candidates: Sequences, num: int, random: np.random.Generator) -> Sequences:
    """The best by the reward of every `num` consecutive candidates."""
    scores = every_score(reward, candidates).reshape(-1, num)
    return candidates.take(chosen(scores, random) + np.arange(0, len(candidates), num))


def _drawn(
    context: RunContext,
    group: RolloutGroup,
    stage: EvaluateStage,
    prompts: TokenizedPrompts,
    num_per_prompt: int,
    advance: Callable[[], None],
) -> ByTemperature:
    drawn = {}
    for temperature in stage.temperatures:
        sampling = stage.sampling.model_copy(update={"temperature": temperature})
        # The same random numbers for every model: differences between models are paired.
        seed = context.config.seed + SEED_OFFSET
        rollouts = group.generate(prompts, sampling, num_per_prompt=num_per_prompt, seed=seed)
        drawn[temperature] = group.fetch(rollouts).sequences
        advance()
    return drawn


@contextlib.contextmanager
def _extrapolated(context: RunContext, model: Extrapolated) -> Iterator[RolloutGroup]:
    """Workers with both models, on the reward group's resources: vLLM, which holds one model, keeps its own."""
    setup = ExtrapolateSetup(
        policy=locate_model(context, model.policy),
        reference=locate_model(context, model.reference),
        model=context.config.model.model_copy(update={"lora": None}),
        learner=context.config.learner,
        power=model.power,
        min_prob=model.min_prob,
        end_token_ids=context.template().end_token_ids,
    )
    workers = context.fleet.start("reward", ExtrapolatedSampler, [setup] * context.fleet.num_workers("reward"))
    try:
        yield RolloutGroup(workers)
    finally:
        workers.close()

"""What is known to go wrong with a config that is valid: one line each, which says why and what to change.

The numbers in brackets are properties of docs/algorithms.md. Nothing is refused here: some hazards are what a person
wants to see, and the papers' own settings meet a few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rayalign.config.ava import AvaStage
from rayalign.config.base import stage_reference
from rayalign.config.fits import FitRewardStage
from rayalign.config.improve import PolicyStepConfig
from rayalign.config.loops import ImplicitStage, IrlStage, LoopStage, SampledStage
from rayalign.config.run import RunConfig
from rayalign.config.stage_base import DEMONSTRATIONS, PairSource
from rayalign.config.stages import PlantedStage, SampleStage, SftStage, Stage

NEAR_GREEDY = 0.5  # below this temperature
SMALL_BETA = 0.5  # rounds solved exactly diverge at and below it (T7a)
SMALL_CONTRAST = 10.0  # of AVA's contrastive term, beside the terms of some twenty tokens
# AdamW moves a weight by about the learning rate a step, so steps x learning rate is how far weights can travel in a round.
# Above these a round is no longer a small step: seen in the planted world, where weights are of the size of 0.05.
FAR_IN_ROUNDS = 2e-3
FAR_IN_ONE = 5e-3


def hazards(config: RunConfig, stages: Sequence[Stage] | None = None) -> list[str]:
    """One line for each hazard that these stages of the config meet; all stages if not given."""
    stages = config.stages if stages is None else stages
    return [f"stages.{stage.name}{line}" for stage in stages for line in _of_stage(config, stage)]


def _of_stage(config: RunConfig, stage: Stage) -> Iterator[str]:
    if isinstance(stage, SampledStage) and _draws(stage):
        yield from _near_greedy(stage.sampling.temperature, "what it draws stands for the policy that is trained")
    if isinstance(stage, SampleStage) and f"stage:{stage.name}/samples.jsonl" in _learned_from(config):
        yield from _near_greedy(stage.sampling.temperature, "a later stage learns from what it draws")
    if isinstance(stage, IrlStage):
        yield from _rounds(stage)
        yield from _joint(stage)
        yield from _forward_kl(stage)
    if isinstance(stage, LoopStage):
        yield from _beta_beside_deviations(stage.improve)
    if isinstance(stage, ImplicitStage):
        yield from _implicit(config, stage)
    if isinstance(stage, (FitRewardStage, AvaStage)) and stage.pairs:
        yield from _style(config, stage.pairs)
    if isinstance(stage, AvaStage):
        yield from _ava(stage)


def _near_greedy(temperature: float, why: str) -> Iterator[str]:
    if temperature < NEAR_GREEDY:
        yield (
            f".sampling.temperature: {why}, and near-greedy answers (temperature {temperature:g}) are no sample of it: "
            "its expectations are biased; set it to 1"
        )


def _rounds(stage: IrlStage) -> Iterator[str]:
    """At most one of what goes wrong from round to round."""
    improve, beta = stage.improve, stage.improve.kl_coef
    if stage.rounds == 1 or not stage.reward.demonstration_weight:
        return
    far = improve.steps * improve.epochs * improve.minibatches * improve.optimizer.learning_rate
    if improve.reference == "start" and stage.reward.start == "fresh" and beta:
        yield (
            ": a reward fitted from scratch each round (reward.start fresh) with a fixed reference (improve.reference "
            "start) does not end at the demonstrators, and swings for beta below 1 (T7b); set reward.start to warm, or "
            "improve.reference to round"
        )
    elif improve.reference == "round" and 0 < beta <= SMALL_BETA and far > FAR_IN_ROUNDS:
        yield (
            f".improve: with a moving reference and beta (kl_coef) {beta:g}, at or below 1/2, rounds that are solved nearly "
            f"exactly swing past the demonstrators (T7a), and {_travel(far, FAR_IN_ROUNDS)} a round; take fewer steps or a "
            "smaller learning rate, or raise kl_coef above 1/2"
        )
    elif improve.reference == "start" and beta <= SMALL_BETA and far > FAR_IN_ONE:
        yield (
            f".rounds: with beta (kl_coef) {beta:g} one round may already pass the demonstrators ({_travel(far, FAR_IN_ONE)}"
            "), and later ones then learn that its better answers are worse; set rounds to 1, or raise kl_coef towards 1 to "
            "imitate"
        )


def _travel(far: float, allowed: float) -> str:
    return f"steps x learning rate is {far:.2g}, above {allowed:g}"


def _joint(stage: IrlStage) -> Iterator[str]:
    reward = stage.reward
    both = reward.demonstration_weight and reward.preference_weight
    if both and "preference_temperature" not in reward.model_fields_set:
        yield (
            ".reward.preference_temperature: demonstrations tell the reward in the demonstrators' units, preferences in "
            "the annotators'; left at 1, a mismatch biases the joint reward (T39): set it to how sharply annotators follow "
            "the reward, or to 1 if you mean it"
        )


def _forward_kl(stage: IrlStage) -> Iterator[str]:
    if stage.reward.divergence == "forward_kl":
        yield (
            ".reward.divergence: the published forward-KL reward -h exp(h) falls wherever h > -1, so near the demonstrators "
            "it pushes the policy away from them at any kl_coef (T24); set it to forward_kl_exp or reverse_kl"
        )


def _beta_beside_deviations(improve: PolicyStepConfig) -> Iterator[str]:
    """With the KL in the reward it is divided along, and the Gibbs policy stays a fixed point."""
    if improve.advantage in ("grpo", "reinforce_pp", "gae") and improve.kl_in == "loss" and improve.kl_coef:
        over = "the group's" if improve.advantage == "grpo" else "the batch's"
        yield (
            f".improve.advantage: {improve.advantage} divides rewards by {over} deviation and kl_in loss leaves the KL as "
            "it is, so the fixed point has beta times that deviation in the place of beta, and can collapse (T10); set "
            "advantage to rloo or grpo_no_std, or kl_in to reward"
        )


def _implicit(config: RunConfig, stage: ImplicitStage) -> Iterator[str]:
    if not _draws(stage) or stage.demonstrations is None or stage.demonstrations.loss in ("gsil", "dft"):
        return
    if stage.preferences is None and _knows_demonstrations(config, stage.policy):
        yield (
            f".policy: {stage.policy} was already fitted to these demonstrations, so the signal "
            "log(demonstrators / reference) is about 0 and little is left to learn; start from the base model, or bring "
            "demonstrations that it has not seen"
        )
    if stage.on_policy:
        return
    # Rounds without settings of their own are alike from the second on.
    own = isinstance(stage.beta, list) or stage.learning_rates
    for number in range(stage.rounds if own else min(stage.rounds, 2)):
        beta, far = stage.beta_of(number), _travel_of_round(config, stage, number)
        if stage.rounds > 1 and beta <= SMALL_BETA and far > FAR_IN_ROUNDS:
            yield (
                f".beta: rounds with beta {beta:g}, at or below 1/2, that are solved nearly exactly swing past the "
                f"demonstrators (T7a), and {_travel(far, FAR_IN_ROUNDS)} a round; take fewer steps or a smaller learning "
                "rate, or raise beta above 1/2"
            )
            return
        if stage.rounds == 1 and beta < SMALL_BETA and far > FAR_IN_ONE:
            yield (
                f".rounds: with beta {beta:g} and one set of samples nothing calls the policy back once it is past the "
                f"demonstrators, and {_travel(far, FAR_IN_ONE)}: answers break in the end; draw anew (rounds), stop "
                "earlier, or set likelihood_weight"
            )


def _travel_of_round(config: RunConfig, stage: ImplicitStage, number: int) -> float:
    """Steps x learning rate; 0 where neither max_steps nor the data tells the number of steps."""
    rate = stage.learning_rates[number] if stage.learning_rates else stage.optimizer.learning_rate
    rows = _num_demonstrations(config)
    steps = stage.max_steps or 0
    if rows is not None:
        rows = (rows // stage.rounds if stage.slices else rows) * (2 if stage.keep_previous and number else 1)
        num = -(-rows * stage.epochs // stage.batch_size)
        steps = min(stage.max_steps or num, num)
    return steps * rate


def _num_demonstrations(config: RunConfig) -> int | None:
    source = config.data.demonstrations
    reference = stage_reference(source.path) if source else None
    made = next((s for s in config.stages if reference and s.name == reference[0]), None)
    counts = [source.limit if source else None, made.num_demonstrations if isinstance(made, PlantedStage) else None]
    return min((count for count in counts if count is not None), default=None)


def _style(config: RunConfig, pairs: PairSource) -> Iterator[str]:
    if pairs.better != DEMONSTRATIONS or pairs.worse == DEMONSTRATIONS:
        return
    reference = stage_reference(pairs.worse)
    writer = next((s for s in config.stages if reference and s.name == reference[0]), None)
    tuned = isinstance(writer, SampleStage) and _knows_demonstrations(config, writer.policy)
    whose = "a model fitted to them: nearly as good, in another style" if tuned else "another writer"
    yield (
        f".pairs: demonstrations against samples of {whose}; the reward may learn who wrote a text in the place of how "
        f"good it is{', and best of n then gets worse with n' if tuned else ''} (T25): set better to samples of the SFT "
        "model and worse to the base model's"
    )


def _ava(stage: AvaStage) -> Iterator[str]:
    if not stage.end_term:
        yield ".end_term: the sum as printed never trains the end token, and answers forget to end (T29); set it to true"
    if stage.irl and stage.lambda_td >= 1:
        yield (
            f".lambda_td: at 1 the reward's deviation has no optimum of its own, above 1 it runs to the sigma_floor (T28); "
            f"set it below 1 (here {stage.lambda_td:g}), 0.5 for instance"
        )
    if stage.variant == "preferences" and stage.contrastive and stage.contrast_weight < SMALL_CONTRAST:
        yield (
            f".contrast_weight: {stage.contrast_weight:g} is lost among the terms of all tokens, and preferences then teach "
            "the reward next to nothing; raise it, to 50 for instance"
        )
    if stage.reward_weights and stage.weights_scale == "one":
        yield (
            ".weights_scale: weights that sum to one scale each token's deviation down to the sigma_floor; set it to length"
        )


def _draws(stage: SampledStage) -> bool:
    return stage.draws if isinstance(stage, ImplicitStage) else True


def _learned_from(config: RunConfig) -> set[str]:
    """The stored samples that a reward or an implicit reward is learned from."""
    learners = (FitRewardStage, AvaStage, IrlStage, ImplicitStage)
    inputs = [needed for s in config.stages if isinstance(s, learners) for needed in s.inputs().values()]
    return {needed.location for needed in inputs if needed.kind == "samples" and needed.location}


def _knows_demonstrations(config: RunConfig, location: str) -> bool:
    """Whether a model of this run, or one that it started from, was fitted to data.demonstrations by likelihood."""
    reference = stage_reference(location)
    stage = next((s for s in config.stages if reference and s.name == reference[0]), None)
    if isinstance(stage, SftStage):
        ours = config.data.demonstrations
        fits = stage.data is None or (ours is not None and stage.data.path == ours.path)
        return fits or (stage.policy is not None and _knows_demonstrations(config, stage.policy))
    return isinstance(stage, SampledStage) and _knows_demonstrations(config, stage.policy)

"""The reward engine: what it learns, from which pairs, and that its scores are those of the saved model."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from rayalign.data.pairs import PairDraw
from rayalign.engines.function_reward import FunctionReward
from rayalign.engines.scorer import RewardScorer
from rayalign.errors import Diverged, RayalignError
from rayalign.models.batch import token_batch
from rayalign.models.reward import RewardModel
from rayalign.ports import ScorerSetup
from rayalign.telemetry.metrics import values
from rayalign.types import Ragged, Rollout
from tests.engines.gradients import DESCENT, DESCENT_RATE, distance
from tests.engines.toy import BAD, GOOD, demonstrations, reward_engine, samples
from tests.models.tiny import learner_config, model_config, random_sequences


def plain_scores(engine, sequences) -> np.ndarray:
    """In the order of the sequences."""
    scores = engine.score_sequences(sequences)
    return scores.values[np.argsort(scores.rows)]


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("link", ["bradley_terry", "linear"])
def test_it_learns_what_tells_demonstrations_from_samples(untied, link, pooling):
    """On prompts and answers it has not seen, too; the normaliser makes its samples' scores mean 0, deviation 1."""
    engine = reward_engine(untied, demonstrations(), loss=link, pooling=pooling, steps=20)
    rollout = samples()
    metrics = values(engine.update([rollout]))
    assert metrics["pair_accuracy"] == 1
    assert metrics["margin_demo_minus_agent"] > 1
    if link == "linear":
        assert metrics["loss"] == pytest.approx(-metrics["margin_demo_minus_agent"], rel=1e-4)
    of_samples = plain_scores(engine, rollout.sequences)
    assert (of_samples.mean(), of_samples.std()) == (pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-4))
    unseen = plain_scores(engine, demonstrations(6, first=20)), plain_scores(engine, samples(6, first=20).sequences)
    assert unseen[0].mean() > unseen[1].mean() + 1


@pytest.mark.parametrize("reference", ["demonstrations", "none"])
def test_other_normalisers(untied, reference):
    engine = reward_engine(untied, demonstrations(), normalise=reference)
    engine.update([samples()])
    of_demos = plain_scores(engine, demonstrations())
    if reference == "none":
        assert (engine._reward.mean, engine._reward.std) == (0, 1)
    else:
        assert (of_demos.mean(), of_demos.std()) == (pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-4))


@pytest.mark.parametrize(("link", "loss"), [("bradley_terry", math.log(2)), ("linear", 0.0)])
def test_samples_that_equal_the_demonstrations_teach_nothing(untied, link, loss):
    """T5: the policy has become the expert; the loss is log 2 a pair (or 0), and there is nothing to follow."""
    demos = demonstrations()
    rollout = Rollout(demos, Ragged.from_list([[0.0] * n for n in demos.response_lengths], np.float32), 0)
    engine = reward_engine(untied, demos, loss=link)
    before = plain_scores(engine, demos)
    metrics = values(engine.update([rollout]))
    assert metrics["loss"] == pytest.approx(loss, abs=1e-6)
    assert metrics["grad_norm"] < 1e-5
    assert (metrics["pair_accuracy"], metrics["margin_demo_minus_agent"]) == (0.5, pytest.approx(0, abs=1e-6))
    raw = plain_scores(engine, demos) * engine._reward.std + engine._reward.mean
    np.testing.assert_allclose(raw, before, atol=1e-5)


@pytest.mark.parametrize(
    ("replay", "kept"), [("none", [[2]]), ("two_sets", [[0, 2]]), ("cumulative", [[0, 1, 2]])]
)
def test_replay_keeps_what_its_name_says(untied, replay, kept):
    """After three rounds: this round's samples, the first's and this one's, or all; stored negatives always."""
    stored = samples(seed=99).sequences
    engine = reward_engine(untied, demonstrations(), negatives=[stored], replay=replay, steps=1)
    rounds = [samples(seed=40 + i) for i in range(3)]
    for rollout in rounds:
        engine.update([rollout])
    assert [rounds_of(held, rounds) for held in [engine._replay]] == kept
    pairs = PairDraw(demonstrations(), [*engine._replay, stored])
    drawn = [pairs.draw(np.random.default_rng(i), 6) for i in range(30)]
    answers = {tuple(row) for batch in drawn for row in list(batch.responses())[1::2]}
    assert all(tuple(response) in answers for response in stored.responses())


def rounds_of(replay, rounds) -> list[int]:
    """Which rounds the kept samples are of."""
    return [next(i for i, r in enumerate(rounds) if r.sequences is kept or same(r.sequences, kept)) for kept in replay]


def same(first, second) -> bool:
    return np.array_equal(first.tokens.values, second.tokens.values)


def test_pairs_share_their_prompt():
    """[demo, agent, demo, agent, ...], each demonstration as likely as any other however many samples it has."""
    many = [samples(4, seed=seed).sequences for seed in range(5)]
    pairs = PairDraw(demonstrations(6), [*many, samples(1, first=4).sequences])  # prompt 5 has no sample
    drawn = [pairs.draw(np.random.default_rng(seed), 5) for seed in range(60)]
    for batch in drawn:
        assert (batch.prompt_ids[0::2] == batch.prompt_ids[1::2]).all()
        assert all(row[1] == GOOD for row in list(batch.responses())[0::2])
        assert all(row[1] == BAD for row in list(batch.responses())[1::2])
        assert sorted(batch.prompt_ids[0::2]) == [0, 1, 2, 3, 4]
    with pytest.raises(RayalignError, match="no sample answers the prompt of any demonstration"):
        PairDraw(demonstrations(3), [samples(3, first=10).sequences])


def test_a_fresh_reward_begins_again_each_round_and_a_warm_one_goes_on(untied):
    """Fresh: a second round on the same samples is the first over again. Warm: it starts where the first ended."""
    margins = {}
    for start in ("fresh", "warm"):
        engine = reward_engine(untied, demonstrations(), start=start, steps=4)
        margins[start] = [values(engine.update([samples()]))["margin_demo_minus_agent"] for _ in range(2)]
        assert engine.version == 2
        assert engine.score([samples()]).reward_version == 2
    assert margins["fresh"][0] == pytest.approx(margins["warm"][0], rel=1e-5)
    assert margins["fresh"][1] == pytest.approx(margins["fresh"][0], rel=0.2)
    assert margins["warm"][1] > 1.5 * margins["warm"][0]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_fresh_rewards_do_not_pile_up(untied, zero_stage):
    """A round lets go of the weights and optimiser state of the round before it."""

    def held_bytes() -> int:
        gc.collect()
        tensors = [value for value in gc.get_objects() if type(value) in (torch.Tensor, torch.nn.Parameter)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    engine = reward_engine(untied, demonstrations(), start="fresh", steps=1, learner=learner_config(zero_stage=zero_stage))
    held = []
    for _ in range(2):
        engine.update([samples()])
        engine.update([samples()])
        held.append(held_bytes())
    weights = sum(tensor.nbytes for _, tensor in engine._learner.weights())
    assert held[1] - held[0] < weights / 2


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_saved_reward_gives_the_same_scores(untied, pooling, tmp_path):
    """Pooling and normaliser included; a scorer needs no DeepSpeed."""
    engine = reward_engine(untied, demonstrations(), pooling=pooling)
    engine.update([samples()])
    engine.save(str(tmp_path))
    scorer = RewardScorer(ScorerSetup(str(tmp_path), model_config(), learner_config(micro_batch_tokens=20)))
    sequences = random_sequences(7, seed=3)
    np.testing.assert_allclose(plain_scores(scorer, sequences), plain_scores(engine, sequences), atol=1e-5)


def test_scores_that_are_not_finite_are_not_handed_on(untied):
    engine = reward_engine(untied, demonstrations(), steps=1)
    with torch.no_grad():
        engine._reward.lm.score.weight.fill_(float("inf"))
    with pytest.raises(Diverged, match="scores 6 of 6 responses as no finite number; lower reward.optimizer"):
        engine._fit_normaliser(samples().sequences)


def test_a_few_scores_that_are_not_finite_are_left_out_of_the_normaliser_and_counted(untied, monkeypatch):
    engine = reward_engine(untied, demonstrations())
    raw = np.array([1.0, np.nan, 3.0, 5.0], dtype=np.float32)
    monkeypatch.setattr(engine, "_raw", lambda sequences: (np.arange(4), raw))
    assert values(engine._fit_normaliser(samples().sequences)) == {
        "score_mean": 3.0, "score_std": pytest.approx(np.std([1, 3, 5])), "num_unscored": 1
    }  # fmt: skip


def test_a_reward_from_a_function():
    """It sees texts in the samples' order; a wrong number of values is an error, one that is not finite the policy's."""

    def decode(tokens):
        return " ".join(map(str, tokens))

    rollout = samples(3)
    length = FunctionReward(lambda prompts, responses: [len(r.split()) for r in responses], decode, decode)
    scores = length.score([rollout, samples(2, first=3)])
    assert scores.values.tolist()[:3] == rollout.sequences.response_lengths.tolist()
    assert scores.rows.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(RayalignError, match="gave .* values for 3 samples"):
        FunctionReward(lambda prompts, responses: [0.0], decode, decode).score([rollout])
    odd = FunctionReward(lambda prompts, responses: [0.0, math.nan, 1.0], decode, decode).score([rollout])
    np.testing.assert_array_equal(odd.values, [0, math.nan, 1])


def test_preferences_are_learned_from_beside_demonstrations(untied):
    """AIHF: both sources' pairs part; the metrics of each are told apart."""
    preferences = (samples(4, first=6).sequences, demonstrations(4, first=6))  # against the demonstrations' direction
    engine = reward_engine(untied, demonstrations(), preferences=preferences, preference_weight=5.0, steps=30)
    found = values(engine.update([samples()]))
    assert {"pair_accuracy", "preference_pair_accuracy", "margin_chosen_minus_rejected"} <= found.keys()
    assert found["preference_pair_accuracy"] > 0.9


@pytest.mark.parametrize(("weighting", "factors"), [("counts", (3 / 2, 2 / 2)), ("means", (3.0, 2.0))])
def test_one_step_follows_both_gradients_by_their_weights(untied, weighting, factors):
    """5.1 by hand: w1 and w2 times each source's mean, or by counts; kappa is inside the preferences' link (T35, T38)."""
    demos, agent = demonstrations(), samples().sequences
    chosen, rejected = samples(6, first=6).sequences, demonstrations(6, first=6)
    settings = {"demonstration_weight": 3.0, "preference_weight": 2.0, "preference_temperature": 0.5}
    engine = reward_engine(
        untied, demos, preferences=(chosen, rejected), steps=1, weighting=weighting, optimizer=DESCENT, **settings
    )  # batches of 6: every pair once
    before = {name: tensor.double().clone() for name, tensor in engine._learner.weights()}
    engine.update([Rollout(agent, samples().sampler_logprobs, 0)])
    moved = {name: (before[name] - tensor.double()) / DESCENT_RATE for name, tensor in engine._learner.weights()}
    model = RewardModel.from_backbone(untied, model_config(), learner_config(), pooling="last", seed=0)

    def scores(sequences):
        return model(token_batch(sequences, np.arange(len(sequences)), packing=False, device="cpu"))

    loss = factors[0] * softplus(scores(agent) - scores(demos)).mean()
    loss = loss + factors[1] * softplus(0.5 * (scores(rejected) - scores(chosen))).mean()
    loss.backward()
    truth = {name.removeprefix("lm."): p.grad.double() for name, p in model.named_parameters()}
    assert distance(moved, truth) < 1e-3


def test_without_weight_on_demonstrations_the_policy_is_never_asked(untied):
    """T35: the preferences' reward alone (RLHF), from no rollouts at all; with weight, none are an error."""
    preferences = (demonstrations(), samples().sequences)
    keys = {"preferences": preferences, "preference_weight": 1.0, "steps": 20}
    engine = reward_engine(untied, demonstrations(), demonstration_weight=0.0, normalise="demonstrations", **keys)
    assert values(engine.update([]))["preference_pair_accuracy"] > 0.9
    with pytest.raises(RayalignError, match="needs the policy's samples"):
        reward_engine(untied, demonstrations(), **keys).update([])


@pytest.mark.parametrize("divergence", ["jensen_shannon", "forward_kl_exp"])
def test_the_policy_is_paid_the_divergences_function_of_the_logit(untied, divergence):
    """AfD 2.4: health and accuracy go on looking at the logit itself."""
    keys = {"loss": "logistic", "normalise": "none", "divergence": divergence}
    engine = reward_engine(untied, demonstrations(), **keys)
    engine.update([samples()])
    logits = torch.from_numpy(engine.score_sequences(samples().sequences).values)
    paid = engine.score([samples()]).values
    by_hand = torch.nn.functional.logsigmoid(logits) if divergence == "jensen_shannon" else logits.exp()
    np.testing.assert_allclose(paid, by_hand, rtol=1e-5)

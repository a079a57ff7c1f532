"""The AVA engine: it learns pairs, trains the end token only when asked to, and splits a batch without changing the step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayalign.config.ava import AvaStage
from rayalign.config.model import OptimizerConfig
from rayalign.data.pairs import interleaved
from rayalign.engines.ava import AvaEngine, AvaSetup
from rayalign.engines.learner import MAX_SKIPPED
from rayalign.engines.scorer import RewardScorer
from rayalign.errors import Diverged
from rayalign.ports import ScorerSetup
from rayalign.telemetry.metrics import values
from tests.engines.toy import demonstrations, samples
from tests.models.tiny import END, learner_config, load_plain, model_config, plain_logprobs, save_tiny, sequences_of

PAIRS = interleaved(demonstrations(8), samples(8).sequences)
UNSEEN = demonstrations(8, first=20), samples(8, first=20).sequences
TERMS = ("likelihood", "negatives", "kl", "td", "contrast")


def ava_engine(
    folder: str, *, learner: dict[str, Any] | None = None, dtype: str = "float32", **config: Any
) -> AvaEngine:
    """At a learning rate that shows; `config` goes to AvaStage."""
    settings = {"variant": "preferences", "optimizer": OptimizerConfig(learning_rate=1e-3, eps=1e-3)} | config
    return AvaEngine(
        AvaSetup(
            path=folder,
            model=model_config(dtype=dtype),
            learner=learner_config(**({"micro_batch_tokens": 64} | (learner or {}))),
            config=AvaStage(init=folder, **settings),
            total_steps=100,
            seed=0,
        )
    )


def weights_of(engine: AvaEngine) -> dict[str, torch.Tensor]:
    return {name: tensor.double().clone() for name, tensor in engine._learner.weights()}


def moved(folder: str, batch=PAIRS, **keys: Any) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """What one step of plain descent changes, and its metrics."""
    sgd_like = OptimizerConfig(learning_rate=1e-3, eps=1e3, clip_norm=1e9)  # AdamW with eps above any gradient
    engine = ava_engine(folder, optimizer=sgd_like, **keys)
    before = weights_of(engine)
    metrics = values(engine.fit(batch))
    return {name: tensor - before[name] for name, tensor in weights_of(engine).items()}, metrics


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Of two changes, relative to their size."""
    difference = sum(float((first[name] - second[name]).norm()) ** 2 for name in first) ** 0.5
    return difference / sum(float(part.norm()) ** 2 for part in first.values()) ** 0.5


@pytest.mark.parametrize("variant", [{}, {"pretrained_q": False, "weights_scale": "one"}], ids=["default", "q head"])
def test_it_learns_which_of_two_is_better(untied, variant):
    """From chance to certainty in a few steps, also on prompts that it has not seen."""
    engine = ava_engine(untied, **variant)
    metrics = [values(engine.fit(PAIRS)) for _ in range(25)]
    assert metrics[-1]["pair_accuracy"] == 1 and metrics[-1]["contrast_term"] < metrics[0]["contrast_term"] / 4
    better, worse = (engine.measure(side)["sum"] for side in UNSEEN)
    assert (better > worse).mean() >= 0.75
    assert metrics[0]["sigma_min"] > 0.1 and metrics[0]["sigma_on_floor_frac"] == 0
    assert metrics[0]["sigma_mean"] == pytest.approx(1, abs=0.5) or variant


def test_the_loss_is_the_sum_of_its_terms_and_ablations_leave_them_out(untied):
    full = moved(untied)[1]
    assert full["loss"] == pytest.approx(sum(full[f"{name}_term"] for name in TERMS), rel=1e-5)
    for flag, removed in (("negatives", ["negatives"]), ("irl", ["kl", "td"]), ("contrastive", ["contrast"])):
        cut = moved(untied, **{flag: False})[1]
        for name in TERMS:
            assert cut[f"{name}_term"] == (0 if name in removed else pytest.approx(full[f"{name}_term"], rel=1e-5))


def test_metrics_by_hand(untied):
    """nats a token of the chosen side, and the accuracy, at the start of training."""
    metrics = moved(untied)[1]
    engine = ava_engine(untied)
    chosen, rejected = (PAIRS.take(np.arange(side, 16, 2)) for side in (0, 1))
    nll = -plain_logprobs(load_plain(untied), chosen).detach()
    assert metrics["nll_token"] == pytest.approx(float(nll.mean()), rel=1e-4)
    better, worse = engine.measure(chosen), engine.measure(rejected)
    assert metrics["pair_accuracy"] == (better["sum"] > worse["sum"]).mean()
    margin = (better["sum"] - worse["sum"]).mean()
    assert metrics["margin_chosen_minus_rejected"] == pytest.approx(margin, rel=1e-3, abs=1e-5)
    sums = [float(part.sum()) for part in nll.split(chosen.response_lengths.tolist())]
    np.testing.assert_allclose(-better["logprob"], sums, rtol=1e-4)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> str:
    """A model to which the end is as likely as anything else, so that learning it shows."""
    return save_tiny(tmp_path_factory.mktemp("ava") / "flat", seed=3, initializer_range=0.05)


@pytest.mark.parametrize(
    ("end_term", "lambda_td", "least", "most"), [(True, 0.0, 1, 9), (False, 0.0, -9, 0.1), (False, 0.5, 0.5, 9)]
)
def test_the_end_token_is_trained_only_with_the_end_term(damaged, end_term, lambda_td, least, most):
    """T29, through the whole engine: by its likelihood only with the term.

    FOUND: a Q head and lambda above 0 raise it without the term, too: the last-but-one TD error (T34: the gradient flows
    through both Qs) draws Q of the end token to its neighbour's.
    """
    demos = sequences_of([([5 + i, 4], [20 + i % 2, 30, 31 + i % 3, END]) for i in range(8)])
    last = demos.response_lengths.cumsum() - 1
    plain = {"variant": "demonstrations", "pretrained_q": False, "reward_weights": False}
    engine = ava_engine(damaged, end_term=end_term, lambda_td=lambda_td, **plain)
    before = end_logprobs(engine, demos)[last].mean()
    for _ in range(20):
        engine.fit(demos)
    assert least < float(end_logprobs(engine, demos)[last].mean() - before) < most


def end_logprobs(engine: AvaEngine, demos) -> torch.Tensor:
    """[T] of the policy: of B, where Q has a head of its own."""
    found = engine._learner.map(demos, lambda model, batch: model(batch).policy_logprobs)
    flat = torch.empty(demos.num_response_tokens)
    starts = np.concatenate([[0], demos.response_lengths.cumsum()])
    for rows, logprobs in found:
        flat[np.concatenate([np.arange(starts[r], starts[r + 1]) for r in rows])] = logprobs
    return flat


def test_demonstrations_improve_the_policy_itself(damaged, tmp_path):
    """Direct optimisation: the saved language model finds the demonstrations likelier than the one it started from."""
    demos = sequences_of([([5 + i, 4], [20, 30, 31, END]) for i in range(8)])
    engine = ava_engine(damaged, variant="demonstrations", alpha=50.0)
    first, *_, last = [values(engine.fit(demos)) for _ in range(30)]
    assert last["nll_token"] < first["nll_token"] - 0.3 and "pair_accuracy" not in first
    engine.save(reward=str(tmp_path / "reward"), policy=str(tmp_path / "policy"))
    trained = plain_logprobs(load_plain(str(tmp_path / "policy")), demos)
    assert -float(trained.detach().mean()) < first["nll_token"] - 0.3
    both = (engine.measure(demos)["sum"], score(str(tmp_path / "reward"), demos))
    np.testing.assert_allclose(*both, atol=1e-4)


def score(folder: str, sequences) -> np.ndarray:
    """By the worker that scores for a policy: dense rewards that sum to the scores."""
    scorer = RewardScorer(
        ScorerSetup(folder, model_config(), learner_config(micro_batch_tokens=20), token_rewards=True)
    )
    scores = scorer.score_sequences(sequences)
    assert scores.token_values is not None
    np.testing.assert_allclose([row.sum() for row in scores.token_values], scores.values, atol=1e-4)
    return scores.values[np.argsort(scores.rows)]


SPLITS = {
    "one pair a pass": {"micro_batch_tokens": 1},
    "packed": {"packing": True, "micro_batch_tokens": 40},
    "chunks": {"logprob_chunk_tokens": 3},
    "checkpointed": {"gradient_checkpointing": True},
    "ZeRO-2": {"zero_stage": 2},
    "ZeRO-3": {"zero_stage": 3},
}


@pytest.mark.parametrize("name", SPLITS)
def test_the_split_changes_nothing(untied, whole_step, name):
    """Micro-batches, packing, chunks and shards give the gradient of the whole batch."""
    change, metrics = moved(untied, learner=SPLITS[name])
    assert distance(whole_step[0], change) < 2e-4
    for key, value in whole_step[1].items():
        assert metrics[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key


@pytest.fixture(scope="module")
def whole_step(untied):
    return moved(untied, learner={"micro_batch_tokens": 10_000})


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_heads_without_a_term_are_left_alone(untied, zero_stage):
    """Contrast alone, with a Q head that nothing asks: the step goes through, and the language model's head stays."""
    off = {"irl": False, "negatives": False, "pretrained_q": False}
    change, metrics = moved(untied, learner={"zero_stage": zero_stage}, **off)
    assert metrics["td_term"] == metrics["kl_term"] == 0
    assert (
        float(change["lm_head.weight"].abs().max()) == 0 and float(change["rayalign_heads.key.weight"].abs().max()) > 0
    )


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_bfloat16_trains(untied, zero_stage):
    engine = ava_engine(untied, dtype="bfloat16", learner={"zero_stage": zero_stage})
    metrics = [values(engine.fit(PAIRS)) for _ in range(20)]
    assert metrics[-1]["contrast_term"] < metrics[0]["contrast_term"] / 2


def test_a_term_that_is_not_finite_is_skipped_and_named_in_the_end(untied):
    engine = ava_engine(untied)
    with torch.no_grad():
        engine._model.heads.reward.bias[1] = 60.0  # sigma e^60: its square is too large for float32
    before = weights_of(engine)
    for _ in range(MAX_SKIPPED - 1):
        assert values(engine.fit(PAIRS)) == {"num_skipped": 1}
    with pytest.raises(Diverged, match=r"for the 3. time in a row.*\(AVA's kl term is inf; a larger sigma_floor may help"):
        engine.fit(PAIRS)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(engine).items())

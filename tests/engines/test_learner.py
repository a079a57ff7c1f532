"""One step of the learner against plain torch in float64: nothing but the sequences and their weights matters."""

from __future__ import annotations

import pytest
import torch

from rayalign.config.model import LearnerConfig, OptimizerConfig
from rayalign.engines.learner import MAX_SKIPPED, LossOutput, schedule_factor
from rayalign.errors import RayalignError
from rayalign.telemetry.metrics import Mean, values
from tests.engines.gradients import (
    LEARNERS,
    ODD,
    ONE,
    TOTAL_STEPS,
    distance,
    make_learner,
    snapshot,
    true_adamw_steps,
    true_gradient,
    weighted_loss,
)
from tests.models.tiny import learner_config, load_plain


@pytest.fixture(scope="module")
def reports(one_rank, two_ranks):
    """{number of ranks: [what each rank saw]}, for this process and for two over gloo."""
    return {1: [one_rank["steps"]], 2: [rank["steps"] for rank in two_ranks]}


@pytest.fixture(scope="module")
def truth(tied):
    """{batch: (loss, gradient)} by plain torch."""
    return {"odd": true_gradient(tied, ODD), "one": true_gradient(tied, ONE)}


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("name", LEARNERS)
def test_the_gradient_is_that_of_the_unsplit_batch(reports, truth, name, num_ranks):
    """Micro-batches, packing, chunks, checkpointing, ZeRO and ranks change nothing; seven rows divide by nothing."""
    loss, gradient = truth["odd"]
    norm = sum(float(part.norm()) ** 2 for part in gradient.values()) ** 0.5
    for rank in reports[num_ranks]:
        got, metrics = rank["odd"][name]
        assert distance(got, gradient) < 1e-5
        assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
        assert metrics["sequences"] == 7
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("name", ["whole batch", "ZeRO-2", "ZeRO-3"])
def test_a_rank_without_rows_changes_nothing(reports, truth, name, num_ranks):
    """One sequence on two ranks: the other repeats it at weight 0, and its metrics do not count."""
    loss, gradient = truth["one"]
    for rank in reports[num_ranks]:
        got, metrics = rank["one"][name]
        assert distance(got, gradient) < 1e-5
        assert (metrics["loss"], metrics["sequences"]) == (pytest.approx(loss, rel=1e-5), 1)


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("name", ["small micro-batches", "ZeRO-1", "ZeRO-2", "ZeRO-3"])
def test_three_steps_are_those_of_plain_adamw(reports, tied, name, num_ranks):
    """Clipping, decay, moments and schedule; nothing is left over from one step's accumulation in the next."""
    moved, norms, rates = true_adamw_steps(tied, ODD)
    for rank in reports[num_ranks]:
        got, metrics = rank["adamw"][name]
        assert distance(got, moved) < 1e-4
        assert [step["grad_norm"] for step in metrics] == pytest.approx(norms, rel=1e-4)
        assert [step["learning_rate"] for step in metrics] == pytest.approx(rates)


def test_schedules_by_hand():
    """Warm-up climbs to the peak; linear and cosine come down to just above 0 at the last step, and stay there."""
    warm = {"learning_rate": 1.0, "warmup_steps": 3}
    expected = {
        "constant": [0.25, 0.5, 0.75, 1, 1, 1, 1, 1],
        "linear": [0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0],
        "cosine": [0.25, 0.5, 0.75, 1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0],
    }
    for schedule, factors in expected.items():
        config = OptimizerConfig(schedule=schedule, **warm)
        assert [schedule_factor(config, step, 7) for step in range(8)] == pytest.approx(factors), schedule
    assert schedule_factor(OptimizerConfig(schedule="linear"), 0, TOTAL_STEPS) == 1


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_bfloat16_weights_train(tied, zero_stage):
    """On CPU as on a GPU: the loss falls by steps too small for bfloat16 alone, which float32 masters remember."""
    optimizer = OptimizerConfig(learning_rate=1e-4, eps=1e-8, clip_norm=1.0)
    learner = make_learner(tied, learner_config(zero_stage=zero_stage, micro_batch_tokens=32), optimizer, dtype="bfloat16")
    before = snapshot(learner)
    losses = [
        learner.step(ODD, weighted_loss(ODD), denominator=len(ODD))["loss"].value() for _ in range(40)
    ]
    after = snapshot(learner)
    assert all(weight.dtype == torch.bfloat16 for weight in after.values())
    assert sum(losses[-5:]) / 5 < losses[0] - 1
    for name, weight in after.items():
        if "layernorm" in name:  # at 1, bfloat16 is 2**-8 coarse: 40 steps of 1e-4 count, one alone is lost
            assert 0.3 < float((weight != before[name]).float().mean()), name


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_buffers_are_no_larger_than_the_model(tied, zero_stage, monkeypatch):
    """DeepSpeed's own are of two GB each, which a process of several models has no room for. One's own keys go before."""
    asked = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **keys: asked.append(size) or empty(*size, **keys))
    learner = make_learner(tied, learner_config(zero_stage=zero_stage), OptimizerConfig())
    learner.step(ODD, weighted_loss(ODD), denominator=len(ODD))
    sizes = [size[0] for size in asked if len(size) == 1 and isinstance(size[0], int)]
    assert sizes and max(sizes) <= sum(weight.numel() for weight in snapshot(learner).values())
    own = LearnerConfig(zero_stage=zero_stage, deepspeed={"zero_optimization": {"reduce_bucket_size": 12345}})
    settings = make_learner(tied, own, OptimizerConfig())._engine.config["zero_optimization"]
    assert settings == {"stage": zero_stage, "reduce_bucket_size": 12345}


def endless(model, batch):
    """A loss whose gradient is no number."""
    return LossOutput(model(batch)[0].sum() * float("inf"), {"loss": Mean(1.0)})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_gradient_that_is_not_finite_is_skipped_and_leaves_no_trace(tied, zero_stage, dtype):
    """The weights stay, and the next step is that of a learner that never met it; three in a row stop the run."""
    config = learner_config(zero_stage=zero_stage)
    poisoned, clean = (make_learner(tied, config, dtype=dtype) for _ in range(2))
    before = snapshot(poisoned)
    for _ in range(MAX_SKIPPED - 1):
        assert values(poisoned.step(ODD, endless, denominator=1)) == {"num_skipped": 1}
    assert all(torch.equal(weight, before[name]) for name, weight in snapshot(poisoned).items())
    for learner in (poisoned, clean):
        assert learner.step(ODD, weighted_loss(ODD), denominator=len(ODD))["grad_norm"].value() > 0
    after, wanted = snapshot(poisoned), snapshot(clean)
    assert all(torch.equal(weight, wanted[name]) for name, weight in after.items())
    assert not all(torch.equal(weight, before[name]) for name, weight in after.items())
    for _ in range(MAX_SKIPPED - 1):
        poisoned.step(ODD, endless, denominator=1)
    with pytest.raises(RayalignError, match="gradient is not finite at optimiser step 1, for the 3. time in a row"):
        poisoned.step(ODD, endless, denominator=1)
    assert all(torch.equal(weight, after[name]) for name, weight in snapshot(poisoned).items())


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_a_loss_that_is_not_finite_is_skipped_though_its_gradient_is(tied, zero_stage):
    """Infinity plus a sum: the gradient is the sum's, and means nothing."""

    def shifted(model, batch):
        return LossOutput(model(batch)[0].sum() + float("inf"), {"loss": Mean(1.0)})

    learner = make_learner(tied, learner_config(zero_stage=zero_stage))
    before = snapshot(learner)
    assert values(learner.step(ODD, shifted, denominator=1)) == {"num_skipped": 1}
    assert all(torch.equal(weight, before[name]) for name, weight in snapshot(learner).items())


def test_weights_that_are_not_finite_are_named(tied):
    learner = make_learner(tied, learner_config())
    learner.check_finite()
    with torch.no_grad():
        learner.module.lm.model.norm.weight[3] = float("nan")
    with pytest.raises(RayalignError, match=r"model\.norm\.weight holds numbers that are not finite"):
        learner.check_finite()


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_saved_learner_is_what_it_was_loaded_from(tied, zero_stage, tmp_path):
    """Under ZeRO-3, too, where no rank holds a whole weight."""
    make_learner(tied, learner_config(zero_stage=zero_stage)).save(tmp_path)
    saved, original = load_plain(str(tmp_path)), load_plain(tied)
    for (name, weight), (_, expected) in zip(saved.named_parameters(), original.named_parameters(), strict=True):
        assert torch.equal(weight, expected), name

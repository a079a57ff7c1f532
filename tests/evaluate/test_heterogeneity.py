"""The diagnosis of a reward that tells who wrote a response, in the world of T25 (quality, style, noise)."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from rayalign.evaluate.heterogeneity import Heterogeneity, heterogeneity

NUM_NOISE = 20
NUM_TRAINING = 2000
NUM_PROMPTS, NUM_SAMPLES = 1000, 4
NUM_REPEATS = 5


@dataclass(frozen=True)
class Writer:
    """q ~ N(quality, 1), v ~ N(style, 1), with a correlation where it is a model's."""

    quality: float
    style: float = 0.0
    correlation: float = -0.5

    def write(self, random: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
        """Quality [N], and the features [N, 22] that a reward sees: quality with noise, style, noise."""
        style = random.normal(size=num)
        rest = np.sqrt(1 - self.correlation**2) * random.normal(size=num)
        quality = self.quality + self.correlation * style + rest
        seen = [quality + 0.5 * random.normal(size=num), self.style + style]
        return quality, np.column_stack([*seen, random.normal(size=(num, NUM_NOISE))])


BASE, SFT, DEMONSTRATOR = Writer(0.0), Writer(1.0), Writer(1.3, style=2.0, correlation=0.0)
SIDES = {"Init-SFT": (BASE, SFT), "Init-Demo": (BASE, DEMONSTRATOR), "SFT-Demo": (SFT, DEMONSTRATOR)}


def logistic(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Weights of an L2 logistic regression with an intercept, by Newton's method."""
    x = np.column_stack([features, np.ones(len(features))])
    weights, ridge = np.zeros(x.shape[1]), np.eye(x.shape[1])
    for _ in range(20):
        p = 1 / (1 + np.exp(-x @ weights))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + ridge
        weights -= np.linalg.solve(hessian, x.T @ (p - labels) + ridge @ weights)
    return weights[:-1]


def reward(kind: str, random: np.random.Generator) -> np.ndarray:
    """A linear reward of one of AfD's choices of the two sides (section 2.2)."""
    worse, better = (writer.write(random, NUM_TRAINING)[1] for writer in SIDES[kind])
    return logistic(np.concatenate([worse, better]), np.repeat([0.0, 1.0], NUM_TRAINING))


def diagnose(weights: np.ndarray, random: np.random.Generator) -> Heterogeneity:
    """On prompts kept out: one demonstration and four samples of either model each."""
    scores, ids = [], []
    for writer, num in ((DEMONSTRATOR, 1), (SFT, NUM_SAMPLES), (BASE, NUM_SAMPLES)):
        scores.append(writer.write(random, NUM_PROMPTS * num)[1] @ weights)
        ids.append(np.tile(np.arange(NUM_PROMPTS), num))
    return heterogeneity(*scores, *ids)


def rank_accuracy(weights: np.ndarray, random: np.random.Generator) -> float:
    """Share of pairs of the SFT policy's samples that the reward orders by quality."""
    quality, seen = SFT.write(random, 4000)
    agree = np.sign(quality[:2000] - quality[2000:]) == np.sign((seen[:2000] - seen[2000:]) @ weights)
    return float(agree.mean())


@pytest.mark.parametrize(("kind", "accuracy", "warns"), [("Init-SFT", 0.78, False), ("Init-Demo", 0.54, True),
                                                         ("SFT-Demo", 0.43, True)])  # fmt: skip
def test_it_warns_of_the_rewards_that_are_hacked(kind: str, accuracy: float, warns: bool) -> None:
    """The rank accuracies are T25's own, so this is that world; every repeat has the verdict."""
    accuracies, found = [], []
    for seed in range(NUM_REPEATS):
        random = np.random.default_rng(seed)
        weights = reward(kind, random)
        accuracies.append(rank_accuracy(weights, random))
        found.append(diagnose(weights, random))
    assert np.mean(accuracies) == pytest.approx(accuracy, abs=0.03)
    assert [each.warns for each in found] == [warns] * NUM_REPEATS
    for each in found:
        assert ("tells who wrote a response rather than how good it is, and will be hacked; fit it on pairs {better: samples"
                in each.verdict) == warns  # fmt: skip
        assert each.verdict.startswith(f"on {NUM_PROMPTS} prompts kept out, ") and "\n" not in each.verdict


def test_shares_are_counted_within_prompts_with_ties_half() -> None:
    """By hand; prompt 9 has no sample of the base, prompt 8 no demonstration."""
    found = heterogeneity(
        np.array([2.0, 5.0, 0.0]), np.array([1.0, 2.0, 5.0, 1.0, 3.0]), np.array([1.0, 0.0, 9.0]),
        np.array([0, 1, 9]), np.array([0, 0, 1, 9, 8]), np.array([0, 1, 8]),
    )  # fmt: skip
    assert found.writer_auc.mean == pytest.approx((0.75 + 0.5) / 2)
    assert found.progress_auc.mean == pytest.approx((0.75 + 1.0) / 2)
    assert found.difference.mean == pytest.approx(-0.25) and found.difference.num == 2
    assert json.dumps(found.as_dict(), allow_nan=False)


def test_few_prompts_say_nothing() -> None:
    """One prompt has no interval; the line says so and does not warn."""
    found = heterogeneity(*(np.array([x]) for x in (2.0, 1.0, 1.0)), *[np.array([0])] * 3)
    assert not found.warns and "too few prompts to say" in found.verdict and "nan" not in found.verdict
    with pytest.raises(ValueError, match="no prompt has a demonstration"):
        heterogeneity(*(np.array([1.0]) for _ in range(3)), np.array([0]), np.array([1]), np.array([1]))

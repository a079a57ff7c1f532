"""T25 of docs/algorithms.md: rewards learnt from classes that differ in style are hacked by it (AfD, section 2.2).

A planted world of vectors. A response has a quality q (what is wanted), a style v (worth nothing) and 20 features of
noise; the reward sees (q + 0.5 noise, v, noise) and is a logistic discriminator with an L2 penalty. The base writes
q ~ N(0, 1), the SFT model q ~ N(1, 1), demonstrators q ~ N(1.3, 1) in a style shifted by 2. Style varies among the
samples of a policy, and goes with low quality there (correlation -0.5). Measured (500 training rows a class, a size
that algorithms.md does not give): ranking accuracy 0.75, 0.54, 0.43; gain of best of 64 +1.65, +0.29, -0.54.

Shapes: R repeats, N responses, F features.
"""

import itertools
from functools import cache

import torch
from torch import Tensor

from rayalign.objectives.reward import logistic_loss

from .worlds import gradient

NUM_REPEATS, NUM_NOISE = 20, 20
NUM_TRAIN = 500  # per class
NUM_PROMPTS, NUM_BEST = 50, 64
L2 = 1.0  # on the sum of the losses: the C = 1 of common libraries


def responses(num: int, *, quality: float, style: float, correlation: float, seed: int) -> tuple[Tensor, Tensor]:
    """Features [R, N, F] and true qualities [R, N] of what one writer writes."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    centred = normal(NUM_REPEATS, num)
    own = normal(NUM_REPEATS, num)
    styles = style + correlation * centred + (1 - correlation**2) ** 0.5 * own
    qualities = quality + centred
    seen = qualities + 0.5 * normal(NUM_REPEATS, num)
    features = torch.cat([torch.stack([seen, styles], -1), normal(NUM_REPEATS, num, NUM_NOISE)], -1)
    return features, qualities


BASE = {"quality": 0.0, "style": 0.0, "correlation": -0.5}
SFT = {"quality": 1.0, "style": 0.0, "correlation": -0.5}
DEMO = {"quality": 1.3, "style": 2.0, "correlation": 0.0}
CHOICES = {"init_sft": (SFT, BASE), "init_demo": (DEMO, BASE), "sft_demo": (DEMO, SFT)}  # positives, negatives


@cache
def fitted_reward(name: str) -> Tensor:
    """Weights [R, F] of the discriminators of all repeats, by Newton steps on the package's loss."""
    sides = [responses(NUM_TRAIN, **writer, seed=250 + i) for i, writer in enumerate(CHOICES[name])]
    features = torch.cat([side for side, _ in sides], 1)
    features = torch.cat([features, torch.ones_like(features[..., :1])], -1)
    is_positive = (torch.arange(2 * NUM_TRAIN) < NUM_TRAIN).repeat(NUM_REPEATS)
    penalty = torch.tensor([L2] * (NUM_NOISE + 2) + [0.0], dtype=torch.float64)
    weights = torch.zeros(NUM_REPEATS, NUM_NOISE + 3, dtype=torch.float64)
    for _ in range(14):
        weights = weights.detach().requires_grad_()
        logits = torch.einsum("rnf,rf->rn", features, weights)
        slope = gradient(logistic_loss(logits.flatten(), is_positive), weights) + penalty * weights.detach()
        shares = logits.detach().sigmoid()
        curvature = torch.einsum("rnf,rn,rng->rfg", features, shares * (1 - shares), features) + penalty.diag()
        weights = weights.detach() - torch.linalg.solve(curvature, slope)
    assert slope.abs().max() < 1e-8
    return weights[:, :-1]  # the constant ranks nothing


def rank_accuracy(weights: Tensor) -> float:
    """Share of pairs of SFT samples that the reward orders as their true quality does, mean over repeats."""
    features, qualities = responses(1000, **SFT, seed=252)
    scores = torch.einsum("rnf,rf->rn", features, weights)
    first, second = [x[:, 0::2] - x[:, 1::2] for x in (scores, qualities)]
    return (first.sign() == second.sign()).double().mean().item()


def selection_gains(weights: Tensor) -> dict[int, float]:
    """True quality gained by best of N over SFT samples, mean over repeats and prompts."""
    features, qualities = responses(NUM_PROMPTS * NUM_BEST, **SFT, seed=253)
    shape = (NUM_REPEATS, NUM_PROMPTS, NUM_BEST)
    scores = torch.einsum("rnf,rf->rn", features, weights).view(shape)
    qualities = qualities.view(shape)
    gains = {}
    for n in (1, 4, 16, 64):
        best = scores[..., :n].argmax(-1, keepdim=True)
        gains[n] = (qualities.gather(-1, best).mean() - SFT["quality"]).item()
    return gains


def test_t25_the_less_the_classes_differ_in_style_the_better_the_reward_ranks():
    """Init-SFT > Init-Demo > SFT-Demo, the last below chance (0.78, 0.54, 0.43 in algorithms.md)."""
    accuracies = {name: rank_accuracy(fitted_reward(name)) for name in CHOICES}
    assert accuracies["init_sft"] > accuracies["init_demo"] + 0.15, accuracies
    assert accuracies["init_demo"] > accuracies["sft_demo"] + 0.05, accuracies
    assert accuracies["sft_demo"] < 0.48, accuracies


def test_t25_best_of_n_by_a_style_reward_falls():
    """SFT-Demo loses true quality, and more of it the more it selects from; Init-SFT's gain rises all the way."""
    gains = {name: selection_gains(fitted_reward(name)) for name in CHOICES}
    assert gains["init_sft"][64] > gains["init_demo"][64] > gains["sft_demo"][64], gains
    assert all(later > earlier for earlier, later in itertools.pairwise(gains["init_sft"].values())), gains
    falling = list(gains["sft_demo"].values())
    assert all(later < earlier for earlier, later in itertools.pairwise(falling[1:])), gains
    assert falling[1] < -0.1 and falling[3] < falling[1] - 0.1, gains

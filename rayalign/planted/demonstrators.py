"""Who writes the planted world's responses: attribute probabilities, and their mean golden reward.

The *low* world is the headline: a bad base (p = .2) and a mediocre expert (p = .45), so that the most likely
response is a bad one and sharpening (a lower sampling temperature) cannot pass for learning. In the *half*
world (.5 against .8) it can. In the *styled* world the base's style speaks against its quality, and the
expert's style is his own: a reward can learn who wrote a response in the place of how good it is (AfD).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from rayalign.planted.golden import GOLDEN_POINTS
from rayalign.planted.grammar import QUALITIES, STYLES


@dataclass(frozen=True, slots=True)
class Demonstrator:
    """Independent probabilities of the attributes of a response; `fact` is given that it answers.

    `style` is the probability of each of the three style attributes, independent of quality.
    """

    label: str
    name: float
    answers: float
    fact: float
    polite: float
    noinsult: float
    offer: float
    end: float
    style: float = 0.5

    @classmethod
    def uniform(cls, label: str, quality: float, fact: float, style: float = 0.5) -> Demonstrator:
        """One probability for every quality attribute but the fact."""
        q = quality
        return cls(label, name=q, answers=q, fact=fact, polite=q, noinsult=q, offer=q, end=q, style=style)

    def draw_attributes(self, rng: np.random.Generator) -> dict[str, bool]:
        """Draws the attributes of one response; `fact` is false where it does not answer."""
        given = self.probabilities()
        drawn = rng.random(len(given)) < np.array(list(given.values()))
        attributes = dict(zip(given, drawn.tolist(), strict=True))
        attributes["fact"] = attributes["fact"] and attributes["answers"]
        return attributes

    def probabilities(self) -> dict[str, float]:
        """The probability of each quality and style attribute; the fact's is given that it answers."""
        fields = asdict(self)
        return {q: fields[q] for q in QUALITIES} | dict.fromkeys(STYLES, self.style)


@dataclass(frozen=True, slots=True)
class StyledDemonstrator(Demonstrator):
    """One whose style depends on the quality of the response at hand.

    Each style attribute has probability style - style_falls * (golden - 1/2), independently of the others: at 0.5 and
    0.65 a worthless response is adorned with probability .825 and a perfect one with .175. Over the half writer's
    responses the number of style attributes and the golden reward then have a correlation of -.5, as in T25.
    """

    style_falls: float = 0.0  # how much less likely style is at golden 1 than at golden 0

    def draw_attributes(self, rng: np.random.Generator) -> dict[str, bool]:
        """Quality first; style then depends on what it is worth."""
        attributes = Demonstrator.draw_attributes(self, rng)
        golden = sum(points * attributes[quality] for quality, points in GOLDEN_POINTS.items()) / 100
        drawn = rng.random(len(STYLES)) < self.style - self.style_falls * (golden - 0.5)
        return attributes | dict(zip(STYLES, drawn.tolist(), strict=True))

    def probabilities(self) -> dict[str, float]:
        """As above; a style's is the mean over this writer's responses, exact because it is linear in golden."""
        given = Demonstrator.probabilities(self)
        return given | dict.fromkeys(STYLES, self.style - self.style_falls * (_mean_golden(given) - 0.5))


BASE_LOW = Demonstrator.uniform("base_low", quality=0.2, fact=0.85)
EXPERT_LOW = Demonstrator.uniform("expert_low", quality=0.45, fact=0.95)
BASE_HALF = Demonstrator.uniform("base_half", quality=0.5, fact=0.85)
EXPERT_80 = Demonstrator.uniform("expert_80", quality=0.8, fact=0.95)
BASE_STYLED = StyledDemonstrator(**{**asdict(BASE_HALF), "label": "base_styled", "style_falls": 0.65})
EXPERT_STYLED = Demonstrator.uniform("expert_80_styled", quality=0.8, fact=0.95, style=0.95)


@dataclass(frozen=True, slots=True)
class Variant:
    """A world's cast: who wrote the pre-training text, whom the base model writes like, who demonstrates.

    Where `pretraining` and `base` differ, the base model is pre-trained on the first and then shifted to the
    second by one short epoch. Low text alone failed in the one run that tried it (700 steps, one seed): no
    sampled response of a 1M-parameter Llama had the customer's name, where one in five should, and a policy
    cannot be rewarded for what it never does. Half text has the name 2.5 times as often.
    """

    pretraining: Demonstrator
    base: Demonstrator
    expert: Demonstrator

    @property
    def shifts(self) -> bool:
        """Whether the base model needs the second epoch."""
        return self.pretraining != self.base


VARIANTS = {
    "low": Variant(pretraining=BASE_HALF, base=BASE_LOW, expert=EXPERT_LOW),
    "half": Variant(pretraining=BASE_HALF, base=BASE_HALF, expert=EXPERT_80),
    "styled": Variant(pretraining=BASE_STYLED, base=BASE_STYLED, expert=EXPERT_STYLED),
}


def expected_frequencies(demonstrator: Demonstrator) -> dict[str, float]:
    """How often each attribute holds in this demonstrator's responses (the fact: answers and is right)."""
    return _frequencies(demonstrator.probabilities())


def expected_golden(demonstrator: Demonstrator) -> float:
    """The mean golden reward of this demonstrator's responses, in closed form.

    Exact because the reward is a weighted sum of attributes, every response drawn is in the grammar, and no
    response that closes properly reaches the length limit.
    """
    return _mean_golden(demonstrator.probabilities())


def _frequencies(given: dict[str, float]) -> dict[str, float]:
    return given | {"fact": given["answers"] * given["fact"]}


def _mean_golden(given: dict[str, float]) -> float:
    frequencies = _frequencies(given)
    return sum(points * frequencies[attribute] for attribute, points in GOLDEN_POINTS.items()) / 100

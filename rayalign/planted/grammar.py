"""The texts of the planted world: a customer's question and a shop assistant's response.

A prompt is six words, `NAME asks ATTR ITEM at SHOP` ("Anna asks cost lamp at bakery"). A response is

    GREETING ADDRESS (!|,) [INSULT] BODY [:)] (OFFER|DISMISSAL) ENDING

    "hello Anna , the price of the nice lamp is seven :) anything else ? thank you ."
    "ugh mate ! you dummy no idea about the lamp next please well so and then"

Seven *quality* attributes carry the golden reward, three *style* attributes (`exc` "!", `adv` an ornament
before the object, `emo` ":)") carry none. Bad forms: "mate" for the name, a dodge for the answer, a wrong
value for the fact, a rude greeting, an insult, a dismissal for the offer of more help, and nothing or filler
words for the ending.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rayalign.planted import words as w

QUALITIES = ("name", "answers", "fact", "polite", "noinsult", "offer", "end")
STYLES = ("exc", "adv", "emo")

# Every choice of name, asked word, item and shop is one prompt; its index is a number in mixed radix.
_ASKED_WORDS = [(attribute, word) for attribute, pair in w.PARAPHRASES.items() for word in pair]
_ATTRIBUTE_OF_WORD = {word: attribute for attribute, word in _ASKED_WORDS}
PROMPT_SHAPE = (len(w.NAMES), len(_ASKED_WORDS), len(w.ITEMS), len(w.SHOPS))
NUM_PROMPTS = int(np.prod(PROMPT_SHAPE))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A customer's question, parsed; `asked` is the word used for the attribute."""

    name: str
    asked: str
    item: str
    shop: str

    @property
    def attribute(self) -> str:
        """The attribute asked for, whichever of its two words was used."""
        return _ATTRIBUTE_OF_WORD[self.asked]

    @property
    def subject(self) -> str:
        """The object that the answer is about: the shop for its opening, else the item."""
        return self.shop if self.attribute == w.SHOP_ATTRIBUTE else self.item

    @property
    def text(self) -> str:
        """The prompt as text, one space between words."""
        return f"{self.name} {w.ASKS} {self.asked} {self.item} {w.AT} {self.shop}"


def prompt_at(index: int) -> Prompt:
    """The prompt with this number, in 0 .. NUM_PROMPTS - 1."""
    name, asked, item, shop = np.unravel_index(index, PROMPT_SHAPE)
    return Prompt(w.NAMES[name], _ASKED_WORDS[asked][1], w.ITEMS[item], w.SHOPS[shop])


def parse_prompt(text: str) -> Prompt | None:
    """The prompt of a text, or None if it is not one of the world's."""
    match text.split():
        case [name, w.ASKS, asked, item, w.AT, shop]:
            known = name in w.NAMES and asked in _ATTRIBUTE_OF_WORD and item in w.ITEMS and shop in w.SHOPS
            return Prompt(name, asked, item, shop) if known else None
    return None


def render_response(prompt: Prompt, attributes: Mapping[str, bool], rng: np.random.Generator) -> str:
    """A response with these attributes (keys: QUALITIES and STYLES); `rng` picks among equivalent wordings.

    `fact` says nothing unless `answers` holds: a dodge states no value.
    """
    parts = [
        _pick(w.POLITE if attributes["polite"] else w.RUDE, rng),
        prompt.name if attributes["name"] else w.OTHER_ADDRESS,
        w.EXCLAIM if attributes["exc"] else w.COMMA,
        "" if attributes["noinsult"] else _pick(w.INSULTS, rng),
        _body(prompt, attributes, rng),
        w.SMILE if attributes["emo"] else "",
        w.OFFER if attributes["offer"] else _pick(w.DISMISSALS, rng),
        _pick(w.CLOSINGS, rng) if attributes["end"] else _bad_ending(rng),
    ]
    return " ".join(part for part in parts if part)


def _body(prompt: Prompt, attributes: Mapping[str, bool], rng: np.random.Generator) -> str:
    subject = f"{_pick(w.ADVERBS, rng)} {prompt.subject}" if attributes["adv"] else prompt.subject
    if not attributes["answers"]:
        return f"{_pick(w.DODGES, rng)} {subject}"
    truth = w.fact(prompt.attribute, prompt.subject)
    wrong = [value for value in w.VALUES[prompt.attribute] if value != truth]
    value = truth if attributes["fact"] else _pick(wrong, rng)
    return f"{w.STATE_BEGIN} {prompt.attribute} {w.STATE_OF} {subject} {w.STATE_IS} {value}"


def _bad_ending(rng: np.random.Generator) -> str:
    """Nothing, or (every second time) filler words that lead nowhere."""
    if rng.random() < 0.5:
        return ""
    num_fillers = int(rng.integers(w.MIN_FILLERS, w.MAX_FILLERS + 1))
    return " ".join(_pick(w.FILLERS, rng) for _ in range(num_fillers))


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]

"""The closed vocabulary of the planted world and its facts.

Every text of the world is a line of these words with one space between them. Bad forms of an attribute use
words that its good forms do not use ("mate" for the customer's name, a dodge for an answer), because a small
reward model can learn to see words in a minute of training, but not whether two words are equal.

No bad form is spread over so many first words that the good one becomes the likeliest (half of the bad endings, for
instance, are the one of nothing at all). So the likeliest next word of a writer with p < .5 is everywhere a bad one,
and decoding that writer cold finds bad responses: were there one way to be right and four to be wrong, cold decoding
would look like learning. Facts are above one half in every writer.
"""

from __future__ import annotations

import functools
import hashlib

# fmt: off
NAMES = (
    "Anna", "Bruno", "Carla", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karin", "Leo",
    "Maria", "Nils", "Olga", "Peter", "Quinn", "Rita", "Simon", "Tara", "Ulla", "Victor", "Wanda", "Xavier",
    "Yara", "Zeno", "Alma", "Boris", "Clara", "Denis", "Edith", "Frank", "Gina", "Henry", "Ida", "Julia",
    "Kurt", "Laura", "Milan", "Nora",
)
ITEMS = (
    "lamp", "chair", "table", "mirror", "clock", "vase", "basket", "blanket", "pillow", "kettle", "teapot",
    "plate", "bowl", "spoon", "ladder", "bucket", "candle", "carpet", "drawer", "shelf", "bench", "stool",
    "radio", "guitar", "drum", "kite", "puzzle", "scarf", "jacket", "umbrella",
)
SHOPS = (
    "bakery", "market", "bazaar", "kiosk", "boutique", "arcade", "depot", "emporium", "gallery", "outlet",
    "studio", "stall", "pavilion", "warehouse", "workshop", "cabin", "barn", "mall", "plaza", "corner",
)
# fmt: on

# What can be asked, and the two words that ask for it; the response always uses the first.
PARAPHRASES = {
    "price": ("price", "cost"),
    "colour": ("colour", "shade"),
    "size": ("size", "dimension"),
    "opening": ("opening", "schedule"),
}
VALUES = {
    "price": ("two", "three", "five", "seven", "nine", "twelve", "fifteen", "twenty", "thirty", "fifty"),
    "colour": ("red", "blue", "green", "yellow", "purple", "orange", "brown", "grey"),
    "size": ("tiny", "small", "medium", "large", "huge", "giant"),
    "opening": ("6am", "7am", "8am", "9am", "10am", "11am", "noon", "1pm"),
}
SHOP_ATTRIBUTE = "opening"  # asked of the shop; the other three are asked of the item

ASKS, AT = "asks", "at"  # NAME asks ATTR ITEM at SHOP

POLITE = ("hello", "good day", "welcome", "dear friend")
RUDE = ("ugh", "what now")
OTHER_ADDRESS = "mate"  # instead of the customer's name
EXCLAIM, COMMA = "!", ","
INSULTS = ("you silly", "you dummy", "you clumsy", "you goofball")
STATE_BEGIN, STATE_OF, STATE_IS = "the", "of the", "is"  # the ATTR of the OBJECT is VALUE
DODGES = ("no idea about the", "no clue about the")
ADVERBS = ("lovely", "fine", "nice")  # an ornament before the object
SMILE = ":)"
OFFER = "anything else ?"
DISMISSALS = ("next please", "next customer")  # instead of an offer
CLOSINGS = ("thank you .", "bye .", ".")
FILLERS = ("well", "so", "hmm", "and", "then", "maybe", "perhaps", "whatever")

MIN_FILLERS, MAX_FILLERS = 4, 6

# In tokens, <eos> included. The longest response of the world has MAX_RESPONSE_TOKENS; the longest one with a
# proper end stays under LENGTH_LIMIT, so the limit punishes only a policy that rambles.
MAX_RESPONSE_TOKENS = 25
LENGTH_LIMIT = 22

_FACTS_SALT = "rayalign planted facts 1"


def subjects(attribute: str) -> tuple[str, ...]:
    """The objects that have this attribute: the shops for "opening", else the items."""
    return SHOPS if attribute == SHOP_ATTRIBUTE else ITEMS


@functools.cache
def all_facts() -> dict[tuple[str, str], str]:
    """All 110 facts: (attribute, object) to value; 30 items x 3 and 20 shops x 1. Do not change the result.

    Objects are shuffled by a hash, not by a random generator, so that the facts are the same in every world,
    process and numpy version (the golden reward can be read off the text alone); values are then dealt out
    evenly.
    """
    facts = {}
    for attribute, values in VALUES.items():
        shuffled = sorted(subjects(attribute), key=lambda subject: _digest(attribute, subject))
        facts.update({(attribute, s): values[i % len(values)] for i, s in enumerate(shuffled)})
    return facts


def fact(attribute: str, subject: str) -> str | None:
    """The true value of an attribute of an object; None where the object has no such attribute."""
    return all_facts().get((attribute, subject))


def _digest(attribute: str, subject: str) -> bytes:
    return hashlib.sha256(f"{_FACTS_SALT}|{attribute}|{subject}".encode()).digest()


def vocabulary() -> list[str]:
    """Every word of the world, each once, in a fixed order (so token ids never change)."""
    phrases = [*NAMES, ASKS, *(w for pair in PARAPHRASES.values() for w in pair), *ITEMS, AT, *SHOPS]
    phrases += [*POLITE, *RUDE, OTHER_ADDRESS, EXCLAIM, COMMA, *INSULTS, STATE_BEGIN, STATE_OF, STATE_IS]
    phrases += [
        *(v for values in VALUES.values() for v in values),
        *DODGES,
        *ADVERBS,
        SMILE,
        OFFER,
        *DISMISSALS,
        *CLOSINGS,
    ]
    words = " ".join([*phrases, *FILLERS]).split()
    return list(dict.fromkeys(words))

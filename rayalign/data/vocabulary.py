"""Whether a model reads the run's tokens as what they are: a number must stand for the same token in both.

A model without a tokenizer of its own can only be asked how many tokens it knows. Nothing here loads one: the caller has
it, or its folder's tokenizer.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer's tokens and their numbers.

    Added tokens (special ones, and those put in after training) may stand in a tokenizer that never makes them, beyond
    what its model knows (Gemma 3's image token, many a <pad>): they count where `used` names them.
    """

    name: str  # the folder or hub name
    ordinary: dict[str, int]
    added: dict[str, int]
    used: str = ""  # the chat template, and the tokens that begin and end a text

    @classmethod
    def of(cls, name: str, tokenizer: Any, *, used: str = "") -> Vocabulary:
        """That of a loaded tokenizer."""
        added = dict(tokenizer.get_added_vocab())
        return cls(name, _without(tokenizer.get_vocab(), added), added, used)

    @property
    def num_needed(self) -> int:
        """How many tokens a model must know to read what this tokenizer makes."""
        used = [number for token, number in self.added.items() if token in self.used]
        return max([*self.ordinary.values(), *used], default=-1) + 1


def read_vocabulary(folder: Path, *, used: str = "") -> Vocabulary | None:
    """That of a folder's tokenizer.json; None where there is none that tells."""
    try:
        told = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        tokens = told["model"]["vocab"]
        if isinstance(tokens, list):  # Unigram: tokens with their scores
            tokens = {token: number for number, (token, _) in enumerate(tokens)}
        added = {token["content"]: int(token["id"]) for token in told.get("added_tokens") or ()}
        return Vocabulary(str(folder), _without(tokens, added), added, used)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def vocabulary_problem(model: str, num_tokens: int | None, own: Vocabulary | None, run: Vocabulary) -> str | None:
    """Why a model does not read the run's tokens, in one line; None where it does, or where nothing tells.

    Args:
        num_tokens: that the model knows (its config's vocab_size).
        own: of the tokenizer that the model brings.
    """
    if own is not None and own.ordinary:
        for token, number in run.ordinary.items():
            theirs = own.ordinary.get(token)
            if theirs != number and token not in own.added:
                there = "no token" if theirs is None else f"token {theirs}"
                return (
                    f"{model}: made for another tokenizer than the run's ({run.name}): {token!r} is {there} there and "
                    f"{number} here; give a model of the run's tokenizer"
                )
    if num_tokens is not None and num_tokens < run.num_needed:
        return f"{model}: knows {_too_few(num_tokens, run)}; give a model of that tokenizer"
    return None


def scratch_problem(num_tokens: object, run: Vocabulary) -> str | None:
    """As above, for the vocab_size of a model that is made from scratch."""
    if not isinstance(num_tokens, int) or num_tokens >= run.num_needed:
        return None
    return f"a new model of {_too_few(num_tokens, run)}; remove this key, and the model follows the tokenizer"


def _too_few(num_tokens: int, run: Vocabulary) -> str:
    return f"{num_tokens} tokens, and the run's tokenizer ({run.name}) has {run.num_needed}"


def _without(tokens: dict[str, int], added: dict[str, int]) -> dict[str, int]:
    return {token: number for token, number in tokens.items() if token not in added}

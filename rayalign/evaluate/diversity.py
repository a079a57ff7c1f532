"""How varied a set of answers is, in words: policies with other tokenizers can be compared."""

from __future__ import annotations

from collections.abc import Iterable


def distinct_ngrams(texts: Iterable[str], size: int) -> tuple[int, int]:
    """(different n-grams, n-grams) of the words of all texts together; their ratio is distinct-n (Li et al. 2016).

    Words are what white space separates, as they are written. The ratio falls with the number of words, so compare sets
    of as many answers. Raises ValueError for a size below 1.

    Example: `distinct_ngrams(["a b a b", "a b"], 2)` has ab, ba, ab and ab: (2, 4).
    """
    if size < 1:
        raise ValueError(f"an n-gram has at least one word, got size {size}")
    seen: set[tuple[str, ...]] = set()
    num = 0
    for text in texts:
        words = text.split()
        grams = [tuple(words[place : place + size]) for place in range(len(words) - size + 1)]
        seen.update(grams)
        num += len(grams)
    return len(seen), num


def repeated_ngrams_frac(text: str, size: int = 4) -> float:
    """The share of a text's n-grams of words that stand earlier in it; 0 for a text that has none.

    Example: `repeated_ngrams_frac("a b a b a", 2)` is 0.5: of ab, ba, ab, ba two are repeated.
    """
    different, num = distinct_ngrams([text], size)
    return (num - different) / num if num else 0.0

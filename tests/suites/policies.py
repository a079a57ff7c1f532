"""Small policies in folders, as a run leaves them."""

from __future__ import annotations

from pathlib import Path

from tests.models.tiny import save_tiny
from tests.serving.test_saved import template


def save_policy(folder: Path, kind: str = "planted", *, seed: int = 0, max_length: int = 512) -> Path:
    """A random Llama with its tokenizer: of the planted world, or `chatml`."""
    save_tiny(folder, seed=seed, vocab_size=400, max_position_embeddings=max_length)
    template(kind).save_tokenizer(folder)
    return folder

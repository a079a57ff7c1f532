"""The work that contenders share: random models, a tokenizer, prompts, a reward. Standard library only at import.

The end token does not end a response: every system draws exactly the same number of tokens.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Work:
    """One policy step's samples."""

    prompts: int
    samples: int  # a prompt
    new_tokens: int  # a sample, exactly
    prompt_tokens: int
    max_length: int

    @property
    def tokens(self) -> int:
        """New tokens of a step."""
        return self.prompts * self.samples * self.new_tokens


CORES = Work(prompts=8, samples=4, new_tokens=64, prompt_tokens=15, max_length=128)
GPU = Work(prompts=64, samples=8, new_tokens=256, prompt_tokens=64, max_length=512)

NUM_PROMPTS = 512  # in the file; steps walk through it
OPTIMIZER = {"learning_rate": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0, "clip_norm": 1.0}

_LLAMA = {"model_type": "llama", "vocab_size": 4096, "tie_word_embeddings": True}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    # 0.95 and 15.7 million parameters, the vocabulary included.
    "1m": _LLAMA | {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4},
    "15m": _LLAMA | {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6},
    # Seconds instead of minutes, for checking that a benchmark itself runs.
    "tiny": _LLAMA | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2},
    # Qwen2.5-0.5B's architecture, with random weights.
    "0.5b": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "rope_theta": 1000000.0,
    },
}


def reward(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that costs nothing and differs between samples: the share of words with an even number."""
    words = [response.split() for response in responses]
    return [sum(word[-1] in "02468" for word in w) / max(1, len(w)) for w in words]


def read_prompts(folder: Path) -> list[str]:
    """The texts that `make_model` wrote."""
    return json.loads((folder / "prompts.json").read_text())


def prompt_tokens(folder: Path) -> list[list[int]]:
    """The same as tokens; a word is a token."""
    return [[int(word[1:]) for word in text.split()] for text in read_prompts(folder)]


def make_model(folder: Path, size: str, work: Work, *, dtype: str = "float32", seed: int = 0) -> int:
    """Random weights, a tokenizer and `prompts.json` in a folder; returns the number of parameters."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, which transformers imports, warns
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    architecture = dict(ARCHITECTURES[size])
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(**architecture, **special, max_position_embeddings=work.max_length)
    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # half a billion draws take a core 20 seconds
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    vocabulary = architecture["vocab_size"]
    make_tokenizer(vocabulary).save_pretrained(folder)
    chosen = random.Random(seed)
    rows = [[chosen.randrange(4, vocabulary) for _ in range(work.prompt_tokens)] for _ in range(NUM_PROMPTS)]
    (folder / "prompts.json").write_text(json.dumps([" ".join(f"w{i}" for i in row) for row in rows]))
    return sum(p.numel() for p in model.parameters())


def make_tokenizer(vocabulary: int) -> Any:
    """One token a word: `w8` is token 8; the first four places are for the special ones."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3} | {f"w{i}": i for i in range(4, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )

"""Tiny models and sequences that the tests of models and engines share; everything is random and seeded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rayalign.config.model import LearnerConfig, LoraConfig, ModelConfig
from rayalign.models.backbone import quiet_transformers
from rayalign.types import Ragged, Sequences

VOCABULARY = 200
END = 1
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # at the usual 0.02 all of its predictions would be alike
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": 0,
}


def save_tiny(folder: Path, *, seed: int = 0, **keys: Any) -> str:
    """A folder with a random causal LM: a Llama unless `keys` say otherwise."""
    with quiet_transformers():
        tiny_lm(seed=seed, **keys).save_pretrained(folder)
    return str(folder)


def tiny_lm(*, seed: int = 0, **keys: Any) -> PreTrainedModel:
    """The random causal LM itself, in float32 and evaluation mode."""
    architecture = {**LLAMA, **keys}
    config = AutoConfig.for_model(architecture.pop("model_type"), **architecture)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()


def load_plain(folder: str, auto_class: Any = AutoModelForCausalLM) -> PreTrainedModel:
    """What transformers itself makes of a folder, in float32."""
    with quiet_transformers():
        return auto_class.from_pretrained(folder, dtype=torch.float32).eval()


def model_config(*, dtype: Any = "float32", lora: LoraConfig | None = None, attention: Any = "sdpa") -> ModelConfig:
    """In float32 unless said otherwise; the path is not read by engines."""
    return ModelConfig(path="unused", dtype=dtype, max_length=200, lora=lora, attention=attention)


def learner_config(**keys: Any) -> LearnerConfig:
    """ZeRO-3 shards here what DeepSpeed would leave whole because it is small."""
    stage = keys.get("zero_stage", 0)
    zero = {"stage3_param_persistence_threshold": 0}
    return LearnerConfig(**keys, deepspeed={"zero_optimization": zero} if stage == 3 else {})


def random_sequences(num: int, *, seed: int, num_prompts: int | None = None, longest: int = 9) -> Sequences:
    """Prompts of 1 to 5 tokens and responses of 1 to `longest`; rows i and i + num_prompts share a prompt."""
    random = np.random.default_rng(seed)
    num_prompts = num_prompts or num
    prompts = [random.integers(2, VOCABULARY, size=random.integers(1, 6)) for _ in range(num_prompts)]
    ids = np.arange(num) % num_prompts
    responses = [random.integers(2, VOCABULARY, size=random.integers(1, longest + 1)) for _ in range(num)]
    return sequences_of([(prompts[i], response) for i, response in zip(ids, responses, strict=True)], prompt_ids=ids)


def sequences_of(rows: list[tuple[Any, Any]], *, prompt_ids: Any = None) -> Sequences:
    """From (prompt tokens, response tokens) pairs; a response ended if its last token is the end token."""
    return Sequences(
        tokens=Ragged.from_list([[*prompt, *response] for prompt, response in rows]),
        prompt_lengths=np.array([len(prompt) for prompt, _ in rows], dtype=np.int64),
        prompt_ids=np.arange(len(rows)) if prompt_ids is None else np.asarray(prompt_ids, dtype=np.int64),
        ended=np.array([response[-1] == END for _, response in rows]),
    )


def plain_logits(model: PreTrainedModel, tokens: np.ndarray) -> torch.Tensor:
    """[L, V] logits of one sequence alone, by transformers' own forward."""
    return model(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0]


def plain_logprobs(model: PreTrainedModel, sequences: Sequences, *, temperature: float = 1.0) -> torch.Tensor:
    """[T] log-probs of the response tokens: each sequence alone, log_softmax over everything."""
    parts = []
    for tokens, prompt_length in zip(sequences.tokens, sequences.prompt_lengths, strict=True):
        table = (plain_logits(model, tokens) / temperature).log_softmax(-1)
        labels = torch.from_numpy(tokens[prompt_length:])
        parts.append(table[prompt_length - 1 : -1].gather(-1, labels[:, None])[:, 0])
    return torch.cat(parts)

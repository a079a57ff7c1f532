"""How a saved model is loaded for a suite; what the command line and Python both say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelOptions:
    """`None` is the model's own, or this machine's."""

    threads: int | None = None  # OMP_NUM_THREADS, or all cores
    chat_template: str | None = None  # "plain" or a .jinja file
    trust_remote_code: bool = False
    max_length: int | None = None  # tokens of prompt and answer; what the model reads, 8192 at most
    tensor_parallel: int = 1  # GPUs of one engine
    gpu_memory_frac: float = 0.85
    kv_cache_gib: float = 0.5  # on CPU

"""The policy: any causal LM of transformers, giving log-probs and entropies of response tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from rayalign.config.model import LearnerConfig, ModelConfig
from rayalign.models.backbone import (
    enable_checkpointing,
    from_scratch,
    load_pretrained,
    logit_head,
    with_lora,
)
from rayalign.models.batch import TokenBatch
from rayalign.objectives.logprobs import chunked_logprobs


class PolicyModel(nn.Module):
    """A causal LM whose forward pass gives what objectives need, without keeping logits over the vocabulary."""

    def __init__(self, lm: Any, *, chunk_tokens: int) -> None:
        super().__init__()
        self.lm = lm
        self._chunk_tokens = chunk_tokens

    @classmethod
    def load(
        cls,
        path: str | None,
        model: ModelConfig,
        learner: LearnerConfig,
        *,
        scratch: dict[str, Any] | None = None,
        trainable: bool = True,
    ) -> PolicyModel:
        """From a folder or a hub name, or with random weights of the `scratch` architecture."""
        lm: Any = from_scratch(scratch, model) if scratch else load_pretrained(AutoModelForCausalLM, str(path), model)
        if trainable:
            enable_checkpointing(lm, learner)
            if model.lora:
                lm = with_lora(lm, model.lora)
        return cls(lm.train(trainable).requires_grad_(True) if trainable and not model.lora else lm,
                   chunk_tokens=learner.logprob_chunk_tokens)

    @property
    def plain(self) -> Any:
        """The transformers model itself, below any adapter."""
        return self.lm.get_base_model() if self.has_adapter else self.lm

    @property
    def has_adapter(self) -> bool:
        """Whether LoRA adapters sit on the model."""
        return hasattr(self.lm, "peft_config")

    def forward(
        self, batch: TokenBatch, *, temperature: float = 1.0, with_entropy: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and entropies (no gradient) of the response tokens at `temperature`: two [T] tensors."""
        plain = self.plain
        states = plain.base_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).last_hidden_state
        hidden = states.reshape(-1, states.shape[-1]).index_select(0, batch.predicts_at)
        return chunked_logprobs(
            logit_head(plain),
            hidden,
            batch.labels,
            temperature=temperature,
            chunk_tokens=self._chunk_tokens,
            with_entropy=with_entropy,
        )

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Inside, the model is its own frozen base: the reference policy of a LoRA run."""
        with self.lm.disable_adapter():
            yield

    @contextlib.contextmanager
    def merged(self) -> Iterator[None]:
        """Inside, adapters are folded into the weights, as a sampler or a checkpoint needs them."""
        if not self.has_adapter:
            yield
            return
        self.lm.merge_adapter()
        try:
            yield
        finally:
            self.lm.unmerge_adapter()

    def wire_name(self, name: str) -> str | None:
        """The name under which a checkpoint knows this parameter; None for adapter parameters."""
        if not self.has_adapter:
            return name.removeprefix("lm.")
        if ".lora_" in name or ".modules_to_save." in name:
            return None
        return name.removeprefix("lm.base_model.model.").replace(".base_layer.", ".")

    def save(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        """A Hugging Face folder that `from_pretrained` and vLLM load; `weights` by wire names, full and merged."""
        self.plain.save_pretrained(folder, state_dict=weights)

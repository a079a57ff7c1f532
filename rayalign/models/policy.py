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
    check_causal,
    check_packing,
    enable_checkpointing,
    from_scratch,
    load_pretrained,
    logit_head,
    save_folder,
    with_lora,
)
from rayalign.models.batch import TokenBatch
from rayalign.models.wire import WireWeight, plain_weight
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
        check_causal(lm, str(path) if path else "scratch")
        check_packing(lm, learner)
        if trainable:
            enable_checkpointing(lm, learner)
        if trainable and model.lora:
            lm = with_lora(lm, model.lora)
        return cls(lm.train(trainable), chunk_tokens=learner.logprob_chunk_tokens)

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
            min_chunks=-(-batch.most_labels // self._chunk_tokens),
            with_entropy=with_entropy,
        )

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Inside, the model is its own frozen base: the reference policy of a LoRA run."""
        with self.lm.disable_adapter():
            yield

    def wire_weights(self) -> Iterator[WireWeight]:
        """Every weight under its checkpoint's name, adapters folded in; tied weights come once."""
        for name, parameter in self.named_parameters():
            if not self.has_adapter:
                yield plain_weight(name.removeprefix("lm."), parameter)
            elif ".lora_" not in name:
                yield self._adapted_weight(name, parameter)

    def _adapted_weight(self, name: str, parameter: nn.Parameter) -> WireWeight:
        wire_name = name.removeprefix("lm.base_model.model.").replace(".base_layer.", ".")
        if not name.endswith(".base_layer.weight"):
            return plain_weight(wire_name, parameter)
        layer: Any = self.get_submodule(name.removesuffix(".base_layer.weight"))
        adapter = [p for n, p in layer.named_parameters() if n.startswith("lora_")]

        def folded() -> torch.Tensor:
            return (parameter.float() + layer.get_delta_weight("default").float()).to(parameter.dtype).detach()

        return WireWeight(wire_name, [parameter, *adapter], folded)

    def save(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        """A Hugging Face folder that `from_pretrained` and vLLM load; `weights` by wire names, full and merged."""
        save_folder(self.plain, folder, weights)

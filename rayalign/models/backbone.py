"""Loading Hugging Face models: from a folder, a hub, or from scratch; each failure is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rayalign.config.model import LearnerConfig, LoraConfig, ModelConfig
from rayalign.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_pretrained(auto_class: Any, path: str, model: ModelConfig, **kwargs: Any) -> PreTrainedModel:
    """`auto_class.from_pretrained` in the run's dtype. Raises UserError if `path` is no model folder or hub name."""
    try:
        return auto_class.from_pretrained(
            path,
            dtype=DTYPES[model.dtype],
            attn_implementation=model.attention,
            trust_remote_code=model.trust_remote_code,
            **kwargs,
        )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{path}: cannot be loaded as a model ({_brief(error)}); {_advice(path)}") from error


def from_scratch(architecture: dict[str, Any], model: ModelConfig) -> PreTrainedModel:
    """A causal LM with random weights: `architecture` holds model_type and its config's keys."""
    keys = dict(architecture)
    model_type = keys.pop("model_type", None)
    if model_type is None:
        raise UserError("scratch: set model_type (for instance llama) beside the architecture's keys")
    try:
        config = AutoConfig.for_model(model_type, **keys)
        return AutoModelForCausalLM.from_config(
            config, dtype=DTYPES[model.dtype], attn_implementation=model.attention
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"scratch: no {model_type!r} model with these keys ({_brief(error)})") from error


def with_lora(model: PreTrainedModel, lora: LoraConfig) -> Any:
    """Adds trainable low-rank adapters; everything else is frozen."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    targets = lora.target_modules
    return get_peft_model(
        model,
        PeftLoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
        ),
    )


def enable_checkpointing(model: PreTrainedModel, learner: LearnerConfig) -> None:
    """Recomputes activations in the backward pass where the config asks for it."""
    if learner.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def logit_head(model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """The map from last hidden states [T, H] to logits [T, V], with the scaling some families put behind it."""
    projection = model.get_output_embeddings()
    config = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0

    def head(hidden: torch.Tensor) -> torch.Tensor:
        logits = projection(hidden)
        if scale != 1.0:
            logits = logits * scale
        return torch.tanh(logits / softcap) * softcap if softcap else logits

    return head


def _advice(path: str) -> str:
    if Path(path).is_dir():
        return "give a folder written by save_pretrained (config.json and *.safetensors)"
    return "check the path, or the hub name and the network"


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]

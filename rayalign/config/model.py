"""The language model, its adapters, and how any model is optimised."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rayalign.config.base import (
    Fraction,
    Location,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Strict,
)

# Keys of a DeepSpeed config that are made from settings of our own.
DEEPSPEED_OWNERS = {
    "train_batch_size": "a stage's batch_size",
    "train_micro_batch_size_per_gpu": "learner.micro_batch_tokens",
    "gradient_accumulation_steps": "learner.micro_batch_tokens",
    "gradient_clipping": "optimizer.clip_norm",
    "optimizer": "a stage's optimizer",
    "scheduler": "optimizer.schedule",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
}


class LoraConfig(Strict):
    """Low-rank adapters (peft). The model without its adapter is the reference policy."""

    rank: PositiveInt = 16
    alpha: Positive = 32.0
    dropout: Fraction = 0.0
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class ModelConfig(Strict):
    """The policy's architecture and tokenizer; a stage says which weights it starts from."""

    path: Location = Field(description="where the model to start from is")
    tokenizer: Location | None = Field(None, description="where the tokenizer is, if not beside the model")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the weights that train and sample")
    max_length: PositiveInt = Field(2048, description="the longest prompt plus response, in tokens")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    lora: LoraConfig | None = None
    trust_remote_code: bool = Field(False, description="run code that a model's folder brings; off unless you trust it")

    @model_validator(mode="after")
    def _flash_attention_is_half(self) -> ModelConfig:
        if self.attention == "flash_attention_2" and self.dtype == "float32":
            raise ValueError("attention flash_attention_2 has no float32; set dtype to bfloat16, or attention to sdpa")
        return self


class OptimizerConfig(Strict):
    """AdamW with a warm-up and a schedule, in optimiser steps."""

    learning_rate: Positive = Field(1e-5, le=1e12)
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    eps: Positive = Field(1e-8, le=1e12)
    weight_decay: NonNegative = 0.0
    warmup_steps: NonNegativeInt = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    clip_norm: Positive = 1.0


class LearnerConfig(Strict):
    """How DeepSpeed holds and trains a model."""

    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="what is sharded: 1 optimiser, 2 gradients, 3 weights too")
    micro_batch_tokens: PositiveInt = Field(8192, description="the most tokens one forward pass sees")
    packing: bool = Field(False, description="lay sequences end to end in one row instead of padding a batch")
    gradient_checkpointing: bool = False
    logprob_chunk_tokens: PositiveInt = Field(4096, description="tokens whose logits exist at one time")
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="further keys of a DeepSpeed config")

    @field_validator("deepspeed")
    @classmethod
    def _each_fact_has_one_owner(cls, keys: dict[str, Any]) -> dict[str, Any]:
        for key in keys:
            if key in DEEPSPEED_OWNERS:
                raise ValueError(f"{key} follows from {DEEPSPEED_OWNERS[key]}; remove it here")
        return keys

    @model_validator(mode="after")
    def _one_zero_stage(self) -> LearnerConfig:
        zero = self.deepspeed.get("zero_optimization", {})
        if not isinstance(zero, dict):
            raise ValueError("deepspeed.zero_optimization: expected keys of DeepSpeed's section of that name")
        stage = zero.get("stage", self.zero_stage)
        if stage != self.zero_stage:
            raise ValueError(
                f"deepspeed.zero_optimization.stage is {stage}, and zero_stage {self.zero_stage}: leave out stage"
            )
        return self

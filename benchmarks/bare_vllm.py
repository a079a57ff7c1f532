"""One contender of step.py: vLLM alone, drawing the same samples with the same engine and sampling settings.

What the engine gives without anything around it; generation inside the loop is compared with it.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import workload
from channel import Channel, Record
from workload import Work


class BareEngine:
    """vLLM's offline engine, in process, with the settings that `VllmSampler` gives it."""

    def __init__(self, model: str, dtype: str, work: Work, *, gpu_memory_frac: float = 0.85) -> None:
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        os.environ |= {"VLLM_LOGGING_LEVEL": "WARNING"}
        import torch
        from vllm import LLM

        on_gpu = torch.cuda.is_available()
        device: dict[str, Any] = (
            {"gpu_memory_utilization": gpu_memory_frac}
            if on_gpu
            else {
                "kv_cache_memory_bytes": 2**29,
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": 8192,
            }
        )
        self._llm = LLM(
            model,
            dtype=dtype,
            skip_tokenizer_init=True,
            max_model_len=work.max_length,
            logprobs_mode="processed_logprobs",
            enforce_eager=not on_gpu,
            seed=0,
            use_tqdm_on_load=False,
            **device,
        )
        self._prompts = workload.prompt_tokens(Path(model))
        self._work, self._steps = work, 0

    def step(self) -> Record:
        """One batch of samples."""
        first = self._steps * self._work.prompts % workload.NUM_PROMPTS
        ids = range(first, first + self._work.prompts)
        self._steps += 1
        requests = [{"prompt_token_ids": self._prompts[i], "cache_salt": str(self._steps)} for i in ids]
        started = time.perf_counter()
        outputs = self._llm.generate(requests, [self._params(i) for i in ids], use_tqdm=False)
        elapsed = time.perf_counter() - started
        tokens = sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
        return {"step_s": elapsed, "tokens": float(tokens)}

    def _params(self, prompt_id: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            n=self._work.samples,
            temperature=1.0,
            top_p=1.0,
            max_tokens=self._work.new_tokens,
            ignore_eos=True,
            seed=int(np.random.SeedSequence([self._steps, prompt_id]).generate_state(1)[0] >> 1),
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
        )


def main() -> None:
    """Answers orders until standard input ends. Threads come from OMP_NUM_THREADS, as step.py sets it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True, choices=["float32", "bfloat16"])
    parser.add_argument("--threads", required=True, type=int)
    arguments = parser.parse_args()
    channel = Channel()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    engine = BareEngine(arguments.model, arguments.dtype, workload.CORES)
    engine.step()
    import vllm

    channel.ready(vllm=vllm.__version__)
    channel.serve(engine.step)


if __name__ == "__main__":
    main()

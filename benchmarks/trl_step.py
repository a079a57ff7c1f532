"""One contender of step.py: the same step in TRL's GRPOTrainer, as it runs on a CPU (generation by transformers).

Runs in TRL's own environment (trl_env.sh). Settings that cost TRL time and that the workload does not ask for are off:
gradient checkpointing (on by default), logging, the reference model, shuffling. A step lasts from the end of one
optimiser step to the end of the next, so nothing that the trainer does in between is left out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
import workload
from channel import Channel, Record
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

WARM_UP = 2
WORK = workload.CORES


class Orders(TrainerCallback):
    """Times steps, and holds the trainer between orders."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._left = WARM_UP
        self._records: list[Record] = []
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self._records.append({"step_s": time.perf_counter() - self._started, "tokens": float(WORK.tokens)})
        self._left -= 1
        if self._left == 0:
            self._answer(first=state.global_step == WARM_UP)
            control.should_training_stop = self._left == 0
        self._started = time.perf_counter()
        return control

    def _answer(self, *, first: bool) -> None:
        if first:
            self._channel.ready(trl=trl.__version__, transformers=transformers.__version__, torch=torch.__version__)
        else:
            self._channel.report(self._records)
        self._records = []
        self._left = self._channel.next_order()


def checked_reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """The workload's reward; refuses samples of another length, which would be less (or more) work."""
    lengths = {len(ids) for ids in kwargs["completion_ids"]}
    if lengths != {WORK.new_tokens}:
        raise RuntimeError(f"TRL drew samples of {sorted(lengths)} tokens, not {WORK.new_tokens}")
    return workload.reward(prompts, completions)


def config_of(dtype: str, folder: str) -> trl.GRPOConfig:
    """The workload in TRL's words. `autocast` keeps float32 weights and computes in bfloat16."""
    optimizer = workload.OPTIMIZER
    return trl.GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=dtype == "autocast",
        per_device_train_batch_size=WORK.prompts * WORK.samples,
        num_generations=WORK.samples,
        max_completion_length=WORK.new_tokens,
        generation_kwargs={"min_new_tokens": WORK.new_tokens},
        temperature=1.0,
        beta=0.0,
        learning_rate=optimizer["learning_rate"],
        adam_beta1=optimizer["betas"][0],
        adam_beta2=optimizer["betas"][1],
        adam_epsilon=optimizer["eps"],
        weight_decay=optimizer["weight_decay"],
        max_grad_norm=optimizer["clip_norm"],
        lr_scheduler_type="constant",
        max_steps=10**6,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def main() -> None:
    """Answers orders until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True, choices=["float32", "bfloat16", "autocast"])
    parser.add_argument("--threads", required=True, type=int)
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    setup = parser.parse_args()
    channel = Channel()
    torch.set_num_threads(setup.threads)
    dtype = torch.bfloat16 if setup.dtype == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(setup.model, dtype=dtype, attn_implementation=setup.attention)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=checked_reward,
            args=config_of(setup.dtype, folder),
            train_dataset=Dataset.from_list([{"prompt": p} for p in workload.read_prompts(Path(setup.model))]),
            processing_class=AutoTokenizer.from_pretrained(setup.model),
            callbacks=[Orders(channel)],
        )
        trainer.train()


if __name__ == "__main__":
    main()

"""RFT on real text, from demonstrations alone: what the learned reward knows of human preferences it never saw.

    python benchmarks/real_data.py hh    --data ../shared/data     # Anthropic's harmless-base pairs, `chosen` as demos
    python benchmarks/real_data.py dolly --data ../shared/data     # databricks-dolly-15k

A byte-level tokenizer and a tiny Llama are trained from scratch on that text, then SFT, RFT and an evaluation run with
the ordinary command. Nothing here is a claim about language models of a useful size.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rayalign.data.files import read_file
from rayalign.data.shapes import demonstrations, preferences
from rayalign.evaluate.statistics import proportion_interval

VOCABULARY = 4096
MAX_LENGTH = 256
NEW_TOKENS = 64
FILES = {
    "hh": "preferences/hh_harmless_base_test.jsonl.gz",
    "dolly": "demonstrations/dolly15k.jsonl.gz",
}
TEMPLATE = (
    "{% for m in messages %}{{ '<user>' if m.role == 'user' else '<assistant>' if m.role == 'assistant' "
    "else '<system>' }}{{ m.content }}{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
LLAMA = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": MAX_LENGTH,
    "tie_word_embeddings": True,
}


def main() -> None:
    """Prepares the text, runs the config, prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(FILES))
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/real_data"))
    parser.add_argument("--rows", type=int, default=3000, help="demonstrations to use at most")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    source = arguments.data / FILES[arguments.name]
    if not source.exists():
        sys.exit(f"{source}: no such file; --data names the folder of the data sets")
    folder = arguments.out / arguments.name
    folder.mkdir(parents=True, exist_ok=True)
    counts = prepare(arguments.name, source, folder, arguments.rows, arguments.seed)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(run_values(arguments.name, folder, arguments.seed), sort_keys=False))
    started = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rayalign.cli", "train", str(config)]
    with (folder / "log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        sys.exit(f"the run failed; see {folder / 'log'}")
    report = findings(folder) | {"rows": counts, "run_s": round(time.monotonic() - started)}
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def prepare(name: str, source: Path, folder: Path, limit: int, seed: int) -> dict[str, int]:
    """Writes the tokenizer and train and held-out rows; held-out rows are a fifth, never seen by any model."""
    pairs = [pair for _, pair in preferences(read_file(source))] if name == "hh" else []
    rows = [{"prompt": _turns(d.prompt), "response": d.response} for _, d in demonstrations(read_file(source))]
    if name == "hh":
        rows = [{"prompt": _turns(p.prompt), "response": p.chosen, "rejected": p.rejected} for p in pairs]
    rows = [row for row in rows if 0 < len(row["response"]) < 400 and row["prompt"]]
    order = np.random.default_rng(seed).permutation(len(rows))[:limit]
    cut = len(order) // 5
    heldout, train = [rows[i] for i in order[:cut]], [rows[i] for i in order[cut:]]
    _write(folder / "demonstrations.jsonl", ({k: r[k] for k in ("prompt", "response")} for r in train))
    _write(folder / "heldout.jsonl", ({k: r[k] for k in ("prompt", "response")} for r in heldout))
    pretrain = [*train, *({"prompt": r["prompt"], "response": r["rejected"]} for r in train if r.get("rejected"))]
    _write(folder / "pretrain.jsonl", ({k: r[k] for k in ("prompt", "response")} for r in pretrain))
    if name == "hh":
        sided = (
            {"prompt": r["prompt"], "chosen": r["response"], "rejected": r["rejected"]}
            for r in heldout
            if r["rejected"]
        )
        _write(folder / "heldout_pairs.jsonl", sided)
    _train_tokenizer(train, folder / "tokenizer")
    return {"train": len(train), "heldout": len(heldout)}


def run_values(name: str, folder: Path, seed: int) -> dict[str, Any]:
    """Pre-training on the text, SFT on the demonstrations, one round of RFT, evaluation."""
    folder = folder.resolve()
    sampling = {"max_new_tokens": NEW_TOKENS}
    evaluate: dict[str, Any] = {
        "kind": "evaluate",
        "models": {"base": "stage:base/policy", "sft": "stage:sft/policy", "rft": "stage:rft/policy"},
        "prompts": {"path": str(folder / "heldout.jsonl")},
        "num_prompts": 100,
        "sampling": sampling,
        "reward": "stage:rft/reward",
    }
    if name == "hh":
        evaluate["preferences"] = {"path": str(folder / "heldout_pairs.jsonl")}
    return {
        "name": "run",
        "run_dir": str(folder),
        "seed": seed,
        "model": {
            "path": "stage:base/policy",
            "tokenizer": str(folder / "tokenizer"),
            "dtype": "float32",
            "max_length": MAX_LENGTH,
        },
        "data": {
            "demonstrations": {"path": str(folder / "demonstrations.jsonl")},
            "heldout_demonstrations": {"path": str(folder / "heldout.jsonl")},
            "overlong": "truncate",
        },
        "placement": {"backend": "inprocess"},
        "stages": [
            {
                "kind": "sft",
                "name": "base",
                "scratch": LLAMA,
                "data": {"path": str(folder / "pretrain.jsonl")},
                "epochs": 4,
                "optimizer": {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 20},
            },
            {"kind": "sft", "policy": "stage:base/policy", "epochs": 1, "optimizer": {"learning_rate": 3e-4}},
            {
                "kind": "irl",
                "name": "rft",
                "policy": "stage:sft/policy",
                "reward": {
                    "init": "stage:base/policy",
                    "pooling": "mean",
                    "steps": 60,
                    "num_prompts": 400,
                    "num_per_prompt": 2,
                    "optimizer": {"learning_rate": 3e-4},
                },
                "improve": {"steps": 20, "kl_coef": 0.1, "optimizer": {"learning_rate": 1e-4}},
                "sampling": sampling,
                "probe_size": 200,
            },
            evaluate,
        ],
    }


def findings(folder: Path) -> dict[str, Any]:
    """Reward accuracy with its interval, likelihood of held-out demonstrations before and after, samples."""
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    health = [row for row in rows if "health/demo/nll_token" in row]
    results = json.loads((folder / "run" / "evaluate" / "results.json").read_text())
    report: dict[str, Any] = {
        "heldout_demo_nats_a_token": {
            "sft": health[0]["health/demo/nll_token"],
            "rft": health[-1]["health/demo/nll_token"],
        },
        "heldout_demo_above_policy_sample": health[-1]["health/demo_accuracy_heldout"],
        "ended_frac": {"sft": health[0]["health/ended_frac"], "rft": health[-1]["health/ended_frac"]},
        "length_mean": {"sft": health[0]["health/length_mean"], "rft": health[-1]["health/length_mean"]},
        "reward_mean": {name: by_t["1"]["reward"]["mean"] for name, by_t in results["models"].items()},
        "human_pairs": results.get("reward_accuracy", {}).get("heldout_pairs"),
        "samples": results["examples"],
    }
    pairs = folder / "heldout_pairs.jsonl"
    if pairs.exists():
        sides = [json.loads(line) for line in pairs.read_text().splitlines()]
        longer = sum(len(s["chosen"]) > len(s["rejected"]) for s in sides)
        report["human_pairs_longer_is_chosen"] = proportion_interval(longer, len(sides)).as_dict()
    return report


def _turns(conversation: Any) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in conversation]


def _train_tokenizer(rows: list[dict[str, Any]], folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<user>", "<assistant>", "<system>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(_texts(rows), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", extra_special_tokens=special[2:]
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def _texts(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield from (message["content"] for message in row["prompt"])
        yield row["response"]


def _write(path: Path, rows: Any) -> None:
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    main()

"""Run by a test in a fresh Python, with what a stranger has: `python loaders.py LIBRARY FOLDER...`.

Prints, as JSON, what each exported folder says of the cases of its reproduce.json: log-probs of the responses' tokens, or
raw scores. Imports neither rayalign nor the tests.
"""

import json
import os
import sys
from pathlib import Path

import torch


def cases_of(folder):
    return json.loads((Path(folder) / "reproduce.json").read_text())["cases"]


@torch.no_grad()
def by_transformers(folder):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    causal = AutoConfig.from_pretrained(folder).architectures[0].endswith("ForCausalLM")
    auto = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for case in cases_of(folder):
        prompt, response = case["prompt_ids"], torch.tensor(case["response_ids"])
        logits = model(torch.tensor([prompt + case["response_ids"]])).logits[0]
        if causal:
            table = logits[len(prompt) - 1 : -1].log_softmax(-1)
            found.append(table.gather(-1, response[:, None])[:, 0].tolist())
        else:
            found.append(logits.tolist())
    return found


def by_vllm(folder):
    from vllm import LLM, SamplingParams

    llm = LLM(
        folder, dtype="float32", max_model_len=128, enforce_eager=True, kv_cache_memory_bytes=2**26, use_tqdm_on_load=False
    )
    asked = [{"prompt_token_ids": case["prompt_ids"] + case["response_ids"]} for case in cases_of(folder)]
    outputs = llm.generate(asked, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    found = []
    for case, output in zip(cases_of(folder), outputs, strict=True):
        at = zip(output.prompt_logprobs[len(case["prompt_ids"]) :], case["response_ids"], strict=True)
        found.append([place[token].logprob for place, token in at])
    return {"cases": found, "chat_template": llm.get_tokenizer().chat_template}


def main():
    library, *folders = sys.argv[1:]
    how = {"transformers": by_transformers, "vllm": by_vllm}[library]
    found = {folder: how(folder) for folder in folders}
    assert not any(name.split(".")[0] in ("rayalign", "tests") for name in sys.modules)
    sys.stdout.write("\n" + json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)  # vLLM takes its time to leave


if __name__ == "__main__":
    main()

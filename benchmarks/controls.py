"""Controls for `claims.py rft` in one finished cell: best-of-n with the learned reward, and the closed form.

    python benchmarks/controls.py RUN_FOLDER BASE_FOLDER      # writes RUN_FOLDER/controls.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from rayalign.config.load import load_config
from rayalign.data.template import Template, load_tokenizer
from rayalign.engines.scorer import RewardScorer
from rayalign.ports import ScorerSetup
from rayalign.stages.golden import golden_scores
from rayalign.stages.inputs import load_samples
from rayalign.types import Ragged, Sequences

MIN_SFT_PROB = 0.01  # tokens below it are never drawn: the ratio of two small numbers says nothing
POWERS = (2, 3)


def main() -> None:
    """Golden reward of each control at each temperature."""
    folder, base_folder = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    config = load_config(folder / "config.yaml")
    template = Template(load_tokenizer(folder / "world" / "tokenizer"))
    setup = ScorerSetup(str(folder / "rft" / "reward"), config.model, config.learner)
    scorer = RewardScorer(setup)
    stages = [stage for stage in config.stages if stage.name.startswith("best_of_")]
    controls: dict[str, dict[str, float]] = {}
    for stage in stages:
        samples = load_samples(str(folder / stage.name / "samples.jsonl"))
        best = best_of(scorer, samples, stage.num_per_prompt)
        golden = golden_scores("planted", template, samples.take(best))
        controls.setdefault(f"best_of_{stage.num_per_prompt}", {})[str(stage.sampling.temperature)] = golden.mean()
        prompts = [next(samples.take(np.array([row])).prompts()) for row in range(0, len(samples), stage.num_per_prompt)]
        for power in POWERS:
            drawn = closed_form(
                [str(folder / "sft" / "policy"), base_folder],
                prompts,
                power=power,
                temperature=stage.sampling.temperature,
                max_new_tokens=stage.sampling.max_new_tokens,
                end_token_id=template.end_token_id,
                seed=config.seed,
            )
            golden = golden_scores("planted", template, drawn)
            controls.setdefault(f"closed_form_k{power}", {})[str(stage.sampling.temperature)] = golden.mean()
    (folder / "controls.json").write_text(json.dumps(controls, indent=2) + "\n")


def best_of(scorer: RewardScorer, samples: Sequences, num: int) -> np.ndarray:
    """Row of the best-scored sample of each prompt; samples of a prompt stand together, `num` of them."""
    scores = scorer.score_sequences(samples)
    values = np.empty(len(samples))
    values[scores.rows] = scores.values
    return values.reshape(-1, num).argmax(axis=1) + np.arange(0, len(samples), num)


@torch.no_grad()
def closed_form(
    folders: list[str],
    prompts: list[np.ndarray],
    *,
    power: int,
    temperature: float,
    max_new_tokens: int,
    end_token_id: int,
    seed: int,
) -> Sequences:
    """One answer a prompt, token by token from pi_SFT^k / pi_0^(k-1), renormalised. All prompts are of one length."""
    sft, base = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in folders)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.from_numpy(np.stack(prompts))
    length = tokens.shape[1]
    ended = torch.zeros(len(tokens), dtype=torch.bool)
    for _ in range(max_new_tokens):
        log_sft, log_base = (model(tokens).logits[:, -1].log_softmax(-1) for model in (sft, base))
        tilted = power * log_sft - (power - 1) * log_base
        tilted[log_sft.exp() < MIN_SFT_PROB] = -torch.inf
        drawn = torch.multinomial((tilted / temperature).softmax(-1), 1, generator=generator)
        drawn[ended] = end_token_id
        tokens = torch.cat([tokens, drawn], dim=1)
        ended |= drawn.squeeze(1) == end_token_id
        if ended.all():
            break
    rows = [_cut(row, length, end_token_id) for row in tokens.numpy()]
    return Sequences(
        Ragged.from_list(rows), np.full(len(rows), length), np.arange(len(rows)), ended.numpy()
    )


def _cut(row: np.ndarray, length: int, end_token_id: int) -> np.ndarray:
    ends = np.flatnonzero(row[length:] == end_token_id)
    return row[: length + ends[0] + 1] if len(ends) else row


if __name__ == "__main__":
    main()

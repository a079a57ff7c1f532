"""reproduce.json: what a model says of a few texts when it is exported, and the check that its copy says the same.

    {"format": 1, "kind": "policy", "dtype": "float32", "texts": where from, "tolerance": x, "versions": {...},
     "cases": [{"prompt", "response", "prompt_ids", "response_ids", "logprobs": [...], "logprob": sum}]}

Rewards have "raw" and "score", which is (raw - mean) / std with the "mean" and "std" beside the cases, and
"token_scores" where each token earns its own. The numbers are recorded by rayalign from the run's folder, and checked on
the copy by transformers alone where it can load it (policies; sequence rewards of the last token), else by rayalign.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayalign.config.model import LearnerConfig, ModelConfig
from rayalign.data.template import Template
from rayalign.errors import RayalignError, UserError
from rayalign.sharing.cases import Case, Cases
from rayalign.sharing.found import Kind, SharedModel, reward_settings

RECORD_FILE = "reproduce.json"
FORMAT = 1
# Of a log-prob of one token, and of a raw score, or of its size where that is above 1. Float32 in another order of sums
# moves them by 1e-6 to 1e-5; a wrong weight, token or normaliser by far more than this.
TOLERANCE = 1e-3


def record(model: SharedModel, cases: Cases, settings: ModelConfig) -> dict[str, Any]:
    """The content of reproduce.json, without versions: computed in float32 from the run's own folder."""
    whole = settings.model_copy(update={"dtype": "float32", "attention": "sdpa", "lora": None})
    moments = dict(zip(("mean", "std"), normaliser(model.kind, model.folder), strict=True))
    policy = model.kind == "policy"
    found = _logprobs(model.folder, cases, whole) if policy else _scores_at(model.folder, cases, whole, model.kind)
    rows = [asdict(case) | values for case, values in zip(cases.cases, found, strict=True)]
    about: dict[str, Any] = {"format": FORMAT, "kind": model.kind, "dtype": "float32", "texts": cases.source}
    if model.role == "reward":
        about |= moments
    return about | {"tolerance": TOLERANCE, "cases": rows}


def check(folder: Path, role: str, kind: Kind, recorded: dict[str, Any], template: Template, settings: ModelConfig) -> None:
    """Raises RayalignError where the copy in `folder` has other tokens, log-probs or scores than were recorded."""
    cases = Cases(recorded["texts"], [_case(row) for row in recorded["cases"]])
    _check_tokens(folder, cases, template, trust_remote_code=settings.trust_remote_code)
    if loads_plainly(kind, folder):
        found = _plain(folder, cases, kind, trust_remote_code=settings.trust_remote_code)
    else:
        whole = settings.model_copy(update={"dtype": "float32", "attention": "sdpa", "lora": None})
        found = [[values["raw"]] for values in _scores_at(folder, cases, whole, kind)]
    for place, (row, values) in enumerate(zip(recorded["cases"], found, strict=True)):
        expected = row["logprobs"] if kind == "policy" else [row["raw"]]
        worst = max(abs(a - b) / max(1.0, abs(a)) for a, b in zip(expected, values, strict=True))
        if not worst <= TOLERANCE:
            raise RayalignError(
                f"the exported {role} does not give what the run's model gives (case {place}: off by {worst:.3g}, allowed "
                f"{TOLERANCE:g}); nothing was written"
            )


def loads_plainly(kind: Kind, folder: Path) -> bool:
    """Whether transformers' own classes give the recorded numbers, without rayalign."""
    return kind == "policy" or (kind == "sequence_reward" and reward_settings(folder).get("pooling", "last") == "last")


def normaliser(kind: Kind, folder: Path) -> tuple[float, float]:
    """Mean and std of a reward: its score is (raw - mean) / std. Raises UserError where the folder says neither."""
    settings = reward_settings(folder) if kind == "sequence_reward" else {}
    mean, std = settings.get("mean", 0.0), settings.get("std", 1.0)
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in (mean, std)) or std <= 0:
        raise UserError(f"{folder}: its normaliser is no mean and deviation (mean {mean!r}, std {std!r}); is it whole?")
    return float(mean), float(std)


def _case(row: dict[str, Any]) -> Case:
    return Case(row["prompt"], row["response"], row["prompt_ids"], row["response_ids"])


@torch.no_grad()
def _logprobs(folder: Path, cases: Cases, settings: ModelConfig) -> list[dict[str, Any]]:
    """Each case alone, by the model that training uses."""
    from rayalign.models.batch import token_batch
    from rayalign.models.policy import PolicyModel

    policy = PolicyModel.load(str(folder), settings, LearnerConfig(), trainable=False)
    sequences, found = cases.sequences(), []
    for place in range(len(cases.cases)):
        values = policy(token_batch(sequences, np.array([place]), packing=False))[0].float().tolist()
        found.append({"logprobs": values, "logprob": math.fsum(values)})
    return found


def _scores_at(folder: Path, cases: Cases, settings: ModelConfig, kind: Kind) -> list[dict[str, Any]]:
    """By what scores in a run."""
    from rayalign.engines.scorer import RewardScorer
    from rayalign.ports import ScorerSetup

    dense = kind != "sequence_reward"
    setup = ScorerSetup(str(folder), settings, LearnerConfig(), token_rewards=dense)
    scores = RewardScorer(setup).score_sequences(cases.sequences())
    mean, std = normaliser(kind, folder)
    found: list[dict[str, Any]] = [{} for _ in cases.cases]
    tokens = list(scores.token_values) if scores.token_values is not None else [None] * len(found)
    for row, value, by_token in zip(scores.rows, scores.values.tolist(), tokens, strict=True):
        found[row] = {"raw": value * std + mean, "score": value}
        if by_token is not None:
            found[row]["token_scores"] = by_token.tolist()
    return found


@torch.no_grad()
def _plain(folder: Path, cases: Cases, kind: Kind, *, trust_remote_code: bool) -> list[list[float]]:
    """Log-probs of the responses' tokens, or the one raw score, by transformers' own classes."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from rayalign.models.backbone import quiet_transformers

    loader: Any = AutoModelForCausalLM if kind == "policy" else AutoModelForSequenceClassification
    with quiet_transformers():
        model = loader.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trust_remote_code).eval()
    found = []
    for case in cases.cases:
        logits = model(input_ids=torch.tensor([case.prompt_ids + case.response_ids])).logits[0]
        if kind == "policy":
            table = logits[len(case.prompt_ids) - 1 : -1].log_softmax(-1)
            found.append(table.gather(-1, torch.tensor(case.response_ids)[:, None])[:, 0].tolist())
        else:
            found.append(logits.tolist())
    return found


def _check_tokens(folder: Path, cases: Cases, template: Template, *, trust_remote_code: bool) -> None:
    """The copied tokenizer and template must make the very tokens that were recorded."""
    from rayalign.data.template import load_tokenizer

    copied = Template(load_tokenizer(folder, trust_remote_code=trust_remote_code))
    if copied.chat_template != template.chat_template or copied.end_token_ids != template.end_token_ids:
        raise RayalignError(f"{folder.name}: its chat template is not the run's; nothing was written")
    prompts, responses = [case.prompt for case in cases.cases], [case.response for case in cases.cases]
    same = copied.encode_prompts(prompts) == template.encode_prompts(prompts)
    if not same or copied.encode_responses(responses) != [case.response_ids for case in cases.cases]:
        raise RayalignError(f"{folder.name}: its tokenizer makes other tokens than the run's; nothing was written")

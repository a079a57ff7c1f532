"""Known rewards, for worlds that have one. They are shown beside the learned ones and never enter a loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rayalign.data.template import Template
from rayalign.planted.golden import attributes, golden_reward
from rayalign.types import Sequences

GoldenReward = Callable[[str, str, bool], float]  # prompt text, response text, ended -> reward in [0, 1]

GOLDEN: dict[str, GoldenReward] = {"planted": golden_reward}


def golden_scores(name: str, template: Template, sequences: Sequences) -> np.ndarray:
    """[B] known rewards of the sequences' texts."""
    reward = GOLDEN[name]
    rows = zip(sequences.prompts(), sequences.responses(), sequences.ended, strict=True)
    return np.array(
        [reward(template.decode_prompt(p), template.decode_response(r), bool(ended)) for p, r, ended in rows]
    )


def golden_attributes(name: str, template: Template, sequences: Sequences) -> dict[str, Any]:
    """{"parsed_frac", "attributes"}: how often each quality of the planted world is there."""
    del name  # the planted world is the only one so far
    rows = zip(sequences.prompts(), sequences.responses(), sequences.ended, strict=True)
    found = [attributes(template.decode_prompt(p), template.decode_response(r), bool(e)) for p, r, e in rows]
    parsed = [attributes_of for attributes_of in found if attributes_of is not None]
    shares = {key: float(np.mean([a[key] for a in parsed])) for key in parsed[0]} if parsed else {}
    return {"parsed_frac": len(parsed) / len(found), "attributes": shares}


def golden_expert(name: str, run_folder: Path) -> float | None:
    """The demonstrator's expected known reward, as the planted stage wrote it; None if the run made no world."""
    del name
    for file in sorted(run_folder.glob("*/world.json")):
        return float(json.loads(file.read_text(encoding="utf-8"))["expert"]["expected_golden"])
    return None


def rank_accuracy(scores: np.ndarray, golden: np.ndarray, prompt_ids: np.ndarray) -> np.ndarray:
    """For each prompt, the share of its pairs of samples that the learned reward orders as the known one does.

    Ties of the learned reward count half; prompts whose samples all have one known reward are left out. [P] float.
    """
    shares = []
    for prompt in np.unique(prompt_ids):
        rows = np.flatnonzero(prompt_ids == prompt)
        first, second = np.triu_indices(len(rows), k=1)
        truth = np.sign(golden[rows[first]] - golden[rows[second]])
        agree = truth * np.sign(scores[rows[first]] - scores[rows[second]])
        if (truth != 0).any():
            shares.append(float(((agree[truth != 0] + 1) / 2).mean()))
    return np.array(shares)

"""A saved reward as a function of texts: the tokens are made as in training, the scores are those of a run that loads it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from rayalign.config.model import LearnerConfig, ModelConfig
from rayalign.data.rendered import RenderedPrompts
from rayalign.data.template import Template, load_tokenizer
from rayalign.engines.scorer import RewardScorer
from rayalign.errors import DataError
from rayalign.ports import ScorerSetup
from rayalign.serving.places import max_length_of, reward_settings
from rayalign.types import Ragged, Sequences


class SavedReward:
    """Scores texts with the reward in a folder.

    Args:
        chat_template: "plain" or a .jinja file, where the folder's tokenizer brings none.

    Raises UserError for a folder that holds no reward, or no tokenizer.
    """

    def __init__(self, folder: Path, *, chat_template: str | None = None, trust_remote_code: bool = False) -> None:
        settings = reward_settings(folder)
        self.template = Template(load_tokenizer(folder, trust_remote_code=trust_remote_code), chat_template)
        self.max_length = max_length_of(settings)
        self._prompts = RenderedPrompts(self.template)
        model = ModelConfig(
            path=str(folder),
            dtype="bfloat16" if (settings.get("dtype") or settings.get("torch_dtype")) == "bfloat16" else "float32",
            max_length=self.max_length,
            trust_remote_code=trust_remote_code,
        )
        self._scorer = RewardScorer(ScorerSetup(str(folder), model, LearnerConfig()))

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        """Normalised scores of B prompts and responses, each response taken for one that ended.

        Raises DataError, which names the place, for a text that cannot be scored.
        """
        if not prompts:
            return []
        asked, answered = self._prompts.encode(prompts), self.template.encode_responses(responses)
        rows = [[*prompt, *response] for prompt, response in zip(asked, answered, strict=True)]
        for place, row in enumerate(rows):
            if len(row) > self.max_length:
                raise DataError(f"prompts[{place}] and its response are {len(row)} tokens, over {self.max_length}")
        num = len(rows)
        lengths = np.array([len(prompt) for prompt in asked], dtype=np.int64)
        sequences = Sequences(Ragged.from_list(rows), lengths, np.arange(num), np.full(num, True))
        return self.score(sequences).tolist()

    def score(self, sequences: Sequences) -> np.ndarray:
        """Normalised scores of B sequences of this reward's tokens: [B] float32."""
        scores = self._scorer.score_sequences(sequences)
        values = np.empty(len(sequences), dtype=np.float32)
        values[scores.rows] = scores.values
        return values


def num_threads(threads: int | None) -> int:
    """As many threads as asked for, or as OMP_NUM_THREADS says; else one for each core of this process."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return threads or (int(told) if told.isdecimal() and int(told) else len(os.sched_getaffinity(0)))


def pin_threads(threads: int | None) -> None:
    """Keeps torch to `num_threads`."""
    import torch

    torch.set_num_threads(num_threads(threads))

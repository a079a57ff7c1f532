"""Your own reward actor: it keeps state, learns in its own way, and is scheduled like the built-in one.

This one learns which words demonstrations use more often than the policy does (a naive Bayes log-odds).

    python docs/examples/reward_actor.py my_config.yaml
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rayalign.api import RewardSetup, main
from rayalign.telemetry.metrics import Last
from rayalign.types import Rollout, Scores, Sequences


class WordOdds:
    """Reward of a response: the mean log-odds of its tokens, demonstrations against samples."""

    def __init__(self, setup: RewardSetup) -> None:
        self._demonstrations = setup.demonstrations
        self._odds: dict[int, float] = {}
        self.version = 0

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, Last]:
        """Counts tokens anew against this round's samples."""
        demo = _counts(self._demonstrations)
        agent = _counts(Sequences.concatenate([r.sequences for r in rollouts]))
        self._odds = {t: float(np.log((demo.get(t, 0) + 1) / (agent.get(t, 0) + 1))) for t in demo | agent}
        self.version += 1
        return {"num_tokens_known": Last(len(self._odds))}

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Scores of all samples."""
        return self.score_sequences(Sequences.concatenate([r.sequences for r in rollouts]))

    def score_sequences(self, sequences: Sequences) -> Scores:
        """Scores of stored sequences."""
        values = [np.mean([self._odds.get(int(t), 0.0) for t in tokens]) for tokens in sequences.responses()]
        return Scores(np.arange(len(sequences)), np.array(values, dtype=np.float32), self.version)

    def save(self, folder: str) -> None:
        """Writes the log-odds."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "log_odds.json").write_text(json.dumps(self._odds))


def _counts(sequences: Sequences) -> dict[int, float]:
    tokens, counts = np.unique(np.concatenate(list(sequences.responses())), return_counts=True)
    return dict(zip(tokens.tolist(), (1000 * counts / counts.sum()).tolist(), strict=True))


if __name__ == "__main__":
    main(reward=WordOdds)  # in a program of your own: train(config, reward=WordOdds)

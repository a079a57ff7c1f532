"""A fixed reward from a plain function of texts: nothing is learned, the rest of the loop is the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rayalign.engines.batching import Rank
from rayalign.errors import RayalignError
from rayalign.types import Rollout, Scores, Sequences

Decode = Callable[[np.ndarray], str]
RewardFunction = Callable[[list[str], list[str]], Sequence[float]]


class FunctionReward:
    """Scores (prompt texts, response texts) with a user's function; satisfies the RewardWorker Protocol.

    Args:
        function: maps B prompts and B responses to B numbers.
        decode_prompt, decode_response: token ids to the text that the function sees, without special tokens.
    """

    def __init__(self, function: RewardFunction, decode_prompt: Decode, decode_response: Decode) -> None:
        self._function = function
        self._decode_prompt, self._decode_response = decode_prompt, decode_response

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Nothing to learn."""
        return {}

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Scores of this rank's share of the samples."""
        return self.score_sequences(Sequences.concatenate([r.sequences for r in rollouts]))

    def score_sequences(self, sequences: Sequences) -> Scores:
        """Scores of this rank's share of stored sequences. Raises RayalignError unless each has one number.

        One that is not finite is the policy's to skip: an update without it would be biased.
        """
        rank = Rank.from_environment()
        rows = np.arange(rank.rank, len(sequences), rank.world_size)
        if len(rows) == 0:
            return Scores(rows, np.empty(0, dtype=np.float32), reward_version=0)
        sequences = sequences.take(rows)
        prompts = [self._decode_prompt(tokens) for tokens in sequences.prompts()]
        responses = [self._decode_response(tokens) for tokens in sequences.responses()]
        values = np.asarray(self._function(prompts, responses), dtype=np.float32)
        if values.shape != (len(sequences),):
            raise RayalignError(
                f"the reward function gave {values.shape} values for {len(sequences)} samples; return one number each"
            )
        return Scores(rows, values, reward_version=0)

    def save(self, folder: str) -> None:
        """A function has no weights; the folder says what it was."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = getattr(self._function, "__qualname__", repr(self._function))
        (Path(folder) / "README.md").write_text(f"A fixed reward, computed by the function `{name}`.\n")

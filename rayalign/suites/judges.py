"""What scores answers in an evaluation: a saved reward, and the known reward of a planted world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rayalign.data.tally import Tally
from rayalign.data.tokenize import tokenize_demonstrations
from rayalign.errors import UserError
from rayalign.planted.grammar import parse_prompt
from rayalign.serving.places import find_reward, reward_settings
from rayalign.serving.saved import SavedReward
from rayalign.stages.golden import GOLDEN, golden_expert
from rayalign.storage.evaluation import content_of
from rayalign.suites.answers import Answer
from rayalign.types import Conversation, Demonstration, Ragged, Sequences

Answers = Sequence[Sequence[Answer]]  # [P] prompts, [M] answers each


@dataclass(frozen=True)
class RewardJudge:
    """A reward in a folder; its weights are loaded when it scores, after the policies have left the GPU."""

    folder: Path
    chat_template: str | None = None
    trust_remote_code: bool = False
    name: str = "reward"
    tally: Tally = field(default_factory=Tally)  # of what was too long for it, and cut

    def told(self) -> dict[str, Any]:
        """What it is, for the results, and how many prompts and answers it read only in part, once it has scored."""
        return {"path": str(self.folder), "content": content_of(self.folder), "num_cut": self.tally.cut.total()}

    def scores(self, prompts: Sequence[Conversation], *sides: Answers) -> list[np.ndarray]:
        """[P, M] of each side. Raises UserError for a score that is not a finite number."""
        reward = SavedReward(
            self.folder, chat_template=self.chat_template, trust_remote_code=self.trust_remote_code
        )
        return [self._scores(reward, prompts, side) for side in sides]

    def _scores(self, reward: SavedReward, prompts: Sequence[Conversation], answers: Answers) -> np.ndarray:
        scores = reward.score(_sequences(reward, prompts, answers, self.tally)).astype(np.float64)
        if not np.isfinite(scores).all():
            raise UserError(f"{self.folder}: its score of an answer is not a finite number; is the reward whole?")
        return scores.reshape(len(prompts), -1)


@dataclass(frozen=True)
class GoldenJudge:
    """The reward that a world is made with, read off the text."""

    world: str
    run_folder: Path | None
    name: str = "golden"

    def told(self) -> dict[str, Any]:
        """What it is, and what the world's demonstrator reaches where that is known."""
        expert = None if self.run_folder is None else golden_expert(self.world, self.run_folder)
        return {"world": self.world, "expert": expert}

    def scores(self, prompts: Sequence[Conversation], *sides: Answers) -> list[np.ndarray]:
        """[P, M] of each side."""
        reward = GOLDEN[self.world]
        return [
            np.array(
                [[reward(prompt[-1].content, answer.text, answer.ended) for answer in row]
                 for prompt, row in zip(prompts, side, strict=True)]
            )
            for side in sides
        ]  # fmt: skip


Judge = RewardJudge | GoldenJudge


def find_reward_judge(place: Path, *, chat_template: str | None, trust_remote_code: bool) -> RewardJudge:
    """Without loading its weights. Raises UserError for a place without a reward."""
    folder = find_reward(place)
    reward_settings(folder)  # told before the work
    return RewardJudge(folder, chat_template, trust_remote_code)


def find_golden_judge(place: Path, prompts: Sequence[Conversation], *, world: str | None) -> GoldenJudge | None:
    """The known reward: of the world that is named, else of the run that `place` lies in if it asks that world's prompts."""
    run = next((at for at in (place, *place.resolve().parents[:2]) if any(at.glob("*/world.json"))), None)
    of_the_world = all(len(prompt) == 1 and parse_prompt(prompt[0].content) for prompt in prompts)
    if world is not None and not of_the_world:
        raise UserError(f"--golden {world}: knows the prompts of its own world only; give those, or leave it out")
    if world is None and (run is None or not of_the_world):
        return None
    return GoldenJudge(world or "planted", run)


def _sequences(reward: SavedReward, prompts: Sequence[Conversation], answers: Answers, tally: Tally) -> Sequences:
    """In the reward's own tokens, as in training: an answer that was cut has no end token."""
    ended = np.array([answer.ended for row in answers for answer in row])
    rows = [Demonstration(prompt, a.text) for prompt, row in zip(prompts, answers, strict=True) for a in row]
    whole = tokenize_demonstrations(
        rows, reward.template, max_length=reward.max_length, overlong="truncate", tally=tally
    )
    drop = whole.ended & ~ended & (whole.response_lengths > 1)
    tokens: list[Any] = [row[:-1] if cut else row for row, cut in zip(whole.tokens, drop, strict=True)]
    return Sequences(Ragged.from_list(tokens), whole.prompt_lengths, whole.prompt_ids, whole.ended & ended)

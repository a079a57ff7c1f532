"""Whether a reward learned from demonstrations tells how good a response is, or who wrote it (AfD, section 2.2).

A discriminator of two writers learns whatever tells them apart, style included. Where it sets the demonstrations apart
from the very policy that imitates them much more than that policy from its base, what it goes by is not what imitation
has improved, and selecting or training by it chases the writer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rayalign.evaluate.statistics import Interval, mean_interval

# How much further a reward of quality may set demonstrations above the policy than the policy above its base. Not 0: in
# the world of T25 the reward that saw the policy and its base alone has .80 against .76, because a response in another
# style lies far out in every direction that is not at right angles to style. The two that hack have .92 against .69, and
# .94 against .60.
MARGIN = 0.1


@dataclass(frozen=True, slots=True)
class Heterogeneity:
    """Shares of pairs to one prompt, ties half, with 95% intervals over prompts."""

    writer_auc: Interval  # r(demonstration) > r(policy's sample)
    progress_auc: Interval  # r(policy's sample) > r(base's sample)
    difference: Interval  # of the two, prompt by prompt

    @property
    def warns(self) -> bool:
        """Whether the difference is above MARGIN, its whole interval included."""
        return self.difference.low > MARGIN

    @property
    def verdict(self) -> str:
        """One line: what was measured, what it means, and what to do."""
        measured = (
            f"on {self.difference.num} prompts kept out, the demonstration scores above the policy's sample in "
            f"{_percent(self.writer_auc)} of pairs, the policy's above its base's in {_percent(self.progress_auc)}"
        )
        if self.warns:
            return (
                f"{measured}: this reward tells who wrote a response rather than how good it is, and will be hacked; fit "
                "it on pairs {better: samples of the SFT policy, worse: samples of the base} (Init-SFT, AfD 2.2)"
            )
        if self.difference.high <= MARGIN:
            return f"{measured}: no sign that this reward tells who wrote a response rather than how good it is"
        return (
            f"{measured}: too few prompts to say whether this reward tells who wrote a response or how good it is; sample "
            "on more"
        )

    def as_dict(self) -> dict[str, Any]:
        """What a report holds."""
        return {
            "writer_auc": self.writer_auc.as_dict(),
            "progress_auc": self.progress_auc.as_dict(),
            "writer_minus_progress": self.difference.as_dict(),
            "margin": MARGIN,
            "warns": self.warns,
            "verdict": self.verdict,
        }


def heterogeneity(
    demonstrations: np.ndarray,
    policy: np.ndarray,
    base: np.ndarray,
    demonstration_ids: np.ndarray,
    policy_ids: np.ndarray,
    base_ids: np.ndarray,
) -> Heterogeneity:
    """Of reward scores [D], [P], [B] and the ids of the prompts they answer; prompts without all three are left out.

    The demonstrations, and best the samples too, are to be ones that the reward was not trained on: it may know the others
    by heart. Raises ValueError where no prompt has all three.
    """
    shared = sorted({*demonstration_ids.tolist()} & {*policy_ids.tolist()} & {*base_ids.tolist()})
    if not shared:
        raise ValueError("no prompt has a demonstration, a sample of the policy and one of its base")
    writer, progress = [], []
    for prompt in shared:
        ours = policy[policy_ids == prompt]
        writer.append(_share_above(demonstrations[demonstration_ids == prompt], ours))
        progress.append(_share_above(ours, base[base_ids == prompt]))
    difference = np.array(writer) - np.array(progress)
    return Heterogeneity(mean_interval(writer), mean_interval(progress), mean_interval(difference))


def _share_above(upper: np.ndarray, lower: np.ndarray) -> float:
    """The share of all pairs in which the first is above the second, ties half: [N], [M] -> scalar."""
    return float(((np.sign(upper[:, None] - lower[None, :]) + 1) / 2).mean())


def _percent(share: Interval) -> str:
    half = share.high - share.mean
    return f"{share.mean:.0%}" + (f" (±{half:.0%})" if half == half else "")

"""Alarms about demonstrations that are held out: what the reward thinks of them, and how likely the policy finds them."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from rayalign.telemetry.alarms.rule import Memory, Reading, known

REWARD = "policy/reward_mean"
ACCURACY = "health/demo_accuracy_heldout"
DEMO_NLL = "health/demo/nll_token"


class HeldoutFall:
    """Held-out demonstrations that the reward puts ever lower beside the policy's samples, while the reward rises.

    The measure is how far `demo_accuracy_heldout` is below its best. Down to about a half that is the aim of the
    alternation, and further down a policy may be better than its demonstrations; the alarm is for hardly any left.
    """

    name, collapse = "demo_accuracy_fall", True
    LOW = 0.05
    FALL = 0.15

    def __init__(self, *, brake: str) -> None:
        self.memory: Memory = {"round": [], "rewards": [], "before": [], "best": []}
        self._brake = brake

    def observe(self, round_number: int, found: Mapping[str, float]) -> Reading | None:
        """As Rule: rewards of a round's steps, then its accuracy."""
        memory, reward, accuracy = self.memory, known(found, REWARD), known(found, ACCURACY)
        if reward is not None:
            if memory["round"] != [round_number]:  # rewards of a round without health are not kept
                memory.update(round=[round_number], rewards=[])
            memory["rewards"].append(reward)
        if accuracy is None:
            return None
        gain = self._gain()
        best = memory["best"] = [max([accuracy, *memory["best"]])]
        fall = best[0] - accuracy
        trips = accuracy <= self.LOW and fall >= self.FALL and gain is not None and gain > 0
        return Reading(fall, self._line(best[0], accuracy) if trips else None)

    def _gain(self) -> float | None:
        """How far the reward rose: within the round where that has steps enough, else since the round before."""
        rewards, before = self.memory["rewards"], self.memory["before"]
        if not rewards:
            return None
        third = len(rewards) // 3
        self.memory["before"], self.memory["rewards"] = [fmean(rewards)], []
        if third:
            return fmean(rewards[-third:]) - fmean(rewards[:third])
        return fmean(rewards) - before[0] if before else None

    def _line(self, best: float, accuracy: float) -> str:
        return (
            f"the reward rises while held-out demonstrations fall behind: it puts {accuracy:.0%} of them above the policy's "
            f"samples, {best:.0%} before: either the samples are better, or the reward is exploited; read some of "
            f"both, and if they are not, {self._brake}"
        )


class DemosForgotten:
    """Held-out demonstrations that become less likely, round by round.

    The measure is nats a token now over those at the start. A policy that goes past its demonstrations may double it;
    one that goes away from them, while its reward tells them apart ever better, is told much earlier.
    """

    name, collapse = "demo_nll_ratio", True
    AWAY = 0.75  # accuracy of the reward on held-out demonstrations from which on the policy should come nearer

    def __init__(self, *, limit: float, brake: str) -> None:
        self.memory: Memory = {"nll": [], "start": [], "accuracy": []}
        self._limit, self._brake = limit, brake

    def observe(self, round_number: int, found: Mapping[str, float]) -> Reading | None:
        """As Rule, of health records."""
        nll, accuracy, memory = known(found, DEMO_NLL), known(found, ACCURACY), self.memory
        if nll is None:
            return None
        memory["start"] = memory["start"] or [nll]
        memory["nll"] = [*memory["nll"], nll][-3:]
        memory["accuracy"] = [*memory["accuracy"], accuracy][-2:] if accuracy is not None else []
        if len(memory["nll"]) < 2 or memory["start"][0] <= 0:
            return None
        ratio = nll / memory["start"][0]
        return Reading(ratio, self._line(nll) if ratio > self._limit or self._goes_away(ratio) else None)

    def _goes_away(self, ratio: float) -> bool:
        nll, accuracy = self.memory["nll"], self.memory["accuracy"]
        if len(nll) < 3 or len(accuracy) < 2:
            return False
        return ratio > 1.05 and nll[0] < nll[1] < nll[2] and self.AWAY <= accuracy[0] <= accuracy[1]

    def _line(self, nll: float) -> str:
        return (
            f"held-out demonstrations cost the policy {nll:.3g} nats a token, {self.memory['start'][0]:.3g} at the start: "
            f"it goes away from what it should learn from; {self._brake}"
        )

"""Alarms about the policy's way from its reference: too fast, and to where the reference hardly ever goes."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from rayalign.telemetry.alarms.rule import Memory, Reading, known

KL = "policy/kl_policy_to_ref"
ENTROPY = "policy/entropy"
LENGTH = "policy/length_mean"


class KlGrowth:
    """KL that grows faster than by even steps, which take it up with the square of their number.

    The measure is how many times more than that the last three values are, the least of them, from what stood before
    them 3 or 12 updates ago. A value alone is noise: the estimate has heavy tails.
    """

    name, collapse = "kl_growth", True
    LIMIT = 3.0
    LAST = 3
    HORIZONS = (3, 12)
    LEAST = 0.5  # nats a response; less than this is no distance to grow from

    def __init__(self, *, moving_reference: bool, brake: str) -> None:
        self.memory: Memory = {"values": [], "tops": [], "num": [0.0], "round": []}
        self._moving, self._brake = moving_reference, brake

    def observe(self, round_number: int, found: Mapping[str, float]) -> Reading | None:
        """As Rule; begins anew where the reference has moved."""
        value = known(found, KL)
        if value is None:
            return None
        memory = self.memory
        if self._moving and memory["round"] != [round_number]:
            memory.update(values=[], tops=[], num=[0.0], round=[round_number])
        memory["values"] = [*memory["values"], value][-self.LAST :]
        memory["tops"] = [*memory["tops"], max([value, *memory["tops"][-1:]])][-1 - max(self.HORIZONS) :]
        memory["num"] = [memory["num"][0] + 1]
        growths = [growth for growth in map(self._growth, self.HORIZONS) if growth is not None]
        if not growths:
            return None
        growth = max(growths)
        return Reading(growth, self._line(growth) if growth > self.LIMIT else None)

    def _growth(self, horizon: int) -> float | None:
        updates = int(self.memory["num"][0]) - 1  # since policy and reference were one
        before = updates - horizon
        if before < horizon:
            return None
        top = max(self.LEAST, self.memory["tops"][-1 - horizon])
        recent = enumerate(self.memory["values"], start=updates + 1 - self.LAST)
        return min(value / (top * (place / before) ** 2) for place, value in recent)

    def _line(self, growth: float) -> str:
        return (
            f"the KL to the reference is {median(self.memory['values']):.3g} nats a response and has grown {growth:.2g} "
            f"times as far as even steps take it: the policy runs away from where the reward was learned; {self._brake}"
        )


class Surprise:
    """What the policy's samples cost the reference (its cross-entropy, KL + entropy), over its own entropy.

    About 1 for a policy that chooses among what the reference writes; well above it, it writes what the reference hardly
    ever would, and there a reward was never fitted.
    """

    name, collapse = "reference_surprise", True
    LIMIT = 1.5
    WINDOW = 3
    LEAST = 0.2  # nats a token; a reference that is surer than this is surprised by anything

    def __init__(self, *, moving_reference: bool, brake: str) -> None:
        self.memory: Memory = {"entropy": [], "last": [], "round": []}
        self._moving, self._brake = moving_reference, brake

    def observe(self, round_number: int, found: Mapping[str, float]) -> Reading | None:
        """As Rule; begins anew where the reference has moved."""
        kl, entropy, length = known(found, KL), known(found, ENTROPY), known(found, LENGTH)
        if kl is None or entropy is None or not length:
            return None
        memory = self.memory
        if self._moving and memory["round"] != [round_number]:
            memory.update(entropy=[], last=[], round=[round_number])
        memory["entropy"] = memory["entropy"] or [entropy]
        memory["last"] = [*memory["last"], kl / length + entropy][-self.WINDOW :]
        if len(memory["last"]) < self.WINDOW:
            return None
        start, now = max(self.LEAST, memory["entropy"][0]), median(memory["last"])
        return Reading(now / start, self._line(start, now) if now / start > self.LIMIT else None)

    def _line(self, start: float, now: float) -> str:
        return (
            f"the policy's samples cost the reference {now:.2g} nats a token, where its own cost {start:.2g}: they are "
            f"what it hardly ever writes, and the reward may pay for what it never saw; read some, and {self._brake}"
        )

"""The implicit engine: a policy that learns from its own reward beta log(policy / reference), round after round.

IRFT and SPIN (paper 3, Algorithm 2), DPO and IPO, direct and self-play AIHF (paper 5), GSIL and DFT are its terms. Log-probs
under the reference are computed once, when a round begins, so that no second model is held unless the reference is older
than the round, or samples come while it runs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayalign.data.cursor import Cursor
from rayalign.data.fingerprint import fingerprint
from rayalign.data.pairs import interleaved, rows_by_prompt
from rayalign.engines.checkpointed import joined
from rayalign.engines.implicit_terms import DemonstrationLoss, Grouped, PreferenceLoss, Term
from rayalign.engines.learner import LossOutput
from rayalign.engines.trainable import TrainablePolicy
from rayalign.errors import Diverged, RayalignError, StaleSamples
from rayalign.models.batch import TokenBatch
from rayalign.objectives.reward import joint_coefficients
from rayalign.objectives.segments import segment_sum
from rayalign.ports import ImplicitSetup
from rayalign.storage.checkpoints import STATE
from rayalign.storage.snapshot import Snapshot, pack_sequences, read_tensors, read_values, unpack_sequences
from rayalign.telemetry.metrics import Metrics, Sum
from rayalign.types import Rollout, Sequences


@dataclass
class Groups:
    """Rows in consecutive groups of one size, with the reference's log-prob of each, and the order they are drawn in."""

    sequences: Sequences  # [N * G]
    size: int
    ref: np.ndarray  # [N * G] sums of log-probs
    cursor: Cursor

    @classmethod
    def of(cls, sequences: Sequences, size: int, ref: np.ndarray, *, seed: int) -> Groups:
        """With a cursor at the start."""
        return cls(sequences, size, ref, Cursor(len(sequences) // size, seed=seed, fingerprint=fingerprint(sequences)))

    def __len__(self) -> int:
        return len(self.sequences) // self.size

    def draw(self, num: int) -> np.ndarray:
        """[num] groups, in the cursor's order."""
        return self.cursor.take(min(num, len(self)))

    def rows(self, groups: np.ndarray) -> np.ndarray:
        """The rows of groups, group by group."""
        return (groups[:, None] * self.size + np.arange(self.size)).reshape(-1)

    def pack(self) -> dict[str, torch.Tensor]:
        """As tensors of a snapshot."""
        return pack_sequences(self.sequences, "groups") | {"ref": torch.from_numpy(self.ref.copy())}

    @classmethod
    def unpack(cls, tensors: Mapping[str, torch.Tensor], size: int, cursor: Mapping[str, Any]) -> Groups:
        """What `pack` and the cursor's `state` kept."""
        sequences = unpack_sequences(tensors, "groups")
        return cls(sequences, size, tensors["ref"].numpy(), Cursor.restore(cursor, fingerprint=fingerprint(sequences)))


class ImplicitEngine(TrainablePolicy):
    """One rank of the policy group of `implicit`."""

    def __init__(self, setup: ImplicitSetup) -> None:
        stage = setup.config
        super().__init__(
            setup.path,
            setup.model,
            setup.learner,
            stage.optimizer,
            temperature=1.0,
            total_steps=1,
            seed=setup.seed,
            keeps_reference=stage.keeps_reference,
        )
        self._setup, self._stage = setup, stage
        self._round = self._num_steps = 0
        self._demos: Groups | None = None
        self._previous: Sequences | None = None  # the round's own groups, for the next one
        self._demo_loss: DemonstrationLoss | None = None
        self._preferences: Groups | None = None
        if setup.preferences is not None:
            pairs = interleaved(*setup.preferences)
            self._preferences = Groups.of(pairs, 2, self._policy_sums(pairs), seed=setup.seed + 1)

    def begin_round(self, round_number: int, rows: np.ndarray, rollouts: Sequence[Rollout]) -> int:
        """Makes the round's groups of the demonstrations at `rows` and the policy's samples; returns how many steps it has.

        The reference becomes the present policy (IRFT, SPIN) where it moves.
        """
        stage, self._round = self._stage, round_number
        if stage.reference == "round" and round_number > 0 and self._reference is not None:
            self.move_reference()
        if stage.demonstrations is not None:
            demos = self._setup.demonstrations.take(rows) if self._setup.demonstrations is not None else None
            if demos is None:
                raise RayalignError("the demonstrations' term needs demonstrations; none were given")
            self._begin_demonstrations(demos, rollouts)
        num = max([len(part) for part in (self._demos, self._preferences) if part is not None], default=0)
        num = max(num, len(rows)) if stage.on_policy else num
        steps = stage.epochs * -(-num // stage.batch_size)
        self._num_steps = min(steps, stage.max_steps or steps)
        self._learner.restart_schedule(learning_rate=self._learning_rate(), total_steps=self._num_steps)
        return self._num_steps

    def fit_step(self, rollouts: Sequence[Rollout]) -> Metrics:
        """One optimiser step; `version` advances by one. On policy, on these fresh samples. Raises StaleSamples."""
        started = time.perf_counter()
        for rollout in rollouts:
            if rollout.policy_version != self.version:
                raise StaleSamples(f"samples of policy v{rollout.policy_version} came for the step of v{self.version}")
        demos = self._fresh(rollouts) if rollouts else self._demos
        picked: list[tuple[Term, Groups, np.ndarray, float]] = []
        demo_factor, preference_factor = self._factors()
        if demos is not None and self._demo_loss is not None:
            chosen = np.arange(len(demos)) if rollouts else demos.draw(self._stage.batch_size)
            picked.append((self._demo_loss, demos, chosen, demo_factor))
        if self._preferences is not None and self._stage.preferences is not None:
            loss = PreferenceLoss(self._stage.preferences, beta=self._stage.beta_of(self._round))
            chosen = self._preferences.draw(self._stage.batch_size)
            picked.append((loss, self._preferences, chosen, preference_factor))
        metrics = self._step(picked)
        if self._demo_loss is not None:
            self._demo_loss.after_step(self._learner.all_gather, skipped="num_skipped" in metrics)
        self.version += 1
        return metrics | {"update_s": Sum(time.perf_counter() - started)}

    def load_state(self, folder: str) -> None:
        """As TrainablePolicy, with the round's groups and where they are drawn from; every rank calls it."""
        super().load_state(folder)
        state = Path(folder) / STATE
        values = read_values(state / "implicit.json")
        self._round, self._num_steps = values["round"], values["num_steps"]
        self._learner.set_schedule(learning_rate=self._learning_rate(), total_steps=self._num_steps)
        if values["previous"]:
            self._previous = unpack_sequences(read_tensors(state / "previous.safetensors"), "groups")
        if values["demos"] is not None:
            tensors = read_tensors(state / "demos.safetensors")
            self._demos = Groups.unpack(tensors, values["size"], values["demos"])
        if values["num_groups"] is not None:
            self._demo_loss = self._demonstration_loss(values["num_groups"])
            self._demo_loss.averages = read_tensors(state / "averages.safetensors")["log"].numpy()
        if self._preferences is not None:
            self._preferences.cursor = Cursor.restore(
                values["preferences"], fingerprint=fingerprint(self._preferences.sequences)
            )

    def _snapshot(self) -> Snapshot:
        whole = super()._snapshot()
        if self._learner.rank.rank != 0:
            return whole
        own = Snapshot()
        if self._previous is not None:
            own.tensors[f"{STATE}/previous"] = pack_sequences(self._previous, "groups")
        if self._demos is not None:
            own.tensors[f"{STATE}/demos"] = self._demos.pack()
        if self._demo_loss is not None:
            own.tensors[f"{STATE}/averages"] = {"log": torch.from_numpy(self._demo_loss.averages.copy())}
        own.values[f"{STATE}/implicit"] = {
            "round": self._round,
            "num_steps": self._num_steps,
            "previous": self._previous is not None,
            "demos": self._demos.cursor.state() if self._demos else None,
            "size": self._demos.size if self._demos else 0,
            "num_groups": len(self._demo_loss.averages) if self._demo_loss else None,
            "preferences": self._preferences.cursor.state() if self._preferences else None,
        }
        return joined(whole, own)

    def _learning_rate(self) -> float:
        """The peak of this round."""
        rates = self._stage.learning_rates
        return rates[self._round] if rates else self._stage.optimizer.learning_rate

    def _demonstration_loss(self, num_groups: int) -> DemonstrationLoss:
        term = self._stage.demonstrations
        assert term is not None
        return DemonstrationLoss(
            term, beta=self._stage.beta_of(self._round), own=self._setup.loss, num_groups=num_groups
        )

    def _begin_demonstrations(self, demos: Sequences, rollouts: Sequence[Rollout]) -> None:
        stage, term = self._stage, self._stage.demonstrations
        assert term is not None
        if not term.draws:
            groups, size = demos, 1
        elif stage.on_policy:
            groups, size = demos, 0  # samples come with each step
        else:
            sources = [r.sequences for r in rollouts] + self._setup.negatives
            size = 1 + term.num_per_prompt if term.loss == "dft" else 2
            groups = _against(demos, Sequences.concatenate(sources), size)
            if stage.keep_previous and self._previous is not None:
                groups, own = Sequences.concatenate([groups, self._previous]), groups
                self._previous = own
            else:
                self._previous = groups
        self._demos = None
        num = len(groups) // max(size, 1)
        if size:
            ref = self._reference_sums(groups) if self._uses_old_reference() else self._policy_sums(groups)
            self._demos = Groups.of(groups, size, ref, seed=self._setup.seed + 1000 * (self._round + 1))
        self._demo_loss = self._demonstration_loss(num)

    def _uses_old_reference(self) -> bool:
        has_one = self._reference is not None or self._policy.has_adapter
        return self._stage.reference == "start" and self._round > 0 and has_one

    def _fresh(self, rollouts: Sequence[Rollout]) -> Groups:
        """On policy: every fresh sample against the demonstration of its prompt, with the frozen reference."""
        assert self._setup.demonstrations is not None
        samples = Sequences.concatenate([r.sequences for r in rollouts])
        demos = self._setup.demonstrations
        demos = demos.take(np.flatnonzero(np.isin(demos.prompt_ids, samples.prompt_ids)))
        groups = _against(demos, samples, 2)
        return Groups.of(groups, 2, self._reference_sums(groups), seed=0)

    def _factors(self) -> tuple[float, float]:
        stage, setup = self._stage, self._setup
        return joint_coefficients(
            demo_weight=stage.demonstrations.weight if stage.demonstrations else 0.0,
            preference_weight=stage.preferences.weight if stage.preferences else 0.0,
            num_demonstrations=len(setup.demonstrations) if stage.demonstrations and setup.demonstrations else 0,
            num_preferences=len(self._preferences) if self._preferences else 0,
            weighting=stage.weighting,
        )

    def _step(self, picked: list[tuple[Term, Groups, np.ndarray, float]]) -> Metrics:
        """One optimiser step on the sum of the terms' means over their groups, each times its factor."""
        places = [groups.rows(chosen) for _, groups, chosen, _ in picked]
        sequences = Sequences.concatenate(
            [groups.sequences.take(rows) for (_, groups, _, _), rows in zip(picked, places, strict=True)]
        )
        ref = torch.from_numpy(
            np.concatenate([groups.ref[rows] for (_, groups, _, _), rows in zip(picked, places, strict=True)])
        )
        ends = np.cumsum([len(rows) for rows in places])
        sizes = np.concatenate([np.full(len(chosen), groups.size) for _, groups, chosen, _ in picked])
        weight = self._stage.likelihood_weight

        def loss(model: Any, batch: TokenBatch) -> LossOutput:
            sums = segment_sum(model(batch)[0].float(), batch.response_lengths)
            total, start = sums.sum() * 0, 0
            metrics: Metrics = {}
            for (term, groups, chosen, factor), end in zip(picked, ends, strict=True):
                own = np.flatnonzero((batch.rows >= start) & (batch.rows < end))
                if len(own):
                    rows = batch.rows[own]
                    size, num = groups.size, len(chosen)
                    grouped = Grouped(
                        policy=sums[torch.from_numpy(own).to(sums.device)].reshape(-1, size),
                        ref=ref[rows].reshape(-1, size).to(sums),
                        ids=chosen[(rows[::size] - start) // size],
                    )
                    value, found = term(grouped)
                    total = total + factor / num * value
                    metrics |= found
                    if weight and isinstance(term, DemonstrationLoss):
                        total = total - weight / num * grouped.policy[:, 0].sum()
                start = end
            return LossOutput(total, metrics)

        return self._learner.step(sequences, loss, denominator=1.0, group_sizes=sizes)

    def _policy_sums(self, sequences: Sequences) -> np.ndarray:
        return _sums(self._logprobs(sequences), sequences)

    def _reference_sums(self, sequences: Sequences) -> np.ndarray:
        return _sums(self._reference_logprobs(sequences), sequences)


def _sums(logprobs: torch.Tensor, sequences: Sequences) -> np.ndarray:
    """[B] log-probs of whole responses. Raises Diverged for one that is not finite.

    Each loss is a difference to the reference's: an infinite one would leave some links flat, and be stepped on.
    """
    sums = np.asarray(segment_sum(logprobs, torch.from_numpy(sequences.response_lengths)), dtype=np.float32)
    if num := int((~np.isfinite(sums)).sum()):
        raise Diverged(
            f"{num} of {len(sums)} responses have no finite log-prob under the reference; nothing was learned from them. "
            "Look at the model that the stage starts from, lower the learning rate, or set model.dtype to float32"
        )
    return sums


def _against(demos: Sequences, samples: Sequences, size: int) -> Sequences:
    """[demo, sample, ...] groups of `size` rows: each sample of a demonstration's prompt comes once.

    Example: size 2 and three samples to a prompt make three pairs with its demonstration.
    """
    of_prompt = rows_by_prompt(samples.prompt_ids)
    rows: list[int] = []
    for demo, prompt in enumerate(demos.prompt_ids.tolist()):
        own = of_prompt.get(prompt, np.empty(0, dtype=np.int64))
        own = own[: len(own) - len(own) % (size - 1)]
        for part in own.reshape(-1, size - 1):
            rows += [demo, *(len(demos) + part).tolist()]
    if not rows:
        raise RayalignError("no sample answers the prompt of any demonstration; nothing to learn from")
    return Sequences.concatenate([demos, samples]).take(np.array(rows))

"""The terms of an implicit step: what each group of rows adds to the loss, from sums of log-probs and their reference.

Rows come in groups: (demonstration, sample), (demonstration, samples...), (demonstration,) or (chosen, rejected).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from rayalign.config.loops import DemonstrationTerm, PreferenceTerm
from rayalign.objectives.dft import dft_loss
from rayalign.objectives.implicit import dpo_loss, gsil_loss, implicit_pair_loss, ipo_loss
from rayalign.objectives.reward import margin_demo_minus_agent, pair_accuracy
from rayalign.ports import PairLossFn
from rayalign.telemetry.metrics import Mean, Metrics


@dataclass
class Grouped:
    """Log-prob sums of the groups of one term in a micro-batch: [N, G], the first of a group being the better one."""

    policy: torch.Tensor
    ref: torch.Tensor
    ids: np.ndarray  # [N] which groups of the round these are


class Term(Protocol):
    """A sum over groups, and metrics."""

    def __call__(self, rows: Grouped) -> tuple[torch.Tensor, Metrics]:
        """(sum, metrics)."""


class DemonstrationLoss:
    """The demonstrations' term with the round's beta (IRFT, SPIN, GSIL, DFT, or plain likelihood)."""

    def __init__(self, config: DemonstrationTerm, *, beta: float, own: PairLossFn | None, num_groups: int) -> None:
        self._config, self._beta, self._own = config, beta, own
        self.averages = np.full(num_groups, np.nan)  # DFT's, of logs, for each group
        self._newest: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, rows: Grouped) -> tuple[torch.Tensor, Metrics]:
        """As Term."""
        demo = rows.policy[:, 0]
        if self._config.loss == "likelihood":
            return -demo.sum(), {"demo_nll": Mean(-float(demo.detach().sum()), len(demo))}
        if self._config.loss == "dft":
            found = self._dft(rows)
            return found, {"loss": Mean(float(found.detach()), len(demo)), **self._margins(rows)}
        found = self._pairs(rows)
        return found, {"loss": Mean(float(found.detach()), len(demo)), **self._margins(rows)}

    def after_step(self, all_gather: Callable[[Any], list[Any]], *, skipped: bool) -> None:
        """Takes over what every rank found, which rank sees a group next is not known; of a skipped step nothing."""
        if self._config.loss != "dft":
            return
        for found in [] if skipped else all_gather(self._newest):
            for ids, log_averages in found:
                self.averages[ids] = log_averages
        self._newest = []

    def _pairs(self, rows: Grouped) -> torch.Tensor:
        (demo, agent), (ref_demo, ref_agent) = rows.policy.unbind(1), rows.ref.unbind(1)
        if self._own is not None:
            return self._own(self._beta * (demo - ref_demo), self._beta * (agent - ref_agent))
        if self._config.loss == "gsil":
            return gsil_loss(demo - ref_demo, agent - ref_agent, beta=self._beta, link=self._config.gsil_link)
        return implicit_pair_loss(
            demo,
            agent,
            demo_ref_logprob_sums=ref_demo,
            agent_ref_logprob_sums=ref_agent,
            beta=self._beta,
            link=self._config.loss,
        )

    def _dft(self, rows: Grouped) -> torch.Tensor:
        before = torch.from_numpy(self.averages[rows.ids]).to(rows.policy)  # nan where there is none yet
        found, after = dft_loss(
            rows.policy[:, 0],
            rows.policy[:, 1:],
            rows.ref[:, 1:],
            tau=self._config.dft_tau,
            log_averages=before,
            decay=self._config.dft_decay,
        )
        self._newest.append((rows.ids, after.detach().cpu().numpy()))
        return found

    def _margins(self, rows: Grouped) -> Metrics:
        policy, ref = rows.policy.detach(), rows.ref
        implicit = self._beta * (policy - ref)
        demo, agent = implicit[:, 0], implicit[:, 1:].mean(1)
        num = len(demo)
        return {
            "pair_accuracy": Mean(float(pair_accuracy(demo, agent)), num),
            "margin_demo_minus_agent": Mean(float(margin_demo_minus_agent(demo, agent)), num),
            "demo_nll": Mean(-float(policy[:, 0].sum()), num),
            "agent_nll": Mean(-float(policy[:, 1:].mean(1).sum()), num),
        }


class PreferenceLoss:
    """The preferences' term (DPO, IPO, hinge); its reference is the stage's first model."""

    def __init__(self, config: PreferenceTerm, *, beta: float) -> None:
        self._config, self._beta = config, config.beta or beta

    def __call__(self, rows: Grouped) -> tuple[torch.Tensor, Metrics]:
        """As Term."""
        (chosen, rejected), (ref_chosen, ref_rejected) = rows.policy.unbind(1), rows.ref.unbind(1)
        arguments: dict[str, Any] = {"beta": self._beta}
        if self._config.loss == "hinge":
            found = implicit_pair_loss(
                chosen,
                rejected,
                demo_ref_logprob_sums=ref_chosen,
                agent_ref_logprob_sums=ref_rejected,
                link="hinge",
                **arguments,
            )
        else:
            loss = dpo_loss if self._config.loss == "dpo" else ipo_loss
            found = loss(
                chosen,
                rejected,
                chosen_ref_logprob_sums=ref_chosen,
                rejected_ref_logprob_sums=ref_rejected,
                **arguments,
            )
        implicit = self._beta * (rows.policy.detach() - rows.ref)
        num = len(chosen)
        return found, {
            "preference_loss": Mean(float(found.detach()), num),
            "preference_pair_accuracy": Mean(float(pair_accuracy(implicit[:, 0], implicit[:, 1])), num),
            "margin_chosen_minus_rejected": Mean(float(margin_demo_minus_agent(implicit[:, 0], implicit[:, 1])), num),
        }

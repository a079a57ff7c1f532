"""Token batches: what one forward pass sees, padded or packed, defined by lengths and never by token ids.

Shapes: R rows of L tokens in the model's input, B sequences laid out in them, T response tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rayalign.types import Sequences


@dataclass(frozen=True)
class TokenBatch:
    """One micro-batch. Padding sits on the right, so causal attention never sees it and needs no mask."""

    input_ids: torch.Tensor  # [R, L]
    position_ids: torch.Tensor  # [R, L]; restarts at 0 where a packed sequence begins
    predicts_at: torch.Tensor  # [T] places, in the flattened [R * L] states, that predict the response tokens
    labels: torch.Tensor  # [T] the response tokens
    response_lengths: torch.Tensor  # [B]
    rows: np.ndarray  # [B] places of these sequences in the batch they were taken from
    most_labels: int  # the largest T of any rank in this pass; the LM head is called as often on all of them

    @property
    def responses_at(self) -> torch.Tensor:
        """[T] places of the response tokens' own states."""
        return self.predicts_at + 1


def token_batch(
    sequences: Sequences,
    rows: np.ndarray,
    *,
    packing: bool,
    device: torch.device | str = "cpu",
    most_labels: int = 0,
) -> TokenBatch:
    """Lays the chosen sequences out, one below the other (padded) or end to end in one row (packed)."""
    chosen = sequences.take(rows)
    lengths = chosen.tokens.lengths
    if packing:
        width, offsets = int(lengths.sum()), chosen.tokens.starts
        input_ids = chosen.tokens.values.reshape(1, width)
        position_ids = np.concatenate([np.arange(n) for n in lengths]).reshape(1, width)
    else:
        width = int(lengths.max())
        offsets = np.arange(len(rows)) * width
        input_ids = np.zeros((len(rows), width), dtype=np.int64)
        for row, tokens in enumerate(chosen.tokens):
            input_ids[row, : len(tokens)] = tokens
        position_ids = np.broadcast_to(np.arange(width), input_ids.shape)
    response_lengths = chosen.response_lengths
    # The state at position p predicts token p + 1: responses are predicted from one place before they begin.
    first = offsets + chosen.prompt_lengths - 1
    predicts_at = np.concatenate([np.arange(f, f + n) for f, n in zip(first, response_lengths, strict=True)])
    labels = np.concatenate(list(chosen.responses()))

    def tensor(array: np.ndarray) -> torch.Tensor:
        # A copy: arrays from Ray's object store are read-only, which torch warns of.
        return torch.from_numpy(np.array(array, dtype=np.int64)).to(device, non_blocking=True)

    return TokenBatch(
        input_ids=tensor(input_ids),
        position_ids=tensor(position_ids),
        predicts_at=tensor(predicts_at),
        labels=tensor(labels),
        response_lengths=tensor(response_lengths),
        rows=rows,
        most_labels=max(most_labels, len(labels)),
    )

"""Weights over gloo: two ZeRO-3 trainer ranks, none of which holds a whole weight, and vLLM in a third process."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch

from rayalign.engines.vllm_backend import transfer
from rayalign.errors import SyncError
from rayalign.ports import TransferSetup
from tests.engines.toy import policy_engine
from tests.engines.worlds import free_port


def test_two_sharded_ranks_send_to_another_process(two_ranks):
    """After each of two updates: version, digest and log-probs are those of the trainer."""
    sender, other = (rank["sync"] for rank in two_ranks)
    assert [sync["sent"].version for sync in sender] == [1, 2]
    for sync in sender:
        assert sync["held"] == sync["sent"]
        assert sync["drawn_version"] == sync["sent"].version
        assert sync["stale_mean"] > 0.01, "the update is too small to test a sync"
        assert sync["mismatch_mean"] < 1e-5
        assert sync["mismatch_max"] < 1e-4
    assert sender[0]["sent"].digest != sender[1]["sent"].digest
    assert [sync["mismatch_mean"] for sync in other] == [sync["mismatch_mean"] for sync in sender]


class Absent:
    """A sampler that says yes to everything, and never joins."""

    version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Nothing."""


def test_a_sampler_that_never_joins_is_an_error_in_time(tied):
    """The deadline of the transfer, not an endless wait; the message says where the two were to meet."""
    engine, port = policy_engine(tied), free_port()
    setup = TransferSetup(backend="gloo", address="127.0.0.1", port=port, num_receivers=1, deadline_s=2)
    started = time.monotonic()
    with pytest.raises(SyncError, match=f"did not join .*127.0.0.1:{port}, 2 s"):
        engine.connect(Absent(), setup)
    assert time.monotonic() - started < 20


def test_weights_travel_in_buckets_of_mixed_dtypes(monkeypatch):
    """Real gloo between two threads: several broadcasts, odd sizes, a tensor larger than a bucket."""
    monkeypatch.setattr(transfer, "BUCKET_BYTES", 64)
    shapes = [((3,), torch.bfloat16), ((5, 2), torch.float32), ((1,), torch.bfloat16), ((40,), torch.float32)]
    weights = [(f"w{i}", torch.randn(shape).to(dtype)) for i, (shape, dtype) in enumerate(shapes * 2)]
    assert len(list(transfer._buckets(weights))) == 4
    info = transfer.GlooSenderInfo(
        rank=0, master_address="127.0.0.1", master_port=free_port(), world_size=2, timeout_s=20
    )
    update = transfer.GlooUpdateInfo(
        names=[name for name, _ in weights],
        dtype_names=[str(tensor.dtype).removeprefix("torch.") for _, tensor in weights],
        shapes=[list(tensor.shape) for _, tensor in weights],
    )
    received: list[tuple[str, torch.Tensor]] = []
    thread = threading.Thread(
        target=lambda: received.extend(transfer._received(transfer._meet(info, rank=1), update)), daemon=True
    )
    thread.start()
    group = transfer._meet(info, rank=0)
    for bucket in transfer._buckets(weights):
        transfer._broadcast(group, torch.cat([t.reshape(-1).view(torch.uint8) for _, t in bucket]))
    thread.join(20)
    assert [name for name, _ in received] == [name for name, _ in weights]
    for (_, got), (_, sent) in zip(received, weights, strict=True):
        assert got.dtype == sent.dtype and torch.equal(got, sent)

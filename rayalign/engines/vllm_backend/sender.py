"""The trainer's end of a weight sync, through vLLM's trainer-side API; every sync is numbered and checksummed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from rayalign.engines.vllm_backend.transfer import GlooSenderInfo, extend_digest, register
from rayalign.ports import TransferSetup, WeightClient
from rayalign.types import WeightReport

if TYPE_CHECKING:
    from rayalign.engines.trainable import TrainablePolicy


class PolicySource(WeightSource):
    """The policy's weights as vLLM's senders read them; the digest of the last pass is kept."""

    def __init__(self, policy: TrainablePolicy, *, with_digest: bool) -> None:
        self._policy = policy
        self._with_digest = with_digest
        self.digest = ""

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, dtype, shape) for name, dtype, shape in self._policy.weight_shapes()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        checksum = 0
        for name, tensor in self._policy.weights():
            if self._with_digest:
                checksum = extend_digest(checksum, name, tensor)
            yield name, tensor
        self.digest = f"{checksum:08x}" if self._with_digest else ""


class WeightSender:
    """Sends the policy's weights to all replicas. Built, and called, on every policy rank; rank 0 sends."""

    def __init__(self, policy: TrainablePolicy, client: WeightClient, transfer: TransferSetup, *, rank: int) -> None:
        register()
        self._policy, self._client, self._transfer = policy, client, transfer
        # On GPUs the replicas' own checksums are compared with each other, without a copy to the host here.
        self._source = PolicySource(policy, with_digest=transfer.backend in {"gloo", "local"})
        self._engine = None
        if transfer.backend != "local":
            info = _init_info(transfer, rank)
            self._engine = WeightTransferTrainerFactory.trainer_init(info, client=client, source=self._source)

    def send(self) -> WeightReport:
        """One sync; the replicas hold the policy's `version` afterwards. Raises RayalignError, SyncError.

        Weights that are not finite are refused before the replicas open the sync: they keep what they have.
        """
        self._policy.check_finite()
        self._client.version = self._policy.version
        if self._engine is not None:
            self._engine.send_weights()
        else:
            self._client.start_weight_update()
            self._client.update_weights({"weights": iter(self._source)})
            self._client.finish_weight_update()
        return WeightReport(self._policy.version, self._source.digest)


def _init_info(transfer: TransferSetup, rank: int) -> Any:
    if transfer.backend == "ipc":
        return IPCTrainerInitInfo(rank=rank, packed=True)
    meeting: dict[str, Any] = {
        "rank": rank,
        "master_address": transfer.address,
        "master_port": transfer.port,
        "world_size": 1 + transfer.num_receivers,
    }
    if transfer.backend == "nccl":
        return NCCLTrainerInitInfo(**meeting)
    return GlooSenderInfo(**meeting, timeout_s=transfer.deadline_s)

"""Weight transfer into vLLM through its own API, with the two engines it lacks: gloo between CPU processes, and local.

vLLM ships `nccl` (separate GPUs) and `ipc` (one GPU). On CPU it packs linear weights and drops the originals, so every
receiver here goes through vLLM's layerwise reload; modules whose packed copy the reload leaves stale (a tied LM head
raises no error, its log-probs are just wrong) are packed again at the end. Source: vllm.distributed.weight_transfer.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from vllm.distributed.utils import stateless_init_torch_distributed_process_group
from vllm.distributed.weight_transfer import (
    WeightTransferEngineFactory,
    WeightTransferTrainerFactory,
)
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from rayalign.errors import SyncError

BUCKET_BYTES = 64 * 2**20  # of one gloo broadcast; bounds the receiver's extra memory


def register() -> None:
    """Makes `gloo` and `local` known to vLLM. Called in every vLLM process, through its plugin entry point."""
    if "gloo" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("gloo", GlooReceiver)
        WeightTransferEngineFactory.register_engine("local", LocalReceiver)
        WeightTransferTrainerFactory.register_engine("gloo", GlooSender)


def extend_digest(checksum: int, name: str, tensor: torch.Tensor) -> int:
    """A checksum over names and bytes, in order; sender and receivers must agree on it."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return zlib.crc32(flat.cpu().numpy(), zlib.crc32(name.encode(), checksum))


@dataclass
class LocalInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: trainer and sampler are one process."""


@dataclass
class LocalUpdateInfo(WeightTransferUpdateInfo):
    """The weights themselves, by reference."""

    weights: Iterable[tuple[str, torch.Tensor]]


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """Where the group meets; worker i of the engine takes rank `rank_offset` + i."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """What the broadcast will bring, in order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


@dataclass
class GlooSenderInfo(TrainerInitInfo):
    """The trainer's side of the rendezvous; rank 0 sends to world_size - 1 workers, replica by replica."""

    backend: ClassVar[str] = "gloo"

    master_address: str
    master_port: int
    world_size: int
    timeout_s: float


class CpuReceiver(WeightTransferEngine):
    """What both CPU receivers share: layerwise reload, packing what it leaves stale, and a digest of what came."""

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module) -> None:
        super().__init__(config, vllm_config, device, model)
        self.digest = ""

    def start_weight_update(self) -> None:
        self._checksum = 0
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        _pack_stale_modules(self.model)
        self.digest = f"{self._checksum:08x}"

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class synchronises an accelerator here, and there is none.
        self.receive_weights(self.parse_update_info(update_info))

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Loads weights, extending the digest as they pass."""
        for name, tensor in weights:
            self._checksum = extend_digest(self._checksum, name, tensor)
            self.model.load_weights([(name, tensor)])

    def shutdown(self) -> None:
        """Nothing is held."""


class LocalReceiver(CpuReceiver):
    """Trainer and sampler in one process: tensors arrive by reference."""

    init_info_cls = LocalInitInfo
    update_info_cls = LocalUpdateInfo

    def init_transfer_engine(self, init_info: LocalInitInfo) -> None:
        """Nothing to set up."""

    def receive_weights(self, update_info: LocalUpdateInfo) -> None:
        self.load(update_info.weights)


class GlooReceiver(CpuReceiver):
    """Receives gloo broadcasts from the trainer's rank 0."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        parallel = self.parallel_config
        worker = parallel.data_parallel_index * parallel.world_size + parallel.rank
        self.group = _meet(init_info, rank=init_info.rank_offset + worker)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        self.load(_received(self.group, update_info))

    def shutdown(self) -> None:
        self.group = None


class GlooSender(TrainerWeightTransferEngine[GlooSenderInfo]):
    """The trainer's side: rank 0 broadcasts, the other ranks only take part in gathering what ZeRO has sharded."""

    init_info_cls = GlooSenderInfo

    @classmethod
    def trainer_init(
        cls, init_info: GlooSenderInfo, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> GlooSender:
        engine = cls(client=client, source=source, is_sender=init_info.is_sender)
        if engine.is_sender:
            info = asdict(init_info)
            del info["rank"]
            with ThreadPoolExecutor(max_workers=1) as pool:
                joining = pool.submit(client.init_weight_transfer_engine, {**info, "rank_offset": 1})
                try:
                    engine.group = _meet(init_info, rank=0)
                except RuntimeError as error:
                    raise _sync_error("a sampler did not join the transfer group", init_info, error) from error
                joining.result()
            engine._info = init_info
        return engine

    def send_weights(self) -> None:
        assert self.source is not None
        if not self.is_sender:
            for _ in self.source:
                pass
            return
        metadata = self.source.metadata()
        update = GlooUpdateInfo(
            names=[m.name for m in metadata],
            dtype_names=[str(m.dtype).removeprefix("torch.") for m in metadata],
            shapes=[list(m.shape) for m in metadata],
        )
        self.client.start_weight_update()
        with ThreadPoolExecutor(max_workers=1) as pool:
            receiving = pool.submit(self.client.update_weights, asdict(update))
            for bucket in _buckets(self.source):
                flat = torch.cat([t.detach().contiguous().reshape(-1).view(torch.uint8) for _, t in bucket])
                try:
                    _broadcast(self.group, flat)
                except RuntimeError as error:
                    raise _sync_error("a sampler stopped receiving weights", self._info, error) from error
            receiving.result()
        self.client.finish_weight_update()


def _meet(info: GlooInitInfo | GlooSenderInfo, *, rank: int) -> dist.ProcessGroup:
    return stateless_init_torch_distributed_process_group(
        info.master_address,
        info.master_port,
        rank,
        info.world_size,
        backend="gloo",
        timeout=timedelta(seconds=info.timeout_s),
    )


def _sync_error(what: str, info: GlooSenderInfo, error: RuntimeError) -> SyncError:
    where = f"{info.master_address}:{info.master_port}, {info.timeout_s:g} s allowed"
    return SyncError(f"{what} ({where}): {' '.join(str(error).split())[:200]}")


def _broadcast(group: dist.ProcessGroup, tensor: torch.Tensor) -> None:
    options = dist.BroadcastOptions()
    options.rootRank = 0
    options.rootTensor = 0
    group.broadcast([tensor], options).wait()


def _buckets(source: Iterable[tuple[str, torch.Tensor]]) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """Splits a stream of tensors where a bucket is full; both sides split alike, by sizes alone."""
    bucket: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, tensor in source:
        if bucket and size + tensor.nbytes > BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    if bucket:
        yield bucket


def _received(group: dist.ProcessGroup, info: GlooUpdateInfo) -> Iterator[tuple[str, torch.Tensor]]:
    expected = (
        (name, torch.empty(shape, dtype=getattr(torch, dtype), device="meta"))
        for name, dtype, shape in zip(info.names, info.dtype_names, info.shapes, strict=True)
    )
    for bucket in _buckets(expected):
        flat = torch.empty(sum(t.nbytes for _, t in bucket), dtype=torch.uint8)
        _broadcast(group, flat)
        parts = flat.split([t.nbytes for _, t in bucket])
        for (name, shape_of), part in zip(bucket, parts, strict=True):
            # A part may start at an odd offset for its dtype; the copy aligns it.
            yield name, part.clone().view(shape_of.dtype).view(shape_of.shape)


def _pack_stale_modules(model: torch.nn.Module) -> None:
    """Packs again the modules that keep their weight beside the packed copy: embeddings and LM heads."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "cpu_linear") and weight is not None and weight.numel() > 0:
            module.quant_method.process_weights_after_loading(module)

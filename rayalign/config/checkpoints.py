"""When a stage is saved while it runs, how much is kept, and where a copy goes."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, Field

from rayalign.config.base import Positive, PositiveInt, Strict

# What may follow the ? of an address: how a store is reached.
_OPTIONS = {
    "region", "scheme", "endpoint_override", "force_virtual_addressing", "tls_ca_file_path",  # s3
    "project_id",  # gs
    "enable_tls", "tenant_id", "credential_kind",  # abfs
    "blob_storage_authority", "blob_storage_scheme", "dfs_storage_authority", "dfs_storage_scheme",
}  # fmt: skip


def _address(uri: str) -> str:
    """Raises ValueError for what is none; that it holds no secret is seen to by `config.credentials`."""
    try:
        parts = urlsplit(uri)
        options = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:  # a bracket that does not close
        raise ValueError("no address; write it as s3://BUCKET/PREFIX") from None
    if not parts.scheme or not (parts.netloc or (parts.scheme == "file" and parts.path.strip("/"))):
        raise ValueError("no address; write it as s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, abfs://... or file:///FOLDER")
    if parts.fragment or uri.endswith("#"):
        raise ValueError("an address here has no #; remove it")
    if unknown := [name for name, _ in options if name not in _OPTIONS]:
        raise ValueError(f"{unknown[0]!r} may not follow the ? of an address; what may: {', '.join(sorted(_OPTIONS))}")
    return uri


Address = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_address)]


class CheckpointConfig(Strict):
    """Checkpoints of stages that train: an interrupted run goes on from the newest, in RUN/checkpoints/STAGE."""

    every_s: Positive | None = Field(900.0, description="seconds between two; unset: only by steps")
    every_steps: PositiveInt | None = Field(None, description="optimiser or policy steps between two, besides")
    keep: PositiveInt = Field(2, description="how many of the newest stay")
    grace_s: Positive = Field(25.0, description="after SIGTERM, for the step in progress to end and be saved")
    best: str | None = Field(
        None,
        description="a metric of irl, rl or implicit, for instance health/demo_accuracy_heldout: the checkpoint of the "
        "round where it was highest stays besides",
    )
    mirror: Address | None = Field(
        None,
        description="s3://BUCKET/PREFIX, gs://, abfs:// or file:///FOLDER: what a resumption needs is copied there, and "
        "taken from there where the run folder has less",
    )
    mirror_timeout_s: Positive = Field(
        60.0, le=3600, description="a call to the mirror has failed when nothing has moved for so long"
    )

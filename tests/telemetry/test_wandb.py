"""What an offline run of Weights & Biases holds, read from its own file."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayalign.config.telemetry import TelemetryConfig, WandbConfig
from tests.telemetry.trackers import COLUMNS, CURVES, RESOLVED, ROWS, run_twice

BLOCK, HEADER, FILE_HEADER = 32768, 7, 7


def wandb_records(file: Path) -> Iterator[Any]:
    """The protobuf records of a .wandb file: LevelDB's log of blocks, each piece with checksum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), FILE_HEADER, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        whole += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(whole)
            whole = b""


def history(records: list[Any]) -> list[dict[str, Any]]:
    """What was logged, a dictionary a call; a table's own keys joined by dots."""
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]


def test_an_offline_run_holds_curves_config_and_tables(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run_twice(tmp_path, TelemetryConfig(tensorboard=False, wandb=WandbConfig(project="p", mode="offline")))
    run_id = (tmp_path / "wandb_run_id").read_text().strip()
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run_id}*/run-{run_id}.wandb"))
    assert len(files) == 2  # of the run and of its resumption, which a sync makes one
    parts = [list(wandb_records(file)) for file in files]
    logged = [line for part in parts for line in history(part)]
    for name, points in CURVES.items():
        assert [(line["global_step"], line[name]) for line in logged if name in line] == points
    (table,) = [line for line in logged if "irl/samples._type" in line]
    assert (table["global_step"], table["irl/samples.nrows"], table["irl/samples.ncols"]) == (3, 2, 4)
    kept = json.loads((files[1].parent / "files" / table["irl/samples.path"]).read_text())
    assert kept == {"columns": list(COLUMNS), "data": [list(row) for row in ROWS]}
    for part in parts:
        (run,) = [record.run for record in part if record.WhichOneof("record_type") == "run"]
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert (run.project, run.display_name, run.run_id) == ("p", "demo", run_id)
        assert {key: config[key] for key in RESOLVED} == RESOLVED
        axes = {m.metric.glob_name: m.metric.step_metric for m in part if m.WhichOneof("record_type") == "metric"}
        assert axes["*"] == "global_step"

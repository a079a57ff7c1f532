"""What a sink writes, its own reader reads back."""

from __future__ import annotations

import json
import logging
import math
import sys

import numpy as np
import pytest

from rayalign.config.telemetry import MlflowConfig, TelemetryConfig, WandbConfig
from rayalign.errors import DataError, UserError
from rayalign.telemetry.metrics import Last, Mean
from rayalign.telemetry.sinks import JsonlSink, read_jsonl
from rayalign.telemetry.tensorboard_sink import TensorBoardSink
from rayalign.telemetry.tracker import Tracker

ONLY_JSONL = TelemetryConfig(tensorboard=False)


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curves(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def test_jsonl_is_on_disk_after_every_line(tmp_path):
    sink = JsonlSink(tmp_path / "deep" / "metrics.jsonl")
    sink.log({"stage": "irl", "x": 1.5}, 1)
    assert records(tmp_path / "deep") == [{"stage": "irl", "x": 1.5}]
    sink.close()


def test_jsonl_writes_valid_json_for_what_is_not_finite(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.log({"stage": "irl", "loss": math.nan, "ratio": -math.inf, "kl": 1.0}, 1)
    sink.close()

    def refuse(constant):
        raise AssertionError(constant)

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {
        "stage": "irl",
        "loss": None,
        "ratio": None,
        "kl": 1.0,
        "nonfinite": {"loss": "nan", "ratio": "-inf"},
    }


def record(step):
    return {"stage": "irl", "round": 0, "step": step, "global_step": step, "time_s": 0.5}


def test_jsonl_goes_on_after_a_line_that_was_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{json.dumps(record(1))}\n{json.dumps(record(2))}\n{json.dumps(record(3))[:-9]}")
    assert [r["step"] for r in read_jsonl(path)] == [1, 2]
    sink = JsonlSink(path)
    sink.log(record(3), 3)
    sink.close()
    assert [r["step"] for r in read_jsonl(path)] == [1, 2, 3]


@pytest.mark.parametrize(
    "line", ["hello", "3", "[]", '{"step": 1}', '{"stage": 1}', json.dumps(record("1")), "\udcff", "[" * 9000]
)
def test_a_file_that_is_no_jsonl_is_named_with_its_line(tmp_path, line):
    text = f"{json.dumps(record(1))}\n{line}\n"
    (tmp_path / "metrics.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"metrics.jsonl:2: not a record of metrics"):
        list(read_jsonl(tmp_path / "metrics.jsonl"))


def test_a_full_disk_is_one_line():
    sink = JsonlSink.__new__(JsonlSink)
    from pathlib import Path

    sink._path, sink._file = Path("/dev/full"), open("/dev/full", "a", buffering=1)
    with pytest.raises(
        UserError, match=r"/dev/full: cannot be written \(No space left on device\); free space"
    ):
        sink.log({"step": 1}, 1)


def test_tensorboard_reads_back_what_was_written(tmp_path):
    sink = TensorBoardSink(tmp_path)
    for step in (1, 2, 3):
        sink.log({"stage": "irl", "round": 0, "step": step, "time_s": 1.0, "policy/kl": step / 2}, step)
    sink.close()
    assert curves(tmp_path) == {"irl/policy/kl": [(1, 0.5), (2, 1.0), (3, 1.5)]}


def test_tracker_writes_records_of_every_kind_of_number(tmp_path):
    times = iter([100.0, 101.5, 104.0])
    with Tracker(tmp_path, ONLY_JSONL, "demo", {}, now=lambda: next(times)) as tracker:
        tracker.log("sft", None, 1, {"loss": Mean(6.0, 3), "lr": Last(0.1)})
        tracker.log("sft", None, 2, {"loss": np.float32(0.5), "n": np.int64(3), "plain": 2})
    first, second = records(tmp_path)
    assert first == {
        "stage": "sft",
        "round": None,
        "step": 1,
        "global_step": 1,
        "time_s": 1.5,
        "loss": 2.0,
        "lr": 0.1,
    }
    assert (second["time_s"], second["loss"], second["n"], second["plain"]) == (4.0, 0.5, 3, 2)


def test_a_metric_cannot_take_the_name_of_a_field(tmp_path):
    with Tracker(tmp_path, ONLY_JSONL, "demo", {}) as tracker, pytest.raises(ValueError, match="'step'"):
        tracker.log("sft", None, 1, {"step": 3.0})


def test_the_global_step_goes_on_over_stages_and_over_a_resumed_run(tmp_path):
    config = TelemetryConfig()
    with Tracker(tmp_path, config, "demo", {}) as tracker:
        for step in (1, 2, 3):
            tracker.log("sft", None, step, {"loss": 1.0})
        for step in (1, 2):
            tracker.log("irl", 0, step, {"kl": 1.0})
    with Tracker(
        tmp_path, config, "demo", {}
    ) as tracker:  # killed after irl's step 2, resumed from its step 1
        for step in (2, 3):
            tracker.log("irl", 0, step, {"kl": 7.0})
        tracker.log("evaluate", None, 0, {"golden": 0.7})
    found = [(r["stage"], r["step"], r["global_step"]) for r in records(tmp_path)]
    assert found[:5] == [("sft", 1, 1), ("sft", 2, 2), ("sft", 3, 3), ("irl", 1, 4), ("irl", 2, 5)]
    assert found[5:] == [("irl", 2, 5), ("irl", 3, 6), ("evaluate", 0, 6)]
    times = [r["time_s"] for r in records(tmp_path)]
    assert times == sorted(times)
    assert curves(tmp_path / "tensorboard")["irl/kl"] == [(4, 1.0), (5, 7.0), (6, 7.0)]


@pytest.mark.parametrize(
    ("module", "config", "line"),
    [
        (
            "wandb",
            {"wandb": WandbConfig(project="p")},
            r"pip install 'rayalign\[wandb\]', or remove telemetry.wandb",
        ),
        (
            "mlflow",
            {"mlflow": MlflowConfig(tracking_uri="x")},
            r"pip install 'rayalign\[mlflow\]', or remove telemetry",
        ),
        (
            "tensorboard",
            {"tensorboard": True},
            r"pip install 'tensorboard', or set telemetry.tensorboard=false",
        ),
    ],
)
def test_a_tracker_that_is_not_installed_is_one_line(tmp_path, monkeypatch, module, config, line):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=line) as caught:
        Tracker(tmp_path, TelemetryConfig(**{"tensorboard": False} | config), "demo", {})
    assert "\n" not in str(caught.value)


class Recording:
    """A sink that remembers how it was closed, and can fail at it."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.failed = fault, None

    def log(self, record, step) -> None:
        pass

    def table(self, name, table, step) -> None:
        pass

    def close(self, failed: bool = False) -> None:
        self.failed = failed
        if self.fault:
            raise self.fault


def test_every_sink_is_closed_and_told_how_the_run_ended(tmp_path):
    tracker = Tracker(tmp_path, ONLY_JSONL, "demo", {})
    first, last = Recording(), Recording(OSError("gone"))
    tracker._sinks += [first, last]
    with pytest.raises(OSError, match="gone"), tracker:
        raise KeyError("the run's own fault")
    assert first.failed is True and last.failed is True


def test_a_lost_mlflow_server_is_said_once_and_does_not_stop_the_run(caplog):
    from rayalign.telemetry.mlflow_sink import MlflowSink

    calls = []

    class Gone:
        def log_batch(self, run_id, metrics):
            calls.append(metrics)
            raise ConnectionError("refused.")

    sink = MlflowSink.__new__(MlflowSink)
    sink._client, sink._id, sink._faults, sink._lost = Gone(), "x", (ConnectionError,), set()
    sink._metric = lambda *args: args
    with caplog.at_level(logging.WARNING):
        sink.log({"stage": "irl", "kl": 1.0}, 1)
        sink.log({"stage": "irl", "kl": 1.0}, 2)
        sink.close()
    assert len(calls) == 1
    assert [r.message for r in caplog.records] == [
        "MLflow gets no more metrics (refused); the run's folder has them all"
    ]

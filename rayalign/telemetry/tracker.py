"""The run's tracker: one record per call, to every sink that the config asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any

from rayalign.config.telemetry import TelemetryConfig
from rayalign.telemetry.metrics import Metric
from rayalign.telemetry.mlflow_sink import MlflowSink
from rayalign.telemetry.sinks import FIELDS, JsonlSink, Sink, read_jsonl
from rayalign.telemetry.tables import Cell, Table
from rayalign.telemetry.tensorboard_sink import TensorBoardSink
from rayalign.telemetry.wandb_sink import WandbSink


class Tracker:
    """Owns the sinks of a run folder: metrics.jsonl always, the others as configured.

    Every record is {"stage", "round", "step", "global_step", "time_s", NAME: value, ...}, and has "total_steps" where a
    stage tells them. `step` is the stage's own count; `global_step` goes on from stage to stage, and is the axis of
    TensorBoard and the trackers. In a folder that has records already both counts and the time go on. A stage that is
    resumed keeps the records up to its checkpoint (`keep`), so that metrics.jsonl has every step once.

    Example:
        with Tracker(run_folder, config.telemetry, config.name, resolved) as tracker:
            tracker.log("irl", 0, 12, {"policy/entropy": Mean(31.0, 40)})
    """

    def __init__(
        self,
        folder: Path,
        config: TelemetryConfig,
        run_name: str,
        resolved_config: dict[str, Any],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bases: dict[str, int] = {}  # global step at which a stage began
        self._counts: dict[str, int] = {}  # records of each stage
        self._last_step = 0
        self._sinks: list[Sink] = []
        self._folder = folder
        with ExitStack() as undo:
            undo.callback(self.close, failed=True)
            jsonl = JsonlSink(folder / "metrics.jsonl")
            self._sinks.append(jsonl)
            self._start = now() - self._recall()
            self._now = now
            self._open_others(config, run_name, resolved_config)
            undo.pop_all()

    def log(
        self,
        stage: str,
        round: int | None,
        step: int,
        metrics: Mapping[str, Metric | float | int],
        total_steps: int | None = None,
    ) -> dict[str, float | int | str | None]:
        """Writes the metrics, as numbers, to every sink; returns the record. `step` rises within a stage.

        `total_steps` of the stage is for who watches the run, and has only the config: where that does not tell.
        """
        global_step = self._bases.setdefault(stage, self._last_step) + step
        self._last_step = max(self._last_step, global_step)
        record: dict[str, float | int | str | None] = {
            "stage": stage,
            "round": round,
            "step": step,
            "global_step": global_step,
            "time_s": self._now() - self._start,
        }
        if total_steps is not None:
            record["total_steps"] = total_steps
        for name, metric in metrics.items():
            if name in FIELDS:
                raise ValueError(
                    f"a metric of stage {stage} is named {name!r}, which is a field of every record"
                )
            record[name] = _number(metric)
        for sink in self._sinks:
            sink.log(record, global_step)
        self._counts[stage] = self.count(stage) + 1
        return record

    def table(
        self, stage: str, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]
    ) -> None:
        """Shows rows of plain values, such as samples, as the table STAGE/NAME of this step in TensorBoard and the trackers.

        `step` counts as in `log`; without rows there is nothing to show. Raises ValueError for a row that has not a cell for
        each column.
        """
        if not rows:
            return
        table, global_step = Table(tuple(columns), rows), self._bases.get(stage, self._last_step) + step
        for sink in self._sinks:
            sink.table(f"{stage}/{name}", table, global_step)

    @contextmanager
    def also(self, sink: Sink) -> Iterator[None]:
        """Gives the records of the block to one more sink, and closes it at the block's end."""
        self._sinks.append(sink)
        failed = True
        try:
            yield
            failed = False
        finally:
            self._sinks.remove(sink)
            sink.close(failed)

    def count(self, stage: str) -> int:
        """How many records a stage has."""
        return self._counts.get(stage, 0)

    def records(self, stage: str) -> list[dict[str, Any]]:
        """What a stage has logged, oldest first."""
        return [record for record in read_jsonl(self._folder / "metrics.jsonl") if record["stage"] == stage]

    def keep(self, stage: str, num: int) -> None:
        """Forgets what a stage logged after its first `num` records: it goes on from there, and logs the rest again."""
        if self.count(stage) == num:
            return
        jsonl = self._sinks[0]
        assert isinstance(jsonl, JsonlSink)
        jsonl.keep(stage, num)
        self._bases, self._counts, self._last_step = {}, {}, 0
        self._recall()

    def close(self, failed: bool = False) -> None:
        """Closes every sink, also when one of them fails to."""
        with ExitStack() as closing:
            while self._sinks:
                closing.callback(self._sinks.pop().close, failed)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def _open_others(self, config: TelemetryConfig, run_name: str, resolved: dict[str, Any]) -> None:
        if config.tensorboard:
            self._sinks.append(TensorBoardSink(self._folder / "tensorboard", resolved))
        if config.wandb:
            self._sinks.append(WandbSink(config.wandb, run_name, self._folder, resolved))
        if config.mlflow:
            self._sinks.append(MlflowSink(config.mlflow, run_name, self._folder, resolved))

    def _recall(self) -> float:
        """Takes up the counts of the records that are there; returns the seconds they span."""
        time_s = 0.0
        for record in read_jsonl(self._folder / "metrics.jsonl"):
            self._bases[record["stage"]] = record["global_step"] - record["step"]
            self._last_step = max(self._last_step, record["global_step"])
            self._counts[record["stage"]] = self.count(record["stage"]) + 1
            time_s = max(time_s, record["time_s"])
        return time_s


def _number(metric: Metric | float | int) -> float | int:
    """A plain float or int, also of numpy's scalars."""
    value = metric.value() if isinstance(metric, Metric) else metric
    return int(value) if isinstance(value, Integral) else float(value)

"""Where records go: metrics.jsonl, TensorBoard, Weights & Biases, MLflow.

The trackers are imported in this file only, each by the sink that needs it. A record holds the fields in
`FIELDS` and, under any other key, a number; the `step` that a sink is given counts over all stages of the
run.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from rayalign.config.telemetry import MlflowConfig, WandbConfig
from rayalign.errors import DataError, UserError

Record = Mapping[str, float | int | str | None]

FIELDS = ("stage", "round", "step", "global_step", "time_s")

MAX_FAULT = 200  # characters of another library's message
MLFLOW_MAX_PARAM = 6000  # characters of a value
MLFLOW_MAX_BATCH = 100  # params of one request

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes records until it is closed."""

    def log(self, record: Record, step: int) -> None:
        """Takes one record."""

    def close(self, failed: bool = False) -> None:
        """Writes out what is left; `failed` tells a tracker how the run ended."""


class JsonlSink:
    """One JSON object per line, written out at once; an existing file is continued.

    JSON has no NaN and no infinity: such a value is null, and `nonfinite` holds its name and what it was.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                _drop_torn_line(path)
            self._file = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise self._fault(error) from None

    def log(self, record: Record, step: int) -> None:
        nonfinite = {name: str(value) for name, value in record.items() if not _is_json(value)}
        line: dict[str, Any] = {name: None if name in nonfinite else value for name, value in record.items()}
        if nonfinite:
            line["nonfinite"] = nonfinite
        try:
            self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        except OSError as error:
            raise self._fault(error) from None

    def keep(self, stage: str, num: int) -> None:
        """Rewrites the file without what a stage logged after its first `num` records."""
        seen = 0
        aside = self._path.with_name(f".{self._path.name}.part")
        try:
            with self._path.open(encoding="utf-8") as old, aside.open("w", encoding="utf-8") as new:
                for line in old:
                    own = json.loads(line)["stage"] == stage
                    seen += own
                    if not own or seen <= num:
                        new.write(line)
            self._file.close()
            aside.replace(self._path)
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise self._fault(error) from None

    def close(self, failed: bool = False) -> None:
        self._file.close()

    def _fault(self, error: OSError) -> UserError:
        return UserError(
            f"{self._path}: cannot be written ({error.strerror}); free space there or set another run_dir"
        )


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl, oldest first; a last line that a killed run left torn is skipped."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not _is_record(record):
                raise DataError(f"{path}:{number}: not a record of metrics; move this file away to start a new one")
            yield record


def _is_record(record: Any) -> bool:
    """Whether it has the fields that a run goes on from."""
    if not isinstance(record, dict) or not isinstance(record.get("stage"), str):
        return False
    counts, time_s = (record.get("step"), record.get("global_step")), record.get("time_s")
    return all(type(count) is int and abs(count) < 2**53 for count in counts) and type(time_s) in (int, float)


class TensorBoardSink:
    """Event files that TensorBoard reads; each number is the curve STAGE/NAME over the run's steps.

    Writes through tensorboard itself: torch's SummaryWriter wraps the same class and would load torch.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            raise _not_installed("tensorboard", "tensorboard", "set telemetry.tensorboard=false") from None
        self._event, self._session, self._summary = Event, SessionLog, Summary
        self._writer = EventFileWriter(str(folder), flush_secs=10)
        self._started = False

    def log(self, record: Record, step: int) -> None:
        if not self._started:
            self._forget_from(step)
        points = [self._summary.Value(tag=tag, simple_value=value) for tag, value in _curves(record).items()]
        self._writer.add_event(
            self._event(wall_time=time.time(), step=step, summary=self._summary(value=points))
        )

    def close(self, failed: bool = False) -> None:
        self._writer.close()

    def _forget_from(self, step: int) -> None:
        """Tells TensorBoard that a resumed run repeats its steps from here on."""
        self._started = True
        start = self._session(status=self._session.START)
        self._writer.add_event(self._event(wall_time=time.time(), step=step, session_log=start))


class WandbSink:
    """A Weights & Biases run; a resumed run continues its own (online)."""

    def __init__(
        self, config: WandbConfig, run_name: str, folder: Path, resolved_config: dict[str, Any]
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise _not_installed("wandb", "rayalign[wandb]", "remove telemetry.wandb") from None
        try:
            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                mode=config.mode,
                name=run_name,
                id=_stored_id(folder / "wandb_run_id", lambda: secrets.token_hex(4)),
                dir=str(folder),
                config=resolved_config,
                resume="allow",
                allow_val_change=True,
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"telemetry.wandb: {_one_line(error)}; or set telemetry.wandb.mode=offline"
            ) from None
        # W&B drops what does not rise in its own step; a resumed run repeats some: so the axis is our own
        self._run.define_metric("global_step")
        self._run.define_metric("*", step_metric="global_step")

    def log(self, record: Record, step: int) -> None:
        self._run.log(_curves(record) | {"global_step": step})

    def close(self, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))


class MlflowSink:
    """An MLflow run, with the config as its params; a resumed run continues its own.

    A server that goes away later does not stop the run: the sink says so once and stays silent.
    """

    def __init__(
        self, config: MlflowConfig, run_name: str, folder: Path, resolved_config: dict[str, Any]
    ) -> None:
        try:
            from mlflow.entities import Metric, Param
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise _not_installed("mlflow", "rayalign[mlflow]", "remove telemetry.mlflow") from None
        self._metric, self._error = Metric, MlflowException
        try:
            self._client = MlflowClient(tracking_uri=config.tracking_uri)
            params = [Param(key, str(value)[:MLFLOW_MAX_PARAM]) for key, value in _flat(resolved_config)]
            self._id = _stored_id(
                folder / "mlflow_run_id", lambda: self._create(config.experiment, run_name, params)
            )
            self._client.update_run(self._id, status="RUNNING")
        except MlflowException as error:
            where = f"telemetry.mlflow.tracking_uri {config.tracking_uri}"
            raise UserError(
                f"{where} does not answer as MLflow: {_one_line(error)}; check it, or remove telemetry.mlflow"
            ) from None
        self._lost = False

    def log(self, record: Record, step: int) -> None:
        now_ms = int(time.time() * 1000)
        points = [self._metric(name, value, now_ms, step) for name, value in _curves(record).items()]
        if points and not self._lost:
            self._guarded(lambda: self._client.log_batch(self._id, metrics=points))

    def close(self, failed: bool = False) -> None:
        if not self._lost:
            self._guarded(lambda: self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED"))

    def _create(self, experiment: str, run_name: str, params: list[Any]) -> str:
        known = self._client.get_experiment_by_name(experiment)
        experiment_id = known.experiment_id if known else self._client.create_experiment(experiment)
        run_id = self._client.create_run(experiment_id, run_name=run_name).info.run_id
        for start in range(0, len(params), MLFLOW_MAX_BATCH):
            self._client.log_batch(run_id, params=params[start : start + MLFLOW_MAX_BATCH])
        return run_id

    def _guarded(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except self._error as error:
            self._lost = True
            logger.warning("MLflow gets no more metrics (%s); metrics.jsonl has them all", _one_line(error))


def _curves(record: Record) -> dict[str, float]:
    """The record's numbers under STAGE/NAME."""
    numbers = {name: value for name, value in record.items() if name not in FIELDS}
    return {
        f"{record['stage']}/{name}": float(v) for name, v in numbers.items() if isinstance(v, (int, float))
    }


def _is_json(value: float | int | str | None) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _drop_torn_line(path: Path) -> None:
    """Cuts off a last line without its end, left by a run that was killed while it wrote."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _stored_id(path: Path, make: Callable[[], str]) -> str:
    """The id in the file, or a new one that is written there."""
    if path.exists():
        return path.read_text(encoding="utf-8").strip()
    new = make()
    path.write_text(f"{new}\n", encoding="utf-8")
    return new


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values as (key.sub, value); a list of named stages goes by their names."""
    if isinstance(values, Mapping):
        items = list(values.items())
    elif isinstance(values, list) and values and all(isinstance(v, Mapping) and "name" in v for v in values):
        items = [(v["name"], v) for v in values]
    else:
        yield prefix, values
        return
    for key, value in items:
        yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))


def _not_installed(package: str, requirement: str, otherwise: str) -> UserError:
    return UserError(
        f"telemetry asks for {package}, which is not installed: pip install '{requirement}', or {otherwise}"
    )


def _one_line(error: Exception) -> str:
    words = " ".join(str(error).split()).rstrip(".")
    return words if len(words) <= MAX_FAULT else words[: MAX_FAULT - 4] + " ..."

"""A run of MLflow, through its client: mlflow or mlflow-skinny."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rayalign.config.telemetry import MlflowConfig
from rayalign.errors import UserError
from rayalign.telemetry.sinks import Record, curves, not_installed, one_line, stored_id
from rayalign.telemetry.tables import Table

MAX_PARAM = 6000  # characters of a value
MAX_BATCH = 100  # params of one request

logger = logging.getLogger(__name__)


class MlflowSink:
    """An MLflow run, with the config as its params; a resumed run continues its own.

    A server that goes away later does not stop the run: the sink says so once and stays silent. So it does where tables
    cannot be kept, for want of the package that reaches the server's store of artifacts, say.
    """

    def __init__(self, config: MlflowConfig, run_name: str, folder: Path, resolved_config: dict[str, Any]) -> None:
        try:
            from mlflow.entities import Metric, Param
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise not_installed("mlflow", "rayalign[mlflow]", "remove telemetry.mlflow") from None
        self._metric = Metric
        self._faults: tuple[type[Exception], ...] = (MlflowException, OSError, ImportError)
        try:
            self._client = MlflowClient(tracking_uri=config.tracking_uri)
            params = [Param(key, str(value)[:MAX_PARAM]) for key, value in _flat(resolved_config)]
            self._id = stored_id(folder / "mlflow_run_id", lambda: self._create(config.experiment, run_name, params))
            self._client.update_run(self._id, status="RUNNING")
        except MlflowException as error:
            where = f"telemetry.mlflow.tracking_uri {config.tracking_uri}"
            raise UserError(
                f"{where} does not answer as MLflow: {one_line(error)}; check it, or remove telemetry.mlflow"
            ) from None
        self._lost: set[str] = set()

    def log(self, record: Record, step: int) -> None:
        now_ms = int(time.time() * 1000)
        points = [self._metric(name, value, now_ms, step) for name, value in curves(record).items()]
        if points:
            self._guarded("metrics", lambda: self._client.log_batch(self._id, metrics=points))

    def table(self, name: str, table: Table, step: int) -> None:
        """The artifact NAME.json, which MLflow shows as a table; the rows of all steps, with a column `global_step`."""
        columns = {"global_step": [step] * len(table.rows), **table.by_column()}
        file = f"{name}.json"
        self._guarded("tables", lambda: self._client.log_table(self._id, data=columns, artifact_file=file))

    def close(self, failed: bool = False) -> None:
        status = "FAILED" if failed else "FINISHED"
        self._guarded("metrics", lambda: self._client.set_terminated(self._id, status))

    def _create(self, experiment: str, run_name: str, params: list[Any]) -> str:
        known = self._client.get_experiment_by_name(experiment)
        experiment_id = known.experiment_id if known else self._client.create_experiment(experiment)
        run_id = self._client.create_run(experiment_id, run_name=run_name).info.run_id
        for start in range(0, len(params), MAX_BATCH):
            self._client.log_batch(run_id, params=params[start : start + MAX_BATCH])
        return str(run_id)

    def _guarded(self, what: str, call: Callable[[], Any]) -> None:
        if what in self._lost:
            return
        try:
            call()
        except self._faults as error:
            self._lost.add(what)
            logger.warning("MLflow gets no more %s (%s); the run's folder has them all", what, one_line(error))


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

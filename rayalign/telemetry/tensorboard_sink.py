"""TensorBoard's event files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml

from rayalign.telemetry.sinks import Record, curves, not_installed
from rayalign.telemetry.tables import Table, markdown


class TensorBoardSink:
    """Event files that TensorBoard reads: each number is the curve STAGE/NAME over the run's steps, tables and config text.

    Writes through tensorboard itself: torch's SummaryWriter wraps the same class and would load torch.
    """

    def __init__(self, folder: Path, resolved_config: dict[str, Any] | None = None) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            raise not_installed("tensorboard", "tensorboard", "set telemetry.tensorboard=false") from None
        self._event, self._session, self._summary = Event, SessionLog, Summary
        self._writer = EventFileWriter(str(folder), flush_secs=10)
        self._started = False
        if resolved_config:
            written = yaml.safe_dump(resolved_config, sort_keys=False, allow_unicode=True)
            self._add_text("config", "".join(f"    {line}\n" for line in written.splitlines()), 0)

    def log(self, record: Record, step: int) -> None:
        self._start_at(step)
        points = [self._summary.Value(tag=tag, simple_value=value) for tag, value in curves(record).items()]
        self._add(self._summary(value=points), step)

    def table(self, name: str, table: Table, step: int) -> None:
        """Among TensorBoard's texts, as Markdown."""
        self._start_at(step)
        self._add_text(name, markdown(table), step)

    def close(self, failed: bool = False) -> None:
        self._writer.close()

    def _add_text(self, tag: str, text: str, step: int) -> None:
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING
        from tensorboard.plugins.text.metadata import create_summary_metadata

        # What tensorboard's own text summary makes, whose module takes a second or more to import.
        value = self._summary.Value(
            tag=tag,
            metadata=create_summary_metadata(display_name=tag, description=""),
            tensor=TensorProto(dtype=DT_STRING, string_val=[text.encode()]),
        )
        self._add(self._summary(value=[value]), step)

    def _add(self, summary: Any, step: int) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def _start_at(self, step: int) -> None:
        """Tells TensorBoard, once, that a resumed run repeats its steps from here on."""
        if self._started:
            return
        self._started = True
        start = self._session(status=self._session.START)
        self._writer.add_event(self._event(wall_time=time.time(), step=step, session_log=start))

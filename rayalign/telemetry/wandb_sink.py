"""A run of Weights & Biases."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from rayalign.config.telemetry import WandbConfig
from rayalign.errors import UserError
from rayalign.telemetry.sinks import Record, curves, not_installed, one_line, stored_id
from rayalign.telemetry.tables import Table


class WandbSink:
    """A Weights & Biases run; a resumed run continues its own (online)."""

    def __init__(self, config: WandbConfig, run_name: str, folder: Path, resolved_config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise not_installed("wandb", "rayalign[wandb]", "remove telemetry.wandb") from None
        self._table = wandb.Table
        try:
            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                mode=config.mode,
                name=run_name,
                id=stored_id(folder / "wandb_run_id", lambda: secrets.token_hex(4)),
                dir=str(folder),
                config=resolved_config,
                resume="allow",
                allow_val_change=True,
            )
        except wandb.errors.Error as error:
            raise UserError(f"telemetry.wandb: {one_line(error)}; or set telemetry.wandb.mode=offline") from None
        # W&B drops what does not rise in its own step; a resumed run repeats some: so the axis is our own
        self._run.define_metric("global_step")
        self._run.define_metric("*", step_metric="global_step")

    def log(self, record: Record, step: int) -> None:
        self._run.log(curves(record) | {"global_step": step})

    def table(self, name: str, table: Table, step: int) -> None:
        """A W&B Table; W&B keeps those of all steps."""
        rows = [list(row) for row in table.rows]
        shown = self._table(columns=list(table.columns), data=rows, allow_mixed_types=True)
        self._run.log({name: shown, "global_step": step})

    def close(self, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))

"""Where the metrics go. `metrics.jsonl` in the run folder is always written."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rayalign.config.base import Strict


class WandbConfig(Strict):
    """Weights & Biases; needs `pip install rayalign[wandb]`."""

    project: str
    entity: str | None = None
    mode: Literal["online", "offline", "disabled"] = "online"


class MlflowConfig(Strict):
    """MLflow; needs `pip install rayalign[mlflow]`."""

    tracking_uri: str
    experiment: str = "rayalign"


class TelemetryConfig(Strict):
    """Sinks beside metrics.jsonl."""

    tensorboard: bool = True
    wandb: WandbConfig | None = None
    mlflow: MlflowConfig | None = None
    metrics_port: int | None = Field(
        None,
        ge=1024,
        le=65535,
        description="where a Ray that the run starts itself exports metrics for Prometheus; null: a port that Ray chooses",
    )
    actor_logs: bool = Field(False, description="print what the actors print; Ray's own log files always have it")
    progress: bool = Field(True, description="progress bars on a terminal; plain lines elsewhere")

"""The Grafana dashboard, and which metrics it asks for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from rayalign.actors.metrics import BUSY, gauge_name

DASHBOARD = json.loads((Path(__file__).resolve().parents[2] / "cluster" / "grafana" / "rayalign.json").read_text())
EXPRESSIONS = [
    (panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]
] + [(variable["name"], variable["definition"]) for variable in DASHBOARD["templating"]["list"][1:]]


def asked() -> set[str]:
    """Every metric that the dashboard names."""
    return {name for _, expression in EXPRESSIONS for name in re.findall(r"\bray_rayalign_\w+", expression)}


def exported(names: Iterable[str]) -> set[str]:
    """Names of metrics.jsonl as Prometheus has them, and what Ray's workers count besides."""
    return {f"ray_{gauge_name(name)}" for name in names} | {f"ray_{gauge_name(BUSY)}_total"}

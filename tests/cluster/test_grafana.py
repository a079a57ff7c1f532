"""The dashboard asks for metrics that runs record, as Ray exports them, and is what Grafana takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.dashboard import DASHBOARD, EXPRESSIONS, asked, exported

RECORDED = json.loads((Path(__file__).parent / "recorded_metrics.json").read_text())


def test_it_asks_for_what_a_run_recorded() -> None:
    assert asked() - exported(RECORDED["metrics"]) == set()


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS)
def test_expressions_name_metrics_and_balance(title: str, expression: str) -> None:
    assert "ray_rayalign_" in expression, title
    for left, right in ("{}", "()", "[]"):
        assert expression.count(left) == expression.count(right)
    assert expression.count('"') % 2 == 0


def test_panels_are_whole() -> None:
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    assert (DASHBOARD["uid"], DASHBOARD["schemaVersion"]) == ("rayalign", 39)
    assert len({panel["id"] for panel in panels}) == len(panels)
    titles = " ".join(panel["title"] for panel in panels).lower()
    for shown in ("reward", "margin", "kl", "entropy", "length", "time per phase", "idle share", "alarms"):
        assert shown in titles
    for panel in panels:
        assert panel["type"] in ("timeseries", "stat")
        assert panel["fieldConfig"]["defaults"]["unit"] and panel["description"]
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells


def test_variables_choose_prometheus_run_and_stage() -> None:
    datasource, *queries = DASHBOARD["templating"]["list"]
    assert (datasource["type"], datasource["query"]) == ("datasource", "prometheus")
    assert [variable["name"] for variable in queries] == ["run", "stage"]
    for _, expression in EXPRESSIONS[: -len(queries)]:
        assert 'run=~"$run"' in expression

"""Best of n in one sentence and one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rayalign.report import curve as curve_module
from rayalign.report.curve import best_of_line, plot_best_of

from .cases import estimate


def curve(golden: list[float] | None, half: float = 0.02) -> dict[str, Any]:
    """Over n = 1, 2, 4, ..."""
    num = len(golden or [0, 1])
    points: list[dict[str, Any]] = [
        {"n": 2**i, "kl_bound": 0.3 * i, "reward": estimate(i), "golden": estimate(golden[i], half) if golden else None}
        for i in range(num)
    ]
    if golden is None:
        points = [{key: value for key, value in point.items() if value is not None} for point in points]
    return {"num_prompts": 40, "num_samples": 2 ** (num - 1), "points": points}


def test_the_line() -> None:
    assert best_of_line(curve(None)) == "best of 2 against best of 1: learned reward 1.000 against 0.000"
    assert best_of_line(curve([0.4, 0.5, 0.49])).endswith("; golden 0.490 against 0.400")
    assert best_of_line(curve([0.4, 0.6, 0.5])).endswith(
        "but 0.600 at n = 2: choosing among more chases what the reward gets wrong"
    )
    assert best_of_line(curve([0.4, 0.6, 0.5], half=float("nan"))).endswith("golden 0.500 against 0.400")


@pytest.mark.parametrize("golden", [None, [0.4, 0.6, 0.5], [0.1 * i for i in range(8)]])
def test_the_picture(golden: list[float] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(curve_module, "Figure", lambda *a, **k: figures.append(Figure(*a, **k)) or figures[-1])
    drawn = curve(golden) | {"expert": {"golden": 0.45 if golden else None}}
    assert plot_best_of(drawn, tmp_path / "curve.png").stat().st_size > 5000
    axes: list[Axes] = figures[0].axes
    assert len(axes) == (2 if golden else 1)
    labels = [tick.get_text() for tick in axes[-1].get_xticklabels()]
    assert labels[:2] == ["1\n0.00", "2\n0.30"] and len(labels) == len(drawn["points"])
    assert (axes[-1].get_legend() is not None) == bool(golden)

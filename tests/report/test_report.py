"""summary.json, the terminal's table and the picture."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from matplotlib import image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from rich.console import Console

from rayalign.report.plot import plot_run, read_curves
from rayalign.report.summary import summarise
from rayalign.report.table import print_report
from rayalign.report.verdict import verdict

from .cases import RFT, cell, estimate, full, model, write_metrics

ARTIFACTS = {"policy": "runs/demo/rft/policy", "plot": "runs/" + "long/" * 30 + "plot.png"}


def printed(results: dict, width: int = 80) -> str:
    stream = io.StringIO()
    print_report(Console(file=stream, width=width), results, ARTIFACTS)
    return stream.getvalue()


def test_summary_has_clear_keys():
    summary = json.loads(json.dumps(summarise(full(), ARTIFACTS), allow_nan=False))
    assert summary["golden"]["base"]["t1_0"]["mean"] == 0.209
    assert summary["golden"]["rft"]["t0_2"] == pytest.approx(estimate(0.92))
    assert summary["ended_frac"]["sft"]["t0_7"] == 0.99
    assert summary["attributes"]["rft"]["t0_5"]["polite"] == 0.8
    assert summary["expert"] == {"golden": 0.45}
    assert summary["reward_accuracy"]["policy_samples"]["num"] == 300
    assert summary["gain"]["rft_minus_sft"]["t1_0"] == {
        "golden": pytest.approx(0.33),
        "intervals_apart": True,
    }
    assert summary["verdict"] == verdict(full())
    assert summary["artifacts"] == ARTIFACTS


def test_summary_of_a_run_that_measured_little():
    results = {
        "models": {"irl": {"1": {"golden": None, "reward": estimate(0.3), "length": math.nan}}},
        "expert": None,
    }
    assert summarise(results, {}) == {
        "verdict": "Only irl was evaluated, so these numbers compare nothing.".replace("irl", "IRL"),
        "reward": {"irl": {"t1_0": estimate(0.3)}},
        "length": {"irl": {"t1_0": None}},
        "artifacts": {},
    }
    assert summarise({}, {})["artifacts"] == {}


def test_the_table_fits_80_columns_and_has_it_all():
    text = printed(full())
    table = text.split("Example 1")[0].splitlines()
    assert all(len(line) <= 80 for line in table)
    row = next(line for line in table if line.strip().startswith("RFT"))
    assert row.split() == ["RFT", "0.751", "±0.020", "0.842", "±0.020", "0.881", "±0.020", "0.920", "±0.020"]
    assert next(line for line in table if "demonstrator" in line).split() == ["demonstrator", "0.450"]
    assert "on held-out preference pairs: 0.910 ±0.030 (400 pairs)" in text
    assert text.count("mate no idea") == 3 and "Example 4" not in text
    assert "lamp0 at corner [/bold]" in text  # no markup is read into a person's text
    assert ARTIFACTS["plot"] in text  # in one piece
    assert " ".join(verdict(full()).split()) in " ".join(text.split())


@pytest.mark.parametrize("width", [20, 40])
def test_a_narrow_terminal_is_no_trouble(width):
    assert "RFT" in printed(full(), width)


def test_the_table_of_a_run_that_measured_little():
    assert "No reward was measured" in printed({})
    text = printed(
        {"models": {"a": {"1.0": {"reward": estimate(0.5)}}, "b": {"0.7": {"reward": estimate(0.6)}}}}
    )
    assert "Learned reward" in text and "Golden" not in text and "Example" not in text
    awkward = {"prompt": "say\x1b[2J it", "demonstration": None, "answers": {"sft": "", "rft": "x" * 1000}}
    text = printed({"models": {"rft": model(RFT)}, "examples": [awkward]})
    assert (
        "\x1b" not in text
        and "(nothing)" in text
        and " ..." in text
        and "x" * 400 not in text.replace("\n", "")
    )


def ink(path) -> float:
    """The share of a picture's points that are not white, left half and right half."""
    pixels = image.imread(path)[:, :, :3]
    drawn = (pixels < 0.9).any(axis=2)
    halves = np.array_split(drawn, 2, axis=1)
    return min(float(half.mean()) for half in halves)


def test_the_picture_has_something_on_both_sides(tmp_path):
    metrics = write_metrics(tmp_path / "metrics.jsonl")
    out = plot_run(metrics, full(), tmp_path / "deep" / "plot.png")
    assert out is not None and out.read_bytes().startswith(b"\x89PNG")
    height, width = image.imread(out).shape[:2]
    assert width > 1200 and height > 600
    assert ink(out) > 0.01


@pytest.mark.parametrize(
    "results",
    [
        {"models": {"rft": {"1.0": cell(0.5)}}},
        {"models": {"a": {"1.0": {"reward": estimate(0.5)}}, "b": {"0.7": {"reward": {"mean": 0.6}}}}},
        None,
        {},
    ],
)
def test_the_picture_of_a_run_that_measured_little(tmp_path, results):
    metrics = write_metrics(tmp_path / "metrics.jsonl", rounds=1)
    assert ink(plot_run(metrics, results, tmp_path / "with_curves.png")) > 0.003
    alone = plot_run(tmp_path / "none.jsonl", results, tmp_path / "alone.png")
    assert (alone is not None) == bool(results) == (tmp_path / "alone.png").exists()


def test_curves_stand_over_policy_steps(tmp_path):
    curves = read_curves(write_metrics(tmp_path / "metrics.jsonl"))
    assert list(curves.points["policy/reward_mean"]) == list(range(1, 41))
    assert curves.points["health/demo_accuracy_heldout"] == {0: 0.88, 20: pytest.approx(0.83)}
    assert list(curves.points["health/rank_accuracy_policy"]) == [20, 40]
    assert curves.round_starts == [20] and "sft/loss" not in curves.points


def test_curves_of_steps_that_start_again_each_round_and_of_a_resumed_run(tmp_path):
    records = [
        {"stage": "rft", "round": r, "step": s, "policy/entropy": 10.0 * r + s}
        for r in (0, 1)
        for s in (1, 2, 3)
    ]
    again = [
        {"stage": "rft", "round": 1, "step": 3, "policy/entropy": 99.0},
        {"stage": "evaluate", "x/y": 1.0},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records + again) + '{"stage": "rft", "st')
    assert read_curves(path).points == {"policy/entropy": {1: 1, 2: 2, 3: 3, 4: 11, 5: 12, 6: 99}}


def test_a_value_that_is_not_finite_leaves_a_gap(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "irl", "round": 0, "step": 1, "policy/entropy": null, "policy/x": 1.0}\n')
    assert read_curves(path).points == {"policy/x": {1: 1.0}}


@pytest.mark.parametrize("results", [full(), None], ids=["with temperatures", "curves alone"])
def test_legends_lie_on_nothing_and_points_at_the_ends_are_whole(tmp_path, monkeypatch, results):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (drawn.append(figure), save(figure, *a, **k)))
    plot_run(write_metrics(tmp_path / "m.jsonl"), results, tmp_path / "plot.png")
    (figure,) = drawn
    legends, panels = figure.findobj(Legend), figure.findobj(Axes)
    assert len(legends) == (2 if results else 1)
    for legend in legends:
        box = legend.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0
        others = [axes for axes in panels if axes.get_legend() is not legend]
        assert not any(box.overlaps(axes.get_tightbbox()) for axes in others)
    shares = [axes for axes in panels if "share" in axes.get_ylabel() or "0 to 1" in axes.get_ylabel()]
    assert shares and all(axes.get_ylim()[0] < -0.02 and axes.get_ylim()[1] > 1.02 for axes in shares)


def test_nothing_is_set_on_pyplot(tmp_path):
    import sys

    plot_run(write_metrics(tmp_path / "m.jsonl"), full(), tmp_path / "p.png")
    assert "matplotlib.pyplot" not in sys.modules

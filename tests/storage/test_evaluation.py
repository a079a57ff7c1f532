"""evaluation.json: nobody's results are lost to another's, and a model is told by all that decides what it says."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from rayalign.errors import UserError
from rayalign.models.rewards import write_log_ratio
from rayalign.storage import evaluation
from rayalign.storage.evaluation import content_of, read_evaluation, record

DATA = {"path": "rows", "fingerprint": "f", "num_rows": 1}


def test_results_added_at_one_time_are_all_kept(tmp_path: Path) -> None:
    file, num = tmp_path / "evaluation.json", 12
    start = threading.Barrier(num)

    def add(number: int) -> None:
        start.wait(30)
        record(file, f"suite{number}", {"n": number}, model=tmp_path, data=DATA)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {name: one["results"]["n"] for name, one in read_evaluation(file)["suites"].items()} == {
        f"suite{number}": number for number in range(num)
    }


def test_results_added_while_the_model_is_hashed_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gigabytes take minutes: what others write meanwhile stays."""
    file, hashed = tmp_path / "evaluation.json", evaluation.content_of

    def slowly(folder: Path) -> dict[str, str]:
        monkeypatch.setattr(evaluation, "content_of", hashed)
        record(file, "quick", {}, model=tmp_path, data=DATA)
        return hashed(folder)

    monkeypatch.setattr(evaluation, "content_of", slowly)
    record(file, "slow", {}, model=tmp_path, data=DATA)
    assert sorted(read_evaluation(file)["suites"]) == ["quick", "slow"]


def test_a_file_that_is_kept_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "LOCK_WAIT_S", 0.1)
    file = tmp_path / "evaluation.json"
    with evaluation._locked(file), pytest.raises(UserError, match="another program has kept it for 0.1 s"):
        record(file, "late", {}, model=tmp_path, data=DATA)
    record(file, "late", {}, model=tmp_path, data=DATA)
    assert list(json.loads(file.read_text())["suites"]) == ["late"]


@pytest.mark.parametrize(
    "file", ["model.safetensors", "pytorch_model.bin", "rayalign_heads/model.safetensors", "adapter_model.bin"]
)
def test_a_model_is_told_by_all_its_weights(tmp_path: Path, file: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"first")
    first = content_of(tmp_path)
    for other in ("evaluation.json", ".hidden.bin", "training.log"):
        (tmp_path / other).write_text("beside")
    assert content_of(tmp_path) == first and sorted(first) == sorted(["config.json", file])
    (tmp_path / file).write_bytes(b"other")
    assert content_of(tmp_path) != first


def test_a_log_ratio_is_told_by_both_its_sides(tmp_path: Path) -> None:
    for name in ("policy", "base", "other"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "config.json").write_text("{}")
        (tmp_path / "run" / name / "model.safetensors").write_text(name)
    sides = [str(tmp_path / "run" / name) for name in ("policy", "base", "other")]
    write_log_ratio(tmp_path / "run" / "reward", sides[0], sides[1], scale=0.1)
    first = content_of(tmp_path / "run" / "reward")
    assert "policy/model.safetensors" in first and "reference/model.safetensors" in first
    for policy, reference, scale in ((2, 1, 0.1), (0, 2, 0.1), (0, 1, 0.2), (1, 0, 0.1)):
        write_log_ratio(tmp_path / "run" / "reward", sides[policy], sides[reference], scale=scale)
        assert content_of(tmp_path / "run" / "reward") != first
    write_log_ratio(tmp_path / "run" / "far" / "reward", sides[0], sides[1], scale=0.1)
    assert content_of(tmp_path / "run" / "far" / "reward") == first, "wherever it lies"
    write_log_ratio(tmp_path / "run" / "reward", sides[0], "owner/base", scale=0.1)
    assert content_of(tmp_path / "run" / "reward")["reference"] == "owner/base"


def test_the_checkpoints_of_a_run_are_not_hashed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "model.safetensors").write_text("x")
    assert content_of(tmp_path) == {}

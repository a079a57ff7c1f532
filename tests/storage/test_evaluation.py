"""evaluation.json: nobody's results are lost to another's, and a model is told by all that decides what it says."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from rayalign.errors import UserError
from rayalign.storage import evaluation
from rayalign.storage.evaluation import read_evaluation, record

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

"""What cannot be exported is one line, and nothing is written or lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rayalign.cli import main
from rayalign.errors import RayalignError, UserError
from rayalign.sharing.export import export
from tests.conftest import one_thread
from tests.sharing.runs import finish, make_run, rft_run

FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # the weights are more
from rayalign.cli import main
main(sys.argv[1:])
"""


def spoilt(rft: Path, folder: Path, spoil: Callable[[Path], object]) -> Path:
    run = shutil.copytree(rft, folder)
    spoil(run)
    return run


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_no_run(rft: Path, tmp_path: Path) -> None:
    unfinished = make_run(tmp_path / "a" / "unfinished", [{"kind": "sft"}])
    data_only = make_run(tmp_path / "b" / "data", [{"kind": "planted"}, {"kind": "sft"}])
    finish(data_only, "world")
    for place, stage, told in (
        (tmp_path / "nowhere", None, "no run"),
        (rft / "rft" / "policy", None, "no run"),
        (unfinished, None, "no stage of this run has finished"),
        (unfinished, "sft", "--stage sft: has not finished"),
        (data_only, None, r"its finished stages \(world\) left neither"),
        (rft, "evaluate", "a stage evaluate leaves neither"),
        (rft, "rtf", "no stage of that name.*rft"),
    ):
        with pytest.raises(UserError, match=told):
            export(place, tmp_path / "out", stage=stage)
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_damaged(rft: Path, tmp_path: Path) -> None:
    for number, (spoil, told) in enumerate(
        (
            (lambda run: (run / "config.yaml").write_text("name: ["), "not valid YAML"),
            (lambda run: (run / "rft" / "policy" / "config.json").write_text("{"), "policy.*cannot be (read|loaded)"),
            (lambda run: os.truncate(run / "rft" / "policy" / "model.safetensors", 5000), "policy: cannot be loaded"),
            (lambda run: (run / "rft" / "policy" / "tokenizer_config.json").unlink(), "no tokenizer lies beside"),
            (lambda run: (run / "rft" / "reward" / "config.json").write_text("[]"), "cannot be read as a model's settings"),
            (lambda run: edit(run / "rft" / "reward" / "config.json", '"std": 0.2', '"std": 0'), "no mean and deviation"),
            (lambda run: (run / "evaluate" / "results.json").write_text("7"), "results.json: damaged"),
            (lambda run: (run / "evaluation.json").write_text("7"), "is no evaluation"),
        )
    ):
        with pytest.raises(RayalignError, match=told) as error:
            export(spoilt(rft, tmp_path / str(number), spoil), tmp_path / "out")
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_what_lies_there_is_not_lost(rft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(mine)
    for to, overwrite, told in (
        (mine, False, "not empty"),
        (mine, True, "holds notes.txt, which no export wrote"),
        (tmp_path / "file", True, "no folder"),
        (tmp_path / "link", True, "no folder"),
        (rft, True, "which no export wrote"),
    ):
        with pytest.raises(UserError, match=told):
            export(rft, to, overwrite=overwrite)
    assert (mine / "notes.txt").read_text() == "mine"
    with pytest.raises(SystemExit) as ended:
        main(["export", str(rft), "--to", str(mine)])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and "--overwrite" in said


def test_an_earlier_export_stands_until_the_new_one_is_whole(rft: Path, tmp_path: Path) -> None:
    empty = tmp_path / "out"
    empty.mkdir()
    export(rft, empty)
    before = {path: path.read_bytes() for path in empty.rglob("*") if path.is_file()}
    broken = spoilt(rft, tmp_path / "broken", lambda run: os.truncate(run / "rft" / "reward" / "model.safetensors", 9))
    with pytest.raises(UserError, match="not empty"):
        export(rft, empty)
    with pytest.raises(RayalignError):
        export(broken, empty, overwrite=True)
    assert {path: path.read_bytes() for path in empty.rglob("*") if path.is_file()} == before
    export(rft, empty, stage="sft", overwrite=True)
    assert os.listdir(empty) == ["policy"] and sorted(os.listdir(tmp_path)) == ["broken", "out"]


def test_a_disk_that_fills(tmp_path: Path) -> None:
    run = rft_run(tmp_path / "runs" / "tiny")
    command = [sys.executable, "-c", FULL, "export", str(run), "--to", str(tmp_path / "full" / "out")]
    done = subprocess.run(command, env=one_thread(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 2 and "the disk is full" in done.stderr.splitlines()[-1], done.stderr
    assert not os.listdir(tmp_path / "full")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_place_that_is_not_ours(rft: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="give another --to"):
            export(rft, tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)

"""Files that appear whole: several writers of one path, and what a killed one left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rayalign.errors import UserError
from rayalign.storage.aside import check_writable, write_json, written_aside


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_who_looks_whether_it_could_write_disturbs_no_writer(tmp_path: Path) -> None:
    with written_aside(tmp_path / "a.json") as aside:
        aside.write_text("whole")
        check_writable(tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text() == "whole" and names(tmp_path) == ["a.json"]


def test_of_two_writers_of_a_file_the_last_stays(tmp_path: Path) -> None:
    with written_aside(tmp_path / "a") as first:
        first.write_text("first")
        with written_aside(tmp_path / "a") as second:
            second.write_text("second")
        assert (tmp_path / "a").read_text() == "second"
    assert (tmp_path / "a").read_text() == "first" and names(tmp_path) == ["a"]


def test_many_write_one_folder(tmp_path: Path) -> None:
    """Each is whole whenever somebody looks, and the folder is one of theirs at the end."""
    failed: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                with written_aside(tmp_path / "model") as aside:
                    aside.mkdir()
                    for name in ("a", "b"):
                        (aside / name).write_text(str(number))
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed and names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "a").read_text() == (tmp_path / "model" / "b").read_text()


KILLED = """
import sys, time
from pathlib import Path
from rayalign.storage.aside import written_aside
with written_aside(Path(sys.argv[1])) as aside:
    aside.mkdir()
    (aside / "weights").write_text("half")
    print("there", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "model")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    (part,) = tmp_path.iterdir()
    assert part.name.endswith(".part")
    with written_aside(tmp_path / "model") as aside:
        aside.mkdir()
    assert (part / "weights").exists(), "its writer is at work"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    own = tmp_path / f".model.{os.getpid()}-99999.part"  # of an earlier process with this number
    own.mkdir()
    (tmp_path / ".model.part").mkdir()  # as earlier versions named it
    (tmp_path / ".model2.1-1.part").mkdir()
    write_json(tmp_path / "other", 1)
    assert part.exists() and own.exists()
    with written_aside(tmp_path / "model") as aside:
        aside.mkdir()
    assert names(tmp_path) == [".model2.1-1.part", "model", "other"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    write_json(tmp_path / "a", 1)
    with pytest.raises(ValueError, match="no"), written_aside(tmp_path / "a") as aside:
        aside.write_text("half")
        raise ValueError("no")
    assert (tmp_path / "a").read_text() == "1\n" and names(tmp_path) == ["a"]
    with pytest.raises(UserError, match="cannot be written"):
        check_writable(tmp_path / "a" / "b")

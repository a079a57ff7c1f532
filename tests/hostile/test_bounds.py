"""What unpacks, repeats or waits without end is refused before it takes memory or time."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rayalign.config.data import DataSource
from rayalign.config.load import load_config
from rayalign.data import files, sources
from rayalign.errors import ConfigError, DataError
from tests.conftest import DEMO
from tests.hostile.judge import bounded
from tests.hostile.texts import bomb, merge_bomb

MIB = 2**20
# The reader limits itself: a limit set between fork and exec would be that of a copy of this process, which is larger.
LIMIT = f"import resource\nresource.setrlimit(resource.RLIMIT_AS, ({400 * MIB}, {400 * MIB}))\n"
READ = "import sys, pathlib\nfrom rayalign.data.files import read_file\nlist(read_file(pathlib.Path(sys.argv[1])))"


def test_a_line_that_unpacks_without_end_is_not_held(tmp_path: Path) -> None:
    """A GiB of one line in a MiB of gzip, read by a process that may take 400 MiB."""
    bomb_file = tmp_path / "rows.jsonl.gz"
    bomb_file.write_bytes(gzip.compress(b'{"prompt": "') + gzip.compress(b"a" * 64 * MIB, 1) * 16)
    done = subprocess.run(
        [sys.executable, "-c", LIMIT + READ, str(bomb_file)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr.splitlines()[-1] == (
        f"rayalign.errors.DataError: {bomb_file}:1: a line of more than 64 MiB; put each row on its own"
    )


def test_a_document_that_unpacks_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", MIB)
    file = tmp_path / "rows.json.gz"
    for content in (b"[\n" + b"0,\n" * MIB, b"[" + b"0," * MIB):  # on many lines, and on one
        file.write_bytes(gzip.compress(content))
        with pytest.raises(DataError, match="rows.json.gz.*more than"):
            list(files.read_file(file))


@pytest.mark.parametrize("text", [bomb(), merge_bomb()])
def test_aliases_of_aliases(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bomb.yaml"
    file.write_text(text)
    with bounded(10), pytest.raises(ConfigError, match="bomb.yaml:6: .*more than 100000 values"):
        load_config(file)
    with bounded(10), pytest.raises(ConfigError, match="the value is not valid YAML"):
        load_config(DEMO, [f"name={text}"])


def test_an_alias_may_repeat_a_value(tmp_path: Path) -> None:
    """What they are for."""
    file = tmp_path / "run.yaml"
    file.write_text("name: &n x\nmodel: {path: *n}\nstages: [{kind: sft}]\ndata: {demonstrations: {path: *n}}\n")
    assert load_config(file).model.path == "x"


def test_a_pipe_without_a_writer_is_not_waited_for_and_one_with_a_writer_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with bounded(10), pytest.raises(ConfigError, match="pipe.yaml: .*found nothing"):
        load_config(tmp_path / "pipe.yaml")
    text = "sleep 0.3; echo 'name: x\nmodel: {path: x}\nstages: [{kind: planted}]'"
    with subprocess.Popen(["sh", "-c", text], stdout=subprocess.PIPE) as writer:
        assert load_config(f"/dev/fd/{writer.stdout.fileno()}").name == "x"


def test_a_folder_of_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_ENTRIES", 3)
    for number in range(4):
        (tmp_path / f"{number}.jsonl").touch()
    with pytest.raises(DataError, match="more than 3 files"):
        sources.read_rows(DataSource(path=str(tmp_path)), resolve=Path)


def test_extends_without_end(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    with pytest.raises(ConfigError, match="0.yaml: extends: more than 50 files"):
        load_config(tmp_path / "0.yaml")

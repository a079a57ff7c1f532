"""The examples as scripts: what the user can mend is one line and exit code 2; the API itself raises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rayalign.api import train
from rayalign.errors import UserError
from tests.conftest import REPOSITORY, one_thread


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["a config is missing", "reward_function.py CONFIG [KEY=VALUE ...]"]),
        (["nowhere.yaml"], ["nowhere.yaml"]),
        (["configs/rft_cpu.yaml", "sede=1"], ["sede"]),
    ],
)
def test_a_user_error_is_one_line(arguments: list[str], words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "docs/examples/reward_function.py", *arguments],
        env=one_thread(), cwd=REPOSITORY, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("rayalign: ") and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words)


def test_a_program_catches_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere.yaml"):
        train(tmp_path / "nowhere.yaml")

"""The site, built once as `make docs` builds it, and its generators on the path."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "site"))


@dataclass(frozen=True)
class Built:
    """A build: exit code, what it printed, and the folder of the pages."""

    code: int
    log: str
    folder: Path

    def page(self, name: str) -> str:
        """A page's HTML."""
        return (self.folder / name).read_text(encoding="utf-8")


def build(root: Path) -> Built:
    """Runs the command of the Makefile in a checkout."""
    # Only the programs' folder comes from the checkout whose tests run: a copy has no environment of its own.
    command = ["make", "-o", "env", "docs", f"BIN={Path(sys.executable).parent}"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240)
    return Built(done.returncode, done.stdout + done.stderr, root / "build" / "site")


def copied(place: Path) -> Path:
    """A checkout with docs/ of its own, and links to all else."""
    shutil.copytree(ROOT / "docs", place / "docs")
    for entry in ROOT.iterdir():
        if entry.name not in ("docs", "build", ".git", ".venv"):
            (place / entry.name).symlink_to(entry)
    return place


def small_copy(place: Path) -> Path:
    """As `copied`, with the headings of each page only: what links lead to, in a build that shows no files."""
    root = copied(place)
    for file in [*root.glob("*.md"), *(root / "docs").rglob("*.md")]:
        text = file.read_text(encoding="utf-8")
        file.unlink()  # it may be a link to the checkout's
        file.write_text("\n\n".join(re.findall(r"^#+ .*$", text, re.MULTILINE)), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The documentation as it is."""
    return build(copied(tmp_path_factory.mktemp("checkout")))

"""The file that a suite adds its results to, looked at before any work."""

from __future__ import annotations

from pathlib import Path

from rayalign.storage.aside import check_writable
from rayalign.storage.evaluation import EVALUATION_FILE, read_evaluation


def evaluation_file(place: Path, out: Path | None) -> Path:
    """`out`, else evaluation.json in `place`. Raises UserError where the results could not be added to it."""
    file = out or place.expanduser() / EVALUATION_FILE
    check_writable(file)
    read_evaluation(file, remedy="move it away, or give another --out")
    return file

"""The suites of `rayalign evaluate`, each with options of its own."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Suite:
    """What `--suite NAME` takes and does; PLACE, --suite and --out are there for all."""

    name: str
    summary: str  # one line, beside the name in the help
    description: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]  # imports what it needs itself; prints, and names the file

"""Versions of installed packages, as results record them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata


def version_of(name: str) -> str | None:
    """The version of an installed package; None where it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions_of(names: Iterable[str]) -> dict[str, str]:
    """Those of `names` that are installed."""
    return {name: version for name in names if (version := version_of(name)) is not None}

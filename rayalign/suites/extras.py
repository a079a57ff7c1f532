"""What an installation may lack: packages of an extra, told in one line before any work."""

from __future__ import annotations

from importlib.util import find_spec

from rayalign.errors import UserError


def need(what: str, *modules: str, extra: str = "evals") -> None:
    """Raises UserError, with the command that mends it, unless all modules can be imported."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise UserError(f"{what} needs {', '.join(missing)}, not installed here; pip install 'rayalign[{extra}]'")

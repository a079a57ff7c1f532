"""No address in a config may hold a user or a password: the run writes its config to disk, to trackers and to logs."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from pydantic import model_validator

from rayalign.config.base import Strict
from rayalign.config.explain import stage_name

_IN_ADDRESS = re.compile(r"[a-z0-9+.-]://[^/?#\s]*@", re.IGNORECASE)  # looks at each character once
# Of what follows a ?: parts of names that open something, and whole names that do.
_PARTS = ("secret", "passw", "token", "access_key", "account_key", "api_key", "apikey", "signature", "sas")
_WHOLE = ("sig", "key", "auth", "code")
_DEEPEST = 40  # no valid config goes deeper; what does is refused by its keys
_ELSEWHERE = {
    "telemetry.mlflow.tracking_uri": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, "
    "in the environment",
    "checkpoints.mirror": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS or the like in "
    "the environment; an address of Azure is written abfs://ACCOUNT.dfs.core.windows.net/CONTAINER",
    "reward": "set RAYALIGN_REWARD_TOKEN in the environment",
}


def refuse_credentials(values: Any) -> None:
    """Raises ValueError, which names the key and not the value, for the first address with a user or a password."""
    key = _first(values, "")
    if key is not None:
        found = _ELSEWHERE.get(key) or _ELSEWHERE.get(key.rpartition(".")[2]) or "give them where the library looks for them"
        raise ValueError(f"{key}: the address holds a user or a password, which would be written to disk; {found}")


class WithoutCredentials(Strict):
    """The root of a config that a run writes to disk."""

    @model_validator(mode="before")
    @classmethod
    def _holds_no_credentials(cls, values: Any) -> Any:
        refuse_credentials(values)
        return values


def _first(node: Any, key: str, depth: int = 0) -> str | None:
    if depth > _DEEPEST:
        return None
    if isinstance(node, str):
        return key if _IN_ADDRESS.search(node) or _in_options(node) else None
    below: list[tuple[str, Any]] = []
    if isinstance(node, dict):
        below = [(str(name), value) for name, value in node.items()]
    elif isinstance(node, list):
        below = [(stage_name(value) or str(place), value) for place, value in enumerate(node)]
    found = (_first(value, f"{key}.{name}" if key else name, depth + 1) for name, value in below)
    return next((name for name in found if name is not None), None)


def _in_options(text: str) -> bool:
    """Whether a secret follows the ? of an address: by the option's name, or as USER@HOST in its value."""
    address, _, options = text.partition("?")
    if "://" not in address:
        return False
    pairs = [option.partition("=") for option in options.split("&")]
    return any("@" in unquote(value) or _opens(name.lower()) for name, _, value in pairs)


def _opens(name: str) -> bool:
    return name in _WHOLE or any(part in name for part in _PARTS)

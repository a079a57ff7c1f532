"""What differs between the settings that something was made with and those of now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Any]


def differences(before: Values, now: Values) -> list[str]:
    """"KEY (OLD, now NEW)" of each setting that is not the same, sorted; nested ones by their innermost key.

    What is known by a hash alone (an earlier stage, data) is named without it.
    """
    found: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        old, new, name = before.get(key), now.get(key), key.removeprefix("run.")
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [f"{name}.{inner}" for inner in differences(old, new)]
        elif old != new:
            found.append(name if key.startswith(("input ", "content ")) else f"{name} ({_short(old)}, now {_short(new)})")
    return found


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."

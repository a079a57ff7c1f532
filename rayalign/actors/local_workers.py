"""The worker of one group as a plain object in this process: the same engines, and a debugger works."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rayalign.actors.stored import keep, resolve
from rayalign.types import Stored

R = TypeVar("R")


@dataclass(frozen=True)
class Done(Generic[R]):
    """A call that ran when it was submitted."""

    values: list[R]

    def result(self) -> list[R]:
        """The value, in a list of one."""
        return self.values

    def survivors(self) -> list[R | None]:
        """The same: nobody is lost without this process."""
        return list(self.values)


class LocalWorkers:
    """One engine, called at once; errors come out as they are."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.engine: Any = None
        self.busy_s = 0.0

    def __len__(self) -> int:
        return 1

    def build(self, factory: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Done[None]:
        """Makes the engine with `factory(*arguments[0])`."""
        self.engine = factory(*arguments[0])
        return Done([None])

    def submit(
        self,
        method: Callable[..., R],
        arguments: Sequence[tuple[Any, ...]],
        *,
        phase: str,
        only: Sequence[int] | None = None,
    ) -> Done[R]:
        """Calls `method(engine, *arguments[0])`."""
        started = time.perf_counter()
        result = method(self.engine, *[resolve(a, _same) for a in arguments[0]])
        self.busy_s += time.perf_counter() - started
        return Done([keep(result, _same)])

    def replace(self, workers: Sequence[int]) -> None:
        """Never asked for: a worker is lost only with this process."""
        raise NotImplementedError

    def fetch(self, stored: Stored[R]) -> R:
        """The value itself."""
        return stored.ref

    def close(self) -> None:
        """Drops the engine."""
        close = getattr(self.engine, "close", None)
        if close is not None:
            close()
        self.engine = None


def _same(value: Any) -> Any:
    return value

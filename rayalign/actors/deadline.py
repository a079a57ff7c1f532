"""The one place that waits for Ray: every wait has a deadline (a lint rule bans ray.get and ray.wait elsewhere)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from rayalign.errors import CallFailed, RayalignError, UserError, WorkerLost, is_disk_full, out_of_memory
from rayalign.stopping import raise_if_given_up


def fetch(refs: Sequence[ray.ObjectRef], *, deadline_s: float, what: str) -> list[Any]:
    """The values of `refs`. Raises CallFailed, naming `what`, when one failed, and WorkerLost when one is lost or late."""
    try:
        with _stops_are_told():
            return ray.get(list(refs), timeout=deadline_s)
    except GetTimeoutError:
        raise WorkerLost(f"{what}: no answer within {deadline_s:g} s (placement.deadlines)") from None
    except RayError as error:
        raise failure(error, what) from error


def is_ready(ref: ray.ObjectRef, wait_s: float) -> bool:
    """Whether a call has ended, well or not, within `wait_s` from now. A stop that comes meanwhile is seen at the end."""
    with _stops_are_told():
        return bool(ray.wait([ref], timeout=wait_s, fetch_local=False)[0])


@contextlib.contextmanager
def _stops_are_told() -> Iterator[None]:
    """A signal's handler that raises in Ray's compiled code comes out as a SystemError; here it is what it was."""
    try:
        yield
    except SystemError as error:
        raise_if_given_up()
        raise error.__cause__ or error from None


def failure(error: BaseException, what: str) -> RayalignError:
    """What a failed remote call means to a person: our own errors as they are, others with actor and phase.

    Raises Stopped where the call failed of a stop that fell into Ray's code.
    """
    raise_if_given_up()
    cause: BaseException | None = error  # Ray Train hands over what a worker raised as it is
    if isinstance(error, RayError):
        cause = error.cause if isinstance(error, RayTaskError) else None
    if isinstance(cause, RayalignError):
        return type(cause)(*cause.args)
    if cause is not None and is_disk_full(cause):
        return UserError(f"{what}: the disk is full ({_first_line(cause)}); free some space and run again")
    if cause is not None and (told := out_of_memory(cause, f"{what}: ")):
        return told
    if cause is not None:
        return CallFailed(f"{what}: {type(cause).__name__}: {_first_line(cause)}")
    return WorkerLost(f"{what}: the worker died ({_first_line(error)})")


def is_dead(actor: Any) -> bool:
    """Whether Ray knows that an actor has ended. Asks its control service, not the actor, which may be busy."""
    from ray._private.state import state

    return state.actor_table(actor._actor_id.hex()).get("State") == "DEAD"


def has_crashed(actor: Any) -> bool:
    """Whether an actor ended with its process or its node, and was not told to."""
    from ray._private.state import state

    cause = state.actor_table(actor._actor_id.hex()).get("DeathCause")
    if cause is None:
        return False
    died = cause.actor_died_error_context
    crashes = (died.WORKER_DIED, died.NODE_DIED)
    return cause.HasField("oom_context") or (cause.HasField("actor_died_error_context") and died.reason in crashes)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__

"""The errors a person meets. Each is one line: what, where, what to do."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator

NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "status_alloc_failed")
LONGEST = 1500  # characters of a message; what is longer repeats somebody's input


class RayalignError(Exception):
    """Something went wrong while running; the command exits with code 1. The message is one line that can be printed."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


class UserError(RayalignError):
    """Something the user can mend (a config key, a path, a row); the command exits with code 2."""


class ConfigError(UserError):
    """The configuration is not valid; the message names the key."""


class DataError(UserError):
    """The data is not valid; the message names the file and the line."""


class PlacementError(UserError):
    """The resources a config asks for are not there; the message names the missing bundle."""


class CallFailed(RayalignError):
    """A call to an actor failed, died or ran out of time; the message names actor, phase and version."""


class WorkerLost(CallFailed):
    """A worker died or did not answer by its deadline; its stage goes on from the last checkpoint, if it may."""


class SyncError(RayalignError):
    """A weight sync delivered nothing, stale or wrong weights; nothing sampled with them is used."""


class StaleSamples(RayalignError):
    """Samples older than `max_staleness` policy versions reached an update."""


class Diverged(RayalignError):
    """Numbers were not finite too often in a row. The weights are the last good ones, and the stage saves them."""


class Stopped(RayalignError):
    """The run was asked to stop (SIGTERM), and has saved where it is."""


GOES_ON = "a next start goes on from the stage's last checkpoint, or begins the stage again where it has none"
STOPPED_CODE = 143  # of a program that ended for SIGTERM


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Around a whole program: what goes wrong becomes its one line on stderr and an exit code, as in the command line."""
    try:
        yield
    except RayalignError as error:
        print(f"rayalign: {error}", file=sys.stderr)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        print(f"rayalign: interrupted; {GOES_ON}; finished stages are kept", file=sys.stderr)
        sys.exit(130)
    except (MemoryError, RuntimeError, OSError) as error:
        if (told := out_of_memory(error)) is None:
            raise
        print(f"rayalign: {told}", file=sys.stderr)
        sys.exit(exit_code(told))


def exit_code(error: RayalignError) -> int:
    """2 for what the user can mend, 143 for a run that was asked to stop, else 1."""
    return 2 if isinstance(error, UserError) else STOPPED_CODE if isinstance(error, Stopped) else 1


def printable(text: str) -> str:
    """A message that quotes somebody's input, on one line: what a terminal would obey or not show is written as \\u202e."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " if c.isspace() else _escaped(c) for c in text)
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST * 2 // 3]} [...] {text[-LONGEST // 3 :]}"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed because there was no room: disk, quota or file-size limit.

    safetensors and others wrap the system's error in their own, and leave only its text.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return any(f"os error {code}" in str(error) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def out_of_memory(error: BaseException, where: str = "") -> UserError | None:
    """What to tell where the system, numpy, or torch on a GPU or a CPU had no memory left; None for another error."""
    text = " ".join(str(error).split())
    says_so = isinstance(error, RuntimeError) and any(words in text.lower() for words in NO_MEMORY)
    if not says_so and not isinstance(error, MemoryError) and getattr(error, "errno", None) != errno.ENOMEM:
        return None
    return UserError(
        f"{where}out of memory ({text[:200] or 'of this machine'}); lower learner.micro_batch_tokens or, on a GPU beside "
        "vLLM, placement.gpu_memory_frac (`rayalign doctor CONFIG` tells what each group holds), for rayalign control "
        "policy.batch_size or policy.hidden; or give it more"
    )

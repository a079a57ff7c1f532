"""`rayalign push`: sends exported folders to a model hub; what goes where is said before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from rayalign.config.fits import LOG_RATIO
from rayalign.config.service import is_loopback
from rayalign.data.files import one_line
from rayalign.data.hub import quiet_hub
from rayalign.errors import RayalignError, UserError
from rayalign.serving.newest import ROLES
from rayalign.sharing.card import CARD_FILE
from rayalign.sharing.reproduce import RECORD_FILE
from rayalign.storage.run_folder import CONFIG_FILE

# What an earlier push of another shape left would be loaded beside, or in place of, what is sent. `*` crosses folders.
STALE = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "config.json", "*/config.json",
    "adapter_config.json", LOG_RATIO,
)  # fmt: skip
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
Answer = TypeVar("Answer")
LOG_IN = "set HF_TOKEN in the environment to a token that may write, or run `hf auth login`"


@dataclass(frozen=True)
class Parcel:
    """A folder, the repository that it goes to, and its files with their sizes in bytes."""

    folder: Path
    repo_id: str
    files: dict[str, int]

    def lines(self) -> list[str]:
        """For a terminal."""
        total = sum(self.files.values())
        width = max(len(name) for name in self.files)
        head = f"{self.folder} -> {self.repo_id}: {len(self.files)} files, {_size(total)}"
        files = (f"  {name:<{width}}  {_size(size)}" for name, size in self.files.items())
        return [head, *files, f"  weights and configs of an earlier push that are not among these go: {', '.join(STALE)}"]


def parcels(place: Path, repo_id: str) -> list[Parcel]:
    """What an export's folder holds: one model as `repo_id`; of two, the reward as `repo_id`-reward.

    Raises UserError for a folder that is no export, for links in it, and for what is no repository's name.
    """
    if not REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id:
        raise UserError(f"{repo_id}: no repository's name; give OWNER/NAME")
    place = place.expanduser()
    if (place / RECORD_FILE).is_file():
        return [_parcel(place, repo_id)]
    folders = [place / role for role in ROLES if (place / role / RECORD_FILE).is_file()]
    if not folders:
        raise UserError(f"{place}: neither a run nor an export; give the folder that `rayalign export` wrote")
    both = len(folders) > 1
    return [_parcel(folder, f"{repo_id}-reward" if both and folder.name == "reward" else repo_id) for folder in folders]


def is_run(place: Path) -> bool:
    """Whether an export must be made first: a run's folder, and no export (which has a config.yaml too)."""
    return (place.expanduser() / CONFIG_FILE).is_file() and not (place.expanduser() / RECORD_FILE).is_file()


def check_hub() -> str:
    """The hub's address, once it may be asked. Raises UserError when offline, without a token, or over plain http."""
    from huggingface_hub import constants, get_token

    hub = constants.ENDPOINT
    if constants.is_offline_mode():
        raise UserError("push: HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, so nothing is sent; unset it to push")
    address = urlsplit(hub)
    if address.scheme != "https" and not is_loopback(address.hostname or ""):
        raise UserError(f"HF_ENDPOINT {hub}: over plain http your token would travel in clear; give an https address")
    if not get_token():
        raise UserError(f"push: no token for {hub}; {LOG_IN}")
    return hub


def push(parcel: Parcel, *, private: bool = False) -> str:
    """Makes the repository where there is none, and sends the folder as one commit; the repository's address.

    Weights of an earlier push that are not sent again go with that commit.

    Raises UserError where the hub refuses (no rights, a public repository where a private one is wanted), RayalignError
    where it cannot be reached or fails.
    """
    from huggingface_hub import HfApi

    hub = check_hub()
    api = HfApi()
    with quiet_hub():
        made = _asked(hub, parcel, lambda: api.create_repo(parcel.repo_id, private=private or None, exist_ok=True))
        if private and not _asked(hub, parcel, lambda: api.model_info(parcel.repo_id).private):
            raise UserError(f"{parcel.repo_id}: is there and public; give another name, or make it private at {hub} first")
        _asked(
            hub,
            parcel,
            lambda: api.upload_folder(
                repo_id=parcel.repo_id,
                folder_path=parcel.folder,
                allow_patterns=[_literally(name) for name in parcel.files],
                delete_patterns=list(STALE),  # in the same commit; not what is sent
                commit_message="Exported by rayalign",
            ),
        )
    return str(made)


def _asked(hub: str, parcel: Parcel, call: Callable[[], Answer]) -> Answer:
    """What the hub answers. Raises UserError or RayalignError, in one line, where it refuses or is not there."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        return call()
    except HfHubHTTPError as error:
        raise _refusal(hub, parcel, error.response.status_code, error.server_message or "") from None
    except HTTPError as error:  # no answer at all
        raise UserError(f"{hub}: cannot be reached ({one_line(error)}); check the network, and HF_ENDPOINT") from None
    except (RuntimeError, OSError) as error:  # of a large file's upload
        if isinstance(cause := error.__cause__, HfHubHTTPError):
            raise _refusal(hub, parcel, cause.response.status_code, cause.server_message or "") from None
        raise RayalignError(f"{hub}: {one_line(cause or error)}; push again, what is there is not sent twice") from None
    except ValueError as error:  # an answer without what it should have, or a card that the hub does not take
        raise RayalignError(f"{hub}: {one_line(error)}") from None


def _refusal(hub: str, parcel: Parcel, status: int, told: str) -> RayalignError:
    why = f"{status}: {' '.join(told.split())[:200]}" if told.strip() else str(status)
    if status == 401:
        return UserError(f"{hub}: does not take your token ({why}); {LOG_IN}")
    if status in (402, 403):
        return UserError(
            f"{parcel.repo_id}: your token may not write there ({why}); give a name of your own, or a token that may write"
        )
    if status == 404:
        return UserError(f"{parcel.repo_id}: not found at {hub} ({why}); is it another's, and private?")
    if status in (400, 409, 422):
        return UserError(f"{parcel.repo_id}: {hub} does not take it ({why})")
    return RayalignError(f"{hub}: failed ({why}); push again later, what is there is not sent twice")


def _parcel(folder: Path, repo_id: str) -> Parcel:
    """Everything but hidden files, which no export writes."""
    if not (folder / CARD_FILE).is_file():
        raise UserError(f"{folder}: has no {CARD_FILE}; export the run again")
    files = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        if file.is_symlink():
            raise UserError(f"{file}: a link, which no export writes; remove it, or put the file in its place")
        if file.is_file():
            files[name.as_posix()] = file.stat().st_size
    return Parcel(folder, repo_id, files)


def _literally(name: str) -> str:
    """A file's name as a pattern that matches it alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"

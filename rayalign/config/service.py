"""A reward behind an HTTP service: how its address is written, and the token that it is shown.

The token comes from the environment and goes into requests alone: no object holds it, so that none can print or store it.
"""

from __future__ import annotations

import ipaddress
import os
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from rayalign.config.base import NonNegativeInt, Positive, PositiveInt, Strict
from rayalign.errors import UserError

TOKEN = "RAYALIGN_REWARD_TOKEN"


class RewardServiceConfig(Strict):
    """How services that score are asked; where one is, the reward of a stage says."""

    timeout_s: Positive = Field(60.0, description="deadline of one request, its answer included")
    retries: NonNegativeInt = Field(
        5, description="after no answer, 429 or 5xx, with growing pauses; then the run ends with one line"
    )
    batch_size: PositiveInt = Field(64, description="the most responses of one request")


def is_service(location: str | None) -> bool:
    """Whether a reward's location is the address of a service, and neither a path nor a name."""
    return location is not None and location.lower().startswith(("http://", "https://"))


def is_loopback(host: str) -> bool:
    """Whether what is sent to a host stays on this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reward_token() -> str | None:
    """The bearer token of the environment; None where there is none. Raises UserError for one that no header takes."""
    token = os.environ.get(TOKEN, "").strip()
    if not all("!" <= letter <= "~" for letter in token):
        raise UserError(f"{TOKEN}: a token is printable ASCII without spaces, and this one is not; set another")
    return token or None


def clear_text_problem(url: str) -> str | None:
    """Why a service may not be asked: it would get the token in clear over a network. None where it may."""
    address = urlsplit(url)
    if address.scheme.lower() == "https" or is_loopback(address.hostname or "") or reward_token() is None:
        return None
    return (
        f"{url}: over plain http the token in {TOKEN} would travel in clear; use https, a tunnel from 127.0.0.1, "
        "or unset the token"
    )


def _checked(location: str) -> str:
    """A location; where it is an address, one that names a host and holds nothing that is better kept secret."""
    if not is_service(location):
        return location
    try:
        address = urlsplit(location)
        named = bool(address.hostname) and address.port != 0
    except ValueError:  # a port that is none, a bracket that does not close
        named = False
    if not named or any(not "!" <= letter <= "~" for letter in location):
        raise ValueError("no address that can be asked; write it as https://HOST:PORT/PATH, in ASCII without spaces")
    if set("?#") & set(location):
        raise ValueError("an address here ends with its path; what follows ? or # would stand in config and logs, remove it")
    return location


RewardLocation = Annotated[
    str,
    Field(min_length=1, description="a saved reward (folder, hub name, stage:STAGE/reward), or a service's http(s) address"),
    AfterValidator(_checked),
]

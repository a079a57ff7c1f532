"""`rayalign serve-reward`: one run's reward, for another run to score with."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

from rayalign.config.service import TOKEN, is_loopback, reward_token
from rayalign.errors import UserError
from rayalign.serving.http import RewardServer, Score
from rayalign.serving.places import find_reward


def serve_reward(
    place: Path,
    *,
    host: str,
    port: int,
    threads: int | None = None,
    cert: Path | None = None,
    key: Path | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Serves until it is interrupted. Raises UserError for what is missing, before the model is loaded."""
    token = reward_token()
    if token is None:
        raise UserError(f"{TOKEN} is not set: a service that scores asks for a token; set one here and where it is used")
    tls = _tls(host, cert, key)
    folder = find_reward(place)
    from rayalign.serving.saved import SavedReward, pin_threads

    pin_threads(threads)
    reward = SavedReward(folder, chat_template=chat_template, trust_remote_code=trust_remote_code)
    try:
        with _bound(host, port, reward, token, tls) as server:
            name = f"[{host}]" if ":" in host else host
            where = f"http{'s' if tls else ''}://{name}:{server.server_address[1]}/score"
            print(f"{folder} scores at {where}, for who shows the token in {TOKEN}; Ctrl-C ends it", flush=True)
            server.serve_forever()
    except KeyboardInterrupt:
        print("rayalign: the service has ended", file=sys.stderr)


def _tls(host: str, cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if cert is None:
        if not is_loopback(host):
            raise UserError(
                f"--host {host}: others would send the token to it in clear; give --cert (and --key) for https, or listen "
                "on 127.0.0.1 behind a tunnel or a proxy that speaks https"
            )
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"--cert {cert}: cannot be used ({error}); give PEM files of a certificate and its key") from None
    return context


def _bound(host: str, port: int, reward: Score, token: str, tls: ssl.SSLContext | None) -> RewardServer:
    try:
        return RewardServer((host, port), reward, token, tls=tls)
    except (OSError, OverflowError) as error:
        told = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot listen on {host}, port {port} ({told}); choose another --port or --host") from None

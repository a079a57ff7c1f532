"""Joining a Ray cluster, or starting one on this machine. An address that does not answer is told within seconds."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator

import ray

from rayalign.config.placement import PlacementConfig
from rayalign.errors import PlacementError

PROBE_S = 5.0  # for an answer from the address; ray.init alone tries for two minutes
DEFAULT_PORT = 6379
AUTHENTICATION = "ray._private.authentication.authentication_token_setup"  # its logger
CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # what `ray health-check` calls


def connect(placement: PlacementConfig, actor_logs: bool, metrics_port: int | None = None) -> bool:
    """Joins a running Ray, or starts one here; True if started. Raises PlacementError where none answers.

    One started here exports its metrics at `metrics_port`, where one is given; else at a port that Ray chooses.
    """
    if ray.is_initialized():
        return False
    address = cluster_address(placement)
    if address is not None:
        _join(address, actor_logs)
        return False
    # Workers at Ray's default niceness starve beside anything else; prestarted ones would only sit idle.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_enable_worker_prestart", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_task_events_max_num_task_in_gcs", "2000")  # a log of calls that nobody reads here
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers what runs on it
    logging.getLogger(AUTHENTICATION).addFilter(_is_worth_telling)
    _check_free(metrics_port)
    with _own_sigterm():
        _start(placement, actor_logs, metrics_port)
    return True


def _start(placement: PlacementConfig, actor_logs: bool, metrics_port: int | None) -> None:
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=placement.object_store_mib * 2**20,
            log_to_driver=actor_logs,
            logging_level="warning",
            _metrics_export_port=metrics_port,
        )
    except Exception as error:  # noqa: BLE001 - Ray has no kind of its own for a node that is too late
        if type(error) is not Exception:
            raise
        ray.shutdown()
        raise PlacementError(
            f"Ray did not start on this machine ({' '.join(str(error).split())[:200]}); is it too busy, or out of memory or "
            "disk? start again"
        ) from None


def _check_free(port: int | None) -> None:
    """Raises PlacementError for a port that something else listens at: Ray would wait for it, and then fail."""
    if port is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            told = f"telemetry.metrics_port: {port} cannot be used ({error.strerror}); set another one"
            raise PlacementError(told) from None


def is_connected() -> bool:
    """Whether this process has joined a Ray already."""
    return bool(ray.is_initialized())


def cluster_address(placement: PlacementConfig) -> str | None:
    """The cluster to join; None to start one here. A job's driver finds its cluster in RAY_ADDRESS."""
    return placement.address or ("auto" if os.environ.get("RAY_ADDRESS") else None)


def cluster_nodes() -> list[dict[str, float]]:
    """{CPU, GPU} of each live node."""
    return [
        {kind: float(node["Resources"].get(kind, 0.0)) for kind in ("CPU", "GPU")}
        for node in ray.nodes()
        if node["Alive"]
    ]


def nodes_of_cluster(placement: PlacementConfig) -> list[dict[str, float]]:
    """As `cluster_nodes`, for a look from outside: joins, asks, leaves."""
    connect(placement, actor_logs=False)
    try:
        return cluster_nodes()
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keeps this program's answer to SIGTERM, where it has one: ray.init puts its own there, which ends the run unsaved."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _is_worth_telling(record: logging.LogRecord) -> bool:
    """Not that a Ray started here asks for a token: it makes its own, and warns of it at every start."""
    return not record.getMessage().startswith("Token authentication is enabled")


def _join(address: str, actor_logs: bool) -> None:
    named = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    asks_token = named not in ("", "auto") and _probe(named)
    try:
        with _own_sigterm():
            ray.init(address=address, log_to_driver=actor_logs, logging_level="warning")
    except (ConnectionError, ValueError, TimeoutError, RuntimeError, ray.exceptions.RayError) as error:
        # RuntimeError: another version of Ray or Python there
        token = "; it asks for a token: is RAY_AUTH_MODE=token set here, with the cluster's token?" if asks_token else ""
        raise _no_cluster(named or address, " ".join(str(error).split())[:160] + token) from error


def _probe(address: str) -> bool:
    """Raises PlacementError unless a Ray answers at HOST:PORT (over ray:// or TLS: unless something listens).

    Returns whether it asks for a token.
    """
    scheme, _, rest = address.rpartition("://")
    if scheme.startswith("http"):
        raise _no_cluster(address, "an http address is the dashboard's, for `ray job submit`; the head's is HOST:6379")
    host, _, port = rest.rpartition(":") if ":" in rest else (rest, "", str(DEFAULT_PORT))
    if not port.isdecimal():
        raise _no_cluster(address, "an address is written HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        told = getattr(error, "strerror", None) or str(error)
        reason = f"no answer, tried for {PROBE_S:g} s" if isinstance(error, TimeoutError) else told
        raise _no_cluster(address, reason) from None
    if scheme or os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
        return False
    return _greet(address, f"{host}:{port}")


def _greet(address: str, target: str) -> bool:
    """Asks Ray's head whether it lives; True if it wants a token first. Whether ours will do, ray.init finds out."""
    import grpc

    options = [("grpc.enable_http_proxy", 0)]
    try:
        with grpc.insecure_channel(target, options=options) as channel:
            channel.unary_unary(CHECK_ALIVE, request_serializer=bytes, response_deserializer=bytes)(b"", timeout=PROBE_S)
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED):
            raise _no_cluster(address, f"what listens there is no Ray head, asked for {PROBE_S:g} s") from None
        return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


def _no_cluster(address: str, reason: str) -> PlacementError:
    return PlacementError(
        f"placement.address: no Ray cluster answers at {address} ({reason}); start one (docs/cluster.md), or leave "
        "address and RAY_ADDRESS unset to run on this machine"
    )

"""A run with a fault in it: `python benchmarks/faults.py CONFIG --kill ROLE --in PHASE`.

Runs a config in this process, on a Ray of its own, and sends one worker a signal at the moment that a phase has begun for
the given time: SIGKILL (it dies) or SIGSTOP (it hangs). ROLE is policy, reward, rollout, controller (this process) or node
(the raylet of one of two small nodes beside the head, with its worker; the other one is free to take its place). Without
--kill there is no fault.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from typing import Any

from rayalign.actors.fleet import RayFleet
from rayalign.actors.ray_workers import RayWorkers
from rayalign.config.load import load_config
from rayalign.errors import one_line_errors
from rayalign.run import run

DELAY_S = 0.05  # into the phase
PHASES = {
    "generate": "generate",
    "reward_update": "reward update",
    "score": "score",
    "policy_update": "policy update",
    "sync": "sync v",
    "checkpoint": "save the policy's checkpoint",
}


def main() -> None:
    """One run, with its fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--kill", choices=["policy", "reward", "rollout", "controller", "node"])
    parser.add_argument("--in", dest="phase", choices=[*PHASES], default="generate")
    parser.add_argument("--nodes", action="store_true", help="on three nodes, as where one of them is lost")
    parser.add_argument("--nth", type=int, default=3, help="at which time that the phase begins")
    parser.add_argument("--signal", choices=["KILL", "STOP"], default="KILL")
    arguments = parser.parse_args()
    fault = Fault(arguments.kill, PHASES[arguments.phase], arguments.nth, getattr(signal, f"SIG{arguments.signal}"))
    if arguments.nodes or arguments.kill == "node":
        fault.start_cluster()
    if arguments.kill:
        fault.inject()
    with one_line_errors():
        run(load_config(arguments.config))
    fault.close()


class Fault:
    """Strikes once."""

    def __init__(self, role: str | None, phase: str, nth: int, kind: signal.Signals) -> None:
        self._role, self._phase, self._nth, self._kind = role, phase, nth, kind
        self._seen = 0
        self._pids: dict[str, int] = {"controller": os.getpid()}
        self._cluster: Any = None
        self._places: set[str] = set()  # ids of nodes with a worker

    def inject(self) -> None:
        """Listens to every call that the controller makes."""
        start, submit, fault = RayFleet.start, RayWorkers.submit, self

        def start_and_note(fleet: RayFleet, role: str, factory: Any, setups: Any) -> RayWorkers:
            workers = start(fleet, role, factory, setups)
            fault._pids[role] = workers.process_ids()[-1]
            fault._places |= {node for node, _ in workers.devices()}
            return workers

        def submit_and_strike(workers: RayWorkers, method: Any, arguments: Any, **keys: Any) -> Any:
            calls = submit(workers, method, arguments, **keys)
            if keys["phase"].startswith(fault._phase):
                fault._seen += 1
                if fault._seen == fault._nth:
                    threading.Timer(DELAY_S, fault.strike).start()
            return calls

        RayFleet.start, RayWorkers.submit = start_and_note, submit_and_strike  # type: ignore[method-assign]

    def strike(self) -> None:
        """The signal, or the end of a node."""
        print(f"fault: {self._role} {self._kind.name} in {self._phase}", flush=True)
        if self._role == "node":
            lost = next(node for node in self._cluster.worker_nodes if node.node_id in self._places)
            self._cluster.remove_node(lost, allow_graceful=False)
        else:
            assert self._role is not None
            os.kill(self._pids[self._role], self._kind)

    def start_cluster(self) -> None:
        """Three nodes on this machine: one with room for two of the three groups, two for the third."""
        import ray
        from ray.cluster_utils import Cluster

        os.environ |= {"RAY_worker_niceness": "0", "RAY_enable_worker_prestart": "0"}
        head = {"num_cpus": 2, "object_store_memory": 128 * 2**20, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            self._cluster.add_node(num_cpus=1, object_store_memory=128 * 2**20)
        ray.init(address=self._cluster.address, logging_level="error")
        while len([node for node in ray.nodes() if node["Alive"]]) < 3:
            time.sleep(0.1)

    def close(self) -> None:
        """Ends the cluster that was started here."""
        if self._cluster is not None:
            import ray

            ray.shutdown()
            self._cluster.shutdown()


if __name__ == "__main__":
    main()

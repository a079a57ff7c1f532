"""`rayalign control train`: from a config to a policy and a reward in a run folder."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayalign.config.control import ControlConfig
from rayalign.config.load import dump_config
from rayalign.control.alternation import Alternation
from rayalign.control.checkpoints import ControlCheckpoints
from rayalign.control.cloning import clone
from rayalign.control.data import ControlData, coefficients, load_data, observation_scale
from rayalign.control.environments import Task, look_at, make_training_environment
from rayalign.control.evaluation import correlation, measure_return, roll_out
from rayalign.control.folder import POLICY_FILE, RESULTS_FILE, REWARD_FILE, STAGE, run_folder
from rayalign.control.policies import Network, SavedPolicy, load_network, save_network
from rayalign.errors import Diverged, PlacementError, Stopped, UserError, is_disk_full
from rayalign.stopping import stop_on_sigterm
from rayalign.storage.aside import write_json
from rayalign.storage.run_folder import held, make_folder, write_config
from rayalign.telemetry.clock import Clock
from rayalign.telemetry.progress import Bar, Progress
from rayalign.telemetry.tracker import Tracker

STOP_FILE = ".stop"
CLONING = "cloning"
CLAMPED_TOO_OFTEN = 0.5


@dataclass
class ControlRun:
    """A run in progress."""

    config: ControlConfig
    folder: Path
    task: Task
    data: ControlData
    tracker: Tracker
    progress: Progress

    def is_stopping(self) -> bool:
        """Whether SIGTERM has asked for it."""
        return (self.folder / STOP_FILE).exists()


def train(config: ControlConfig) -> Path:
    """Runs a config; returns its folder, with policy.safetensors, reward.safetensors and results.json.

    Raises UserError for what the user can mend, RayalignError for what failed on the way.
    """
    folder = run_folder(config)
    task = task_of(config, learns=config.method != "behaviour_cloning")
    data = load_data(config, task)
    checkpoints = ControlCheckpoints(config, folder)
    if checkpoints.is_finished():
        Progress(config.telemetry.progress, sys.stderr).say(f"{config.name}: finished before, kept")
        return folder
    with opened_run(config, folder, task, data) as run:
        checkpoints.accept(run.progress.say)
        write_config(folder, dump_config(config))
        results = _train_by_method(run, checkpoints)
        write_json(folder / RESULTS_FILE, results)
        if results["rounds"] is None or results["rounds"] >= config.rounds:
            checkpoints.finish()
        else:
            run.progress.say(
                f"max_s: ended after round {results['rounds']} of {config.rounds}; the same command goes on from there"
            )
    return folder


def task_of(config: ControlConfig, *, learns: bool = True) -> Task:
    """The config's task. Raises UserError for one that its algorithm cannot learn to act in."""
    task = look_at(config.environment)
    if task.is_choice and config.policy.algorithm == "sac" and learns:
        raise UserError(
            f"policy.algorithm: actions of {task.environment} are choices among {task.action_size}, and SAC gives vectors; "
            "set it to ppo, with fragment: 2048"
        )
    if config.policy.max_unhealthy_steps is not None:  # told here, and not by a worker
        make_training_environment(config.environment, None, config.policy.max_unhealthy_steps).close()
    return task


def evaluate(config: ControlConfig) -> dict[str, Any]:
    """Measures the networks of a finished run again, with the config's `evaluation`. Raises UserError without a run."""
    folder = run_folder(config)
    task = look_at(config.environment)
    policy = SavedPolicy(load_network(folder / POLICY_FILE, task), task.is_choice)
    reward_file = folder / REWARD_FILE
    reward = load_network(reward_file, task) if reward_file.exists() else None
    return evaluate_networks(config, task, policy, reward, load_data(config, task))


@contextlib.contextmanager
def opened_run(config: ControlConfig, folder: Path, task: Task, data: ControlData) -> Iterator[ControlRun]:
    """A run's folder, held, with its metrics and, where anything is remote, Ray."""
    try:
        make_folder(folder)
        with held(folder), stop_on_sigterm(folder / STOP_FILE, grace_s=config.checkpoints.grace_s):
            progress = Progress(config.telemetry.progress, sys.stderr)
            start_ray(config)
            resolved = config.model_dump(mode="json")
            with Tracker(folder, config.telemetry, run_name=config.name, resolved_config=resolved) as tracker:
                with _exported(config, tracker):
                    yield ControlRun(config, folder, task, data, tracker, progress)
    except OSError as error:
        if is_disk_full(error):
            raise UserError(f"{folder}: the disk is full; free some space and run again") from error
        raise


def _exported(config: ControlConfig, tracker: Tracker) -> contextlib.AbstractContextManager[None]:
    """While the block runs, records go to Ray's own metrics too, where Ray is started."""
    if not config.placement.remote:
        return contextlib.nullcontext()
    from rayalign.actors.metrics import RayMetricsSink

    return tracker.also(RayMetricsSink(config.name))


def start_ray(config: ControlConfig) -> None:
    """Only where something runs outside this process. Raises PlacementError where there is no room: RLlib would wait."""
    placement = config.placement
    if placement.gpus_per_learner and not placement.num_learners and not torch.cuda.is_available():
        raise PlacementError("placement.gpus_per_learner: this machine has no GPU for the learner; set it to 0")
    if not placement.remote:
        return
    from rayalign.actors.cluster import cluster_nodes, connect

    connect(placement.cluster(), config.telemetry.actor_logs, config.telemetry.metrics_port)
    nodes = cluster_nodes()
    gpus = placement.num_learners * placement.gpus_per_learner
    cpus = placement.num_env_runners + (0 if gpus else placement.num_learners)
    there = {kind: sum(node[kind] for node in nodes) for kind in ("CPU", "GPU")}
    if cpus > there["CPU"] or gpus > there["GPU"]:
        raise PlacementError(
            f"placement: {placement.num_env_runners} env runners and {placement.num_learners} learners need {cpus} CPUs and "
            f"{gpus:g} GPUs, and there are {there['CPU']:g} and {there['GPU']:g}; lower num_env_runners or num_learners"
        )


def _train_by_method(run: ControlRun, checkpoints: ControlCheckpoints) -> dict[str, Any]:
    if run.config.method == "behaviour_cloning":
        run.tracker.keep(STAGE, 0)
        scale = observation_scale(run.config, run.data.observations())
        network = _clone(run, scale, run.tracker)
        return _results(run, SavedPolicy(network, run.task.is_choice), None) | {"rounds": None}
    scale = observation_scale(run.config, run.data.observations())
    alternation = Alternation(run.config, run.task, run.data, scale, coefficients(run.config, run.data))
    try:
        done = _saved_if_diverged(run, alternation, checkpoints)
        return _results(run, alternation.policy(), alternation.reward()) | {"rounds": done}
    finally:
        alternation.close()


def _saved_if_diverged(run: ControlRun, alternation: Alternation, checkpoints: ControlCheckpoints) -> int:
    """`run_rounds`; where it diverges the networks are saved as they were last good."""
    try:
        return run_rounds(run, alternation, checkpoints)
    except Diverged as error:
        _save(run, alternation.policy(), alternation.reward())
        raise Diverged(f"{error}. Saved: the last good {POLICY_FILE} and {REWARD_FILE} in {run.folder}") from error


def run_rounds(run: ControlRun, alternation: Alternation, checkpoints: ControlCheckpoints) -> int:
    """The alternation, round after round, from the newest checkpoint where there is one; the rounds that are done.

    Where `max_s` ends it before the last one, there is a checkpoint to go on from.
    """
    config, begun = run.config, time.monotonic()
    done = checkpoints.restore(alternation, run.tracker, run.progress.say)
    if done is None and not alternation.warm_up(run.is_stopping, _start(run, alternation)):
        raise Stopped("asked to stop before the first round, of which nothing is saved: the same command begins again")
    clock, first = Clock(), (done or 0) + 1
    number = first - 1
    total = (config.rounds - first + 1) * config.policy.steps_per_round - alternation.num_in_round
    with run.progress.stage(STAGE, total=total) as bar:
        for number in range(first, config.rounds + 1):
            metrics = _round(run, alternation, bar, clock)
            if metrics is None:
                checkpoints.save(alternation, number - 1, run.tracker)
                on = "the same command, without resume=anew," if config.resume == "anew" else "the same command"
                raise Stopped(f"asked to stop in round {number}, which is saved; {on} goes on from there")
            is_cut = config.max_s is not None and time.monotonic() - begun > config.max_s
            is_last = number == config.rounds or is_cut
            if number % config.evaluation.every == 0 or is_last:
                metrics |= _true_return(run, alternation.policy(), clock)
            metrics |= {name: metric.value() for name, metric in clock.lap().items()}
            metrics["env_steps"] = alternation.session.num_steps
            run.tracker.log(STAGE, number, number, metrics)
            _show(run, bar, number, metrics)
            if is_last:
                break
            checkpoints.save_if_due(alternation, number, run.tracker)
    if number >= first:
        checkpoints.save(alternation, number, run.tracker)  # before it is measured, which can fail
    return number


def _round(run: ControlRun, alternation: Alternation, bar: Bar, clock: Clock) -> dict[str, float] | None:
    """A round's numbers; None where the run was asked to stop in it."""
    with clock.phase("policy"):
        policy = alternation.policy_steps(lambda num: bar.update(advance=num), run.is_stopping)
    if policy is None:
        return None
    with clock.phase("reward"):
        reward = alternation.reward_steps()
    return {f"policy/{k}": v for k, v in policy.items()} | {f"reward/{k}": v for k, v in reward.items()}


def _true_return(run: ControlRun, policy: SavedPolicy, clock: Clock) -> dict[str, float]:
    look = run.config.evaluation
    with clock.phase("evaluate"):
        found = measure_return(run.config.environment, run.task, policy.act, look.num_episodes, look.seed)
    return {"true/return_mean": found}


def _show(run: ControlRun, bar: Bar, number: int, metrics: dict[str, float]) -> None:
    names = ("true/return_mean", "reward/margin_demo_minus_agent", "reward/preference_accuracy", "policy/entropy")
    bar.update(round=(number, run.config.rounds), note={name: metrics[name] for name in names if name in metrics})
    clamped = metrics.get("reward/clamped_frac", 0.0)
    if clamped > CLAMPED_TOO_OFTEN and run.tracker.count(STAGE) % 10 == 1:
        run.progress.say(
            f"warning: round {number}: {clamped:.0%} of the rewards are at reward.clamp, where nothing is learned; the "
            "reward runs ahead of the policy: lower reward.optimizer.learning_rate, or raise policy.steps_per_round"
        )


def _start(run: ControlRun, alternation: Alternation) -> Network | None:
    """What the policy begins as, where that is not chance."""
    return _clone(run, alternation.scale, None) if run.config.policy.start == "cloned" else None


def _clone(run: ControlRun, scale: np.ndarray, tracker: Tracker | None) -> Network:
    """The clone of the demonstrations; its losses go to `tracker`, where cloning is all that the run does."""
    demonstrations = run.data.demonstrations
    assert demonstrations is not None
    with run.progress.stage(CLONING, total=run.config.policy.cloning_epochs, unit="epoch") as bar:

        def tell(epoch: int, loss: float) -> None:
            if run.is_stopping():
                raise Stopped("asked to stop; cloning has no checkpoints: the same command begins again")
            bar.update(advance=1, note={"loss": loss})
            if tracker is not None:
                tracker.log(STAGE, None, epoch, {"policy/cloning_loss": loss})

        return clone(demonstrations, run.task, run.config.policy, scale, run.config.seed, tell)


def _results(run: ControlRun, policy: SavedPolicy, reward: Network | None) -> dict[str, Any]:
    """Saves the networks and measures them."""
    _save(run, policy, reward)
    with run.progress.stage("evaluating"):
        return evaluate_networks(run.config, run.task, policy, reward, run.data)


def _save(run: ControlRun, policy: SavedPolicy, reward: Network | None) -> None:
    save_network(run.folder / POLICY_FILE, policy.network, run.task)
    if reward is not None:
        save_network(run.folder / REWARD_FILE, reward, run.task)


def evaluate_networks(
    config: ControlConfig, task: Task, policy: SavedPolicy, reward: Network | None, data: ControlData
) -> dict[str, Any]:
    """What results.json holds: true returns of policy and demonstrations, and the rewards' correlation on both's steps."""
    look = config.evaluation
    episodes = roll_out(config.environment, task, policy.act, look.num_episodes, look.seed)
    returns = episodes.returns()
    assert returns is not None and episodes.rewards is not None
    results: dict[str, Any] = {
        "method": config.method,
        "environment": task.environment,
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "returns": returns.tolist(),
    }
    demonstrations = data.demonstrations
    if demonstrations is not None and demonstrations.rewards is not None:
        results["demonstrations_return_mean"] = demonstrations.mean_return()
    if reward is not None:
        learned, true = [reward(episodes.observations, episodes.actions)[:, 0]], [episodes.rewards]
        if demonstrations is not None and demonstrations.rewards is not None:
            learned.append(reward(demonstrations.observations, demonstrations.actions)[:, 0])
            true.append(demonstrations.rewards)
        found = correlation(np.concatenate(learned), np.concatenate(true))
        results["reward_correlation"] = found if found == found else None
    return results

"""Runs a list of stages: each once, each leaving its artifacts, and a run that was interrupted goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rayalign.actors.plan import check_fits, make_plan
from rayalign.config.base import stage_reference
from rayalign.config.data import DataSource
from rayalign.config.hazards import hazards
from rayalign.config.load import dump_config
from rayalign.config.run import RunConfig
from rayalign.config.stages import Stage
from rayalign.data.files import one_line
from rayalign.errors import GOES_ON, Diverged, Stopped, UserError, WorkerLost, is_disk_full
from rayalign.own_code import identify
from rayalign.ports import Fleet
from rayalign.preflight.check import check_run, needs_of
from rayalign.preflight.machine import environment
from rayalign.report.results import results_problem
from rayalign.report.summary import summarise
from rayalign.stages.checkpoints import checkpoint_store, checkpoint_store_of
from rayalign.stages.context import STOP_FILE, Components, RunContext
from rayalign.stages.mirrored import MirroredRun, opened_mirror
from rayalign.stopping import stop_on_sigterm
from rayalign.storage.aside import write_json
from rayalign.storage.differences import differences
from rayalign.storage.mirror import DONE
from rayalign.storage.run_folder import ENVIRONMENT_FILE, METRICS_FILE, has_content, held, make_folder, write_config
from rayalign.telemetry.progress import Progress
from rayalign.telemetry.tracker import Tracker

# The user's own parts that a kind of stage works with, where there are any.
OWN_PARTS: dict[str, tuple[str, ...]] = {
    "fit_reward": ("reward_loss",),
    "irl": ("reward", "rollout", "reward_loss"),
    "rl": ("reward", "rollout"),
    "implicit": ("rollout", "implicit_loss"),
    "sample": ("rollout",),
    "best_of_n": ("rollout",),
    "evaluate": ("rollout",),
}

# What torch, vLLM and Ray take to import is paid when a run starts, not by the person who mistyped a path: the
# functions below import what they need.


def built_in() -> Components:
    """vLLM rollouts and a learned reward."""
    from rayalign.engines.reward import RewardEngine
    from rayalign.engines.vllm_backend.sampler import VllmSampler

    return Components(rollout=VllmSampler, reward=RewardEngine)


def runners() -> dict[str, Callable[[RunContext, Any], None]]:
    """What runs a stage, by its kind."""
    from rayalign.stages.ava import run_ava
    from rayalign.stages.best_of_n import run_best_of_n
    from rayalign.stages.evaluate import run_evaluate
    from rayalign.stages.fit_reward import run_fit_reward
    from rayalign.stages.implicit import run_implicit
    from rayalign.stages.irl import run_loop
    from rayalign.stages.log_ratio import run_log_ratio
    from rayalign.stages.planted import run_planted
    from rayalign.stages.sample import run_sample
    from rayalign.stages.sft import run_sft

    return {
        "planted": run_planted,
        "sft": run_sft,
        "sample": run_sample,
        "fit_reward": run_fit_reward,
        "log_ratio": run_log_ratio,
        "ava": run_ava,
        "irl": run_loop,
        "rl": run_loop,
        "implicit": run_implicit,
        "best_of_n": run_best_of_n,
        "evaluate": run_evaluate,
    }


@dataclass(frozen=True)
class _Job:
    """What a run is: its config, what it is made of, where it writes and what it says. `own` are the user's own parts."""

    config: RunConfig
    components: Components
    own: Mapping[str, str]
    folder: Path
    progress: Progress


def run(config: RunConfig, components: Components | None = None) -> Path:
    """Runs all stages that are not done yet; returns the run's folder.

    Raises UserError for what the user can mend, RayalignError for what failed on the way.
    """
    folder = Path(config.run_dir).expanduser().absolute() / config.name
    own = _own_parts(components) if components else {}
    pending = _pending(config, folder, own)
    progress = Progress(config.telemetry.progress, sys.stderr)
    settings = {stage.name: _settings(config, stage, own) for stage in config.stages}
    with opened_mirror(config, folder, settings, progress) as mirrored:
        if mirrored is not None:
            pending = [stage for stage in pending if stage.name not in mirrored.finished]
        check_run(config, pending, learned_reward="reward" not in own)
        if pending:
            _check_fits_here(config)
        _run_in(_Job(config, components or built_in(), own, folder, progress), mirrored)
    return folder


def _run_in(job: _Job, mirrored: MirroredRun | None) -> None:
    """Holds the folder, and runs in it what is not done. Raises UserError for a full disk."""
    config, folder = job.config, job.folder
    try:
        make_folder(folder)
        with held(folder), stop_on_sigterm(folder / STOP_FILE, grace_s=config.checkpoints.grace_s):
            write_config(folder, dump_config(config))
            _run_pending(job, mirrored)
    except (OSError, SafetensorError) as error:
        if is_disk_full(error):
            raise UserError(f"{folder}: the disk is full; free some space and run again, finished stages stay") from error
        if isinstance(error, (IsADirectoryError, NotADirectoryError)) and str(folder) in str(error.filename):
            raise UserError(f"{error.filename}: {error.strerror}, where the run writes; move it away") from error
        raise


def _run_pending(job: _Job, mirrored: MirroredRun | None) -> None:
    config, folder, progress = job.config, job.folder, job.progress
    if mirrored is not None:
        mirrored.take(progress)
    pending = _pending(config, folder, job.own)
    _say_done(progress, config, pending)
    for stage in config.stages:
        if stage not in pending:  # where the run died before it had tidied up
            checkpoint_store_of(folder, config, stage.name).drop_states()
    for line in hazards(config, pending):
        progress.say(f"warning: {line}")
    if pending:
        write_json(folder / ENVIRONMENT_FILE, environment())
    resolved = config.model_dump(mode="json")
    copied = mirrored.followed(progress) if mirrored is not None else contextlib.nullcontext()
    finished = False
    try:
        with copied, Tracker(folder, config.telemetry, run_name=config.name, resolved_config=resolved) as tracker:
            _run_stages(job, pending, tracker)
        _summarise(config, folder)
        finished = True
    finally:
        if finished or has_content(folder / METRICS_FILE):
            _draw(folder, progress)


def _check_fits_here(config: RunConfig) -> None:
    """Raises PlacementError, before Ray is started on this machine, for a plan that it has no room for."""
    from rayalign.actors.cluster import cluster_address, is_connected
    from rayalign.preflight import machine

    if config.placement.backend == "inprocess" or is_connected() or cluster_address(config.placement):
        return
    plan = make_plan(config.placement, max_staleness=config.max_staleness)
    check_fits(plan, [{"CPU": float(machine.cpus()), "GPU": float(len(machine.gpus()))}])


def artifacts_of(config: RunConfig, folder: Path) -> dict[str, str]:
    """Where each model that the run saved lies: {"irl/policy": path, ...}."""
    found = {}
    for stage in config.stages:
        for name in ("policy", "reward"):
            path = folder / stage.name / name
            if path.is_dir():
                found[f"{stage.name}/{name}"] = str(path)
    return found


def _run_stages(job: _Job, pending: list[Stage], tracker: Tracker) -> None:
    if not pending:
        return
    config, folder, progress = job.config, job.folder, job.progress
    run_stage = runners()
    with progress.stage("placing the groups"):
        fleet = _start_fleet(config, folder)
    context = RunContext(config, folder, fleet, job.components, tracker, progress)
    try:
        with _exported(config, tracker):
            for stage in pending:
                context.settings, context.restarted = _settings(config, stage, job.own), False
                _run_stage(run_stage[stage.kind], context, stage)
                write_json(folder / stage.name / DONE, context.settings)
                checkpoint_store(context, stage.name).drop_states()
                if context.stopping:
                    raise Stopped(f"asked to stop after stage {stage.name}, which is done")
    finally:
        context.close_sampler()
        fleet.close()


def _exported(config: RunConfig, tracker: Tracker) -> contextlib.AbstractContextManager[None]:
    """While the block runs, records go to Ray's own metrics too, where the groups are Ray's."""
    if config.placement.backend == "inprocess":
        return contextlib.nullcontext()
    from rayalign.actors.metrics import RayMetricsSink

    return tracker.also(RayMetricsSink(config.name))


def _run_stage(runner: Callable[[RunContext, Any], None], context: RunContext, stage: Stage) -> None:
    """Runs a stage, again and again where workers are lost, up to placement.max_restarts.

    Raises Diverged with the place of the last good models, where numbers were not finite.
    """
    left = context.config.placement.max_restarts
    while True:
        try:
            _run_once(runner, context, stage)
            return
        except WorkerLost as loss:
            context.close_sampler()
            if context.stopping:
                raise Stopped(
                    f"stage {stage.name} was asked to stop, and {loss}; {GOES_ON}"
                ) from loss
            if not left:
                raise WorkerLost(
                    f"stage {stage.name}: {loss}. It was started again {context.config.placement.max_restarts} times "
                    "(placement.max_restarts); the same command goes on from the last checkpoint"
                ) from loss
            left -= 1
            context.restarted = True
            context.progress.say(
                f"warning: stage {stage.name}: {loss}; its groups start again, and it goes on from its last checkpoint "
                f"({left} more restarts allowed)"
            )


def _run_once(runner: Callable[[RunContext, Any], None], context: RunContext, stage: Stage) -> None:
    try:
        runner(context, stage)
    except Diverged as error:
        found = [context.stage_folder(stage.name) / name for name in ("policy", "reward")]
        kept = " and ".join(str(path) for path in found if path.is_dir())
        raise Diverged(f"stage {stage.name}: {error}" + (f". Saved: {kept}" if kept else "")) from error


def _start_fleet(config: RunConfig, folder: Path) -> Fleet:
    from rayalign.actors.fleet import LocalFleet, RayFleet

    if config.placement.backend == "inprocess":
        return LocalFleet(config.placement)
    return RayFleet(
        config.placement,
        max_staleness=config.max_staleness,
        actor_logs=config.telemetry.actor_logs,
        stacks=str(folder / "stacks"),
        run=config.name,
        metrics_port=config.telemetry.metrics_port,
    )


def _own_parts(components: Components) -> dict[str, str]:
    """The user's own reward, rollout and losses, by name and code: {"reward": "module.name 1f2e..."}, if any."""
    ours = built_in()
    roles = ("reward", "rollout", "reward_loss", "implicit_loss")
    given = {role: getattr(components, role) for role in roles}
    return {role: identify(part) for role, part in given.items() if part is not getattr(ours, role)}


def _settings(config: RunConfig, stage: Stage, own: Mapping[str, str]) -> dict[str, Any]:
    """Everything in the config that a stage's artifacts depend on; how fast they are made is left out."""
    found = stage.model_dump(mode="json")
    if stage.kind == "planted":
        return found
    uses = OWN_PARTS.get(stage.kind, ())
    # The longest answer of an irl stage decides how every stage cuts its prompts, where any are cut.
    room = config.response_room if config.data.overlong != "error" else None
    described = {"path", "tokenizer", "attention", "trust_remote_code"}
    shared = {key: needed.source for key, needed in needs_of(config, stage).items() if not key.startswith("stages.")}
    return {
        **found,
        "run.seed": config.seed,
        "run.model": config.model.model_dump(mode="json", exclude=described),
        "run.tokenizer": config.model.tokenizer or config.model.path,
        "run.data": config.data.model_dump(mode="json", include={"chat_template", "overlong", "heldout_frac"}),
        **{f"run.own {role}": own[role] for role in uses if role in own},
        "run.sampling.max_new_tokens of irl stages": room,
        **{
            f"run.{key}": source.model_dump(mode="json") if isinstance(source, DataSource) else source
            for key, source in shared.items()
        },
        **{f"input stage:{name}": _identity(config, name, own) for name in sorted(_inputs(config, stage))},
    }


def _inputs(config: RunConfig, stage: Stage) -> set[str]:
    """The stages whose artifacts a stage reads."""
    locations = [needed.location for needed in needs_of(config, stage).values()]
    locations.append(config.model.tokenizer or config.model.path)
    references = [stage_reference(location) for location in locations if location]
    return {reference[0] for reference in references if reference} - {stage.name}


def _identity(config: RunConfig, name: str, own: Mapping[str, str]) -> str:
    """What a stage's artifacts were made from, all the way up, in a few letters."""
    stage = next(stage for stage in config.stages if stage.name == name)
    settings = json.dumps(_settings(config, stage, own), sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:16]


def _pending(config: RunConfig, folder: Path, own: Mapping[str, str]) -> list[Stage]:
    """The stages that have not finished here."""
    return [stage for stage in config.stages if not _is_done(config, folder, stage, own)]


def _is_done(config: RunConfig, folder: Path, stage: Stage, own: Mapping[str, str]) -> bool:
    """Whether a stage has finished with these settings. Raises UserError if it finished with others."""
    file = folder / stage.name / DONE
    if not file.exists():
        return False
    before, now = _read_json(file), _settings(config, stage, own)
    if not isinstance(before, dict):
        raise UserError(f"{file}: not what a finished stage leaves; remove {file.parent} to run the stage again")
    if changed := differences(before, now):
        raise UserError(
            f"{file.parent}: stage {stage.name} finished here with another {'; '.join(changed)}; "
            f"set name= for a new run, or remove {file.parent} to run it again"
        )
    return True


def _say_done(progress: Progress, config: RunConfig, pending: list[Stage]) -> None:
    for stage in config.stages:
        if stage not in pending:
            progress.say(f"{stage.name}: finished before, kept")


def _summarise(config: RunConfig, folder: Path) -> None:
    """summary.json and plot.png from the last evaluation, if there was one."""
    from rayalign.report.plot import plot_run

    results = latest_results(config, folder)
    if results is not None:
        write_json(folder / "summary.json", summarise(results, artifacts_of(config, folder)))
    plot_run(folder / METRICS_FILE, results, folder / "plot.png")


def _draw(folder: Path, progress: Progress) -> None:
    """report.html, however the run ended: that it cannot be written is told, and is no fault of the run."""
    from rayalign.report.run_page import write_run_report

    try:
        write_run_report([folder])
    except (UserError, OSError) as error:
        progress.say(f"warning: the report was not written: {one_line(error)}")


def latest_results(config: RunConfig, folder: Path) -> dict[str, Any] | None:
    """The results of the last evaluate stage."""
    for stage in reversed(config.stages):
        file = folder / stage.name / "results.json"
        if stage.kind == "evaluate" and file.exists():
            results = _read_json(file)
            if problem := results_problem(results):
                raise UserError(f"{file}: damaged ({problem}); remove {file.parent} to evaluate again")
            return dict(results)
    return None


def _read_json(file: Path) -> Any:
    """Raises UserError for a file that was damaged since the stage wrote it."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({one_line(error)}); remove {file.parent} to run the stage again") from None

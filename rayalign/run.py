"""Runs a list of stages: each once, each leaving its artifacts, and a run that was interrupted goes on where it was."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rayalign.actors.fleet import LocalFleet, RayFleet
from rayalign.config.load import dump_config
from rayalign.config.run import RunConfig
from rayalign.config.stages import Stage
from rayalign.engines.reward import RewardEngine
from rayalign.engines.vllm_backend.sampler import VllmSampler
from rayalign.errors import UserError
from rayalign.ports import Fleet
from rayalign.report.plot import plot_run
from rayalign.report.summary import summarise
from rayalign.stages.context import Components, RunContext, write_json, written_aside
from rayalign.stages.evaluate import run_evaluate
from rayalign.stages.irl import run_irl
from rayalign.stages.planted import run_planted
from rayalign.stages.sample import run_sample
from rayalign.stages.sft import run_sft
from rayalign.telemetry.progress import Progress
from rayalign.telemetry.tracker import Tracker

RUNNERS: dict[str, Callable[[RunContext, Any], None]] = {
    "planted": run_planted,
    "sft": run_sft,
    "sample": run_sample,
    "irl": run_irl,
    "evaluate": run_evaluate,
}
MIN_FREE_BYTES = 200 * 2**20
DONE = "done.json"


def built_in() -> Components:
    """vLLM rollouts and a learned reward."""
    return Components(rollout=VllmSampler, reward=RewardEngine)


def run(config: RunConfig, components: Components | None = None) -> Path:
    """Runs all stages that are not done yet; returns the run's folder.

    Raises UserError for what the user can mend, RayalignError for what failed on the way.
    """
    folder = _prepare_folder(config)
    resolved = config.model_dump(mode="json")
    progress = Progress(config.telemetry.progress, sys.stderr)
    try:
        pending = [stage for stage in config.stages if not _is_done(folder, stage)]
        _say_done(progress, config, pending)
        with Tracker(folder, config.telemetry, run_name=config.name, resolved_config=resolved) as tracker:
            _run_stages(config, components or built_in(), folder, pending, tracker, progress)
        _report(config, folder)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(f"{folder}: the disk is full; free some space and run again, finished stages stay") from error
    return folder


def artifacts_of(config: RunConfig, folder: Path) -> dict[str, str]:
    """Where each model that the run saved lies: {"irl/policy": path, ...}."""
    found = {}
    for stage in config.stages:
        for name in ("policy", "reward"):
            path = folder / stage.name / name
            if path.is_dir():
                found[f"{stage.name}/{name}"] = str(path)
    return found


def _run_stages(
    config: RunConfig,
    components: Components,
    folder: Path,
    pending: list[Stage],
    tracker: Tracker,
    progress: Progress,
) -> None:
    if not pending:
        return
    staleness = max((getattr(stage, "max_staleness", 0) for stage in pending), default=0)
    with progress.stage("placing the groups"):
        placement = config.placement
        local = placement.backend == "inprocess"
        fleet: Fleet = (
            LocalFleet(placement)
            if local
            else RayFleet(placement, max_staleness=staleness, actor_logs=config.telemetry.actor_logs)
        )
    context = RunContext(config, folder, fleet, components, tracker, progress)
    try:
        for stage in pending:
            RUNNERS[stage.kind](context, stage)
            write_json(folder / stage.name / DONE, stage.model_dump(mode="json"))
    finally:
        context.close_sampler()
        fleet.close()


def _prepare_folder(config: RunConfig) -> Path:
    folder = Path(config.run_dir) / config.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with written_aside(folder / "config.yaml") as path:
            path.write_text(dump_config(config), encoding="utf-8")
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise UserError(f"run_dir: {folder} cannot be written ({error.strerror}); choose another run_dir") from None
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise UserError(f"run_dir: {folder} has {free // 2**20} MiB free, and a run wants {MIN_FREE_BYTES // 2**20} MiB")
    return folder.resolve()


def _is_done(folder: Path, stage: Stage) -> bool:
    """Whether a stage has finished with these settings. Raises UserError if it finished with others."""
    file = folder / stage.name / DONE
    if not file.exists():
        return False
    before, now = json.loads(file.read_text(encoding="utf-8")), stage.model_dump(mode="json")
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        raise UserError(
            f"{file.parent}: stage {stage.name} finished here with another {', '.join(changed)}; "
            f"set name= for a new run, or remove {file.parent} to run it again"
        )
    return True


def _say_done(progress: Progress, config: RunConfig, pending: list[Stage]) -> None:
    for stage in config.stages:
        if stage not in pending:
            progress.say(f"{stage.name}: finished before, kept")


def _report(config: RunConfig, folder: Path) -> None:
    """summary.json and plot.png from the last evaluation, if there was one."""
    results = latest_results(config, folder)
    if results is not None:
        write_json(folder / "summary.json", summarise(results, artifacts_of(config, folder)))
    plot_run(folder / "metrics.jsonl", results, folder / "plot.png")


def latest_results(config: RunConfig, folder: Path) -> dict[str, Any] | None:
    """The results of the last evaluate stage."""
    for stage in reversed(config.stages):
        file = folder / stage.name / "results.json"
        if stage.kind == "evaluate" and file.exists():
            return json.loads(file.read_text(encoding="utf-8"))
    return None

"""`rayalign watch`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rayalign.cli.parser import Parser, add_command
from rayalign.errors import ConfigError, UserError
from rayalign.telemetry.watching import POLL_S, RunSigns, RunView, StagePlan, follow, state_lines


def add_watch(commands: argparse._SubParsersAction[Parser]) -> None:
    """`rayalign watch`."""
    watch = add_command(
        commands,
        "watch",
        "follow a run from another terminal",
        "Shows what a run does: its stages, round, step, time left and key numbers. On a terminal it is one live display,\n"
        "elsewhere plain lines. Waits for a run that has not started, and ends with it: with 0 where the run has finished,\n"
        "with 1 where it ended before. Ctrl-C ends the watching, not the run.",
        about="",
    )
    watch.add_argument("folder", type=Path, metavar="RUN", help="a run's folder, RUN_DIR/NAME")
    watch.add_argument("--once", action="store_true", help="print how the run is, and end")
    watch.set_defaults(run=_watch)


def _watch(parsed: argparse.Namespace) -> None:
    try:
        done = _watched(parsed.folder, once=parsed.once)
    except PermissionError as error:
        raise UserError(f"{error.filename}: {error.strerror}; a run is watched by who may read its folder") from None
    except KeyboardInterrupt:
        print("rayalign: no longer watching; the run goes on", file=sys.stderr)
        sys.exit(130)
    if not done:
        sys.exit(1)


def _watched(folder: Path, *, once: bool) -> bool:
    """Whether all is well: the run has finished, or is only looked at, is there and has not ended before its end."""
    from rayalign.storage.mirror import DONE
    from rayalign.storage.run_folder import is_held
    from rayalign.telemetry.progress import Progress

    if not _is_there(folder):
        print(f"{folder}: no run has started there" + ("" if once else " yet; waiting for it"), flush=True)
        if once:
            return False
        while not _is_there(folder):
            time.sleep(POLL_S)
    done = folder if _is_control(folder) else None
    signs = RunSigns(
        held=lambda: is_held(folder), finished=lambda stage: ((done or folder / stage) / DONE).exists()
    )
    view = RunView(folder, _stages(folder), signs)
    if once:
        print("\n".join(state_lines(view)))
        return signs.held() or view.current() is None
    return follow(view, Progress(True, sys.stdout, now=view.clock))


def _is_there(folder: Path) -> bool:
    """Whether a run has begun in the folder. Raises UserError for one that is of something else."""
    from rayalign.storage.run_folder import CONFIG_FILE, LOCK_FILE

    if (folder / CONFIG_FILE).is_file():
        return True
    if folder.exists() and not (folder.is_dir() and ((folder / LOCK_FILE).exists() or not any(folder.iterdir()))):
        raise UserError(f"{folder}: not the folder of a run, which has a {CONFIG_FILE}; give RUN_DIR/NAME of its config")
    return False


def _is_control(folder: Path) -> bool:
    import yaml

    from rayalign.storage.run_folder import CONFIG_FILE

    try:
        found = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError):  # what is wrong with it is told by who reads it next
        return False
    return isinstance(found, dict) and "environment" in found and "stages" not in found


def _stages(folder: Path) -> list[StagePlan]:
    """As the run's own config has them. Raises UserError for a config that this version does not read."""
    from rayalign.config.control import ControlConfig
    from rayalign.config.load import load_config, load_config_as
    from rayalign.config.loops import ImplicitStage, LoopStage
    from rayalign.storage.run_folder import CONFIG_FILE

    file = folder / CONFIG_FILE
    try:
        if _is_control(folder):
            return [StagePlan("control", total=load_config_as(ControlConfig, file).rounds, unit="round")]
        plans = []
        for stage in load_config(file).stages:
            total = stage.rounds * stage.improve.steps if isinstance(stage, LoopStage) else None
            rounds = stage.rounds if isinstance(stage, (LoopStage, ImplicitStage)) else None
            plans.append(StagePlan(stage.name, total, rounds))
        return plans
    except ConfigError as error:
        raise UserError(f"{error}; was the run made by another version of rayalign? That one can watch it") from None

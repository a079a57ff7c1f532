"""What a run will need, and whether it is there: looked up before anything starts, by `train` and by `doctor` alike.

Nothing here loads a model, starts Ray or asks the network; of data files the first rows are read.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rayalign.actors.plan import make_plan
from rayalign.config.base import stage_reference
from rayalign.config.data import DataSource
from rayalign.config.fits import LOG_RATIO
from rayalign.config.loops import LoopStage, RlStage
from rayalign.config.run import RunConfig
from rayalign.config.service import clear_text_problem, is_service
from rayalign.config.stage_base import Input
from rayalign.config.stages import PlantedStage, SftStage, Stage
from rayalign.data.sources import could_be_hub_name
from rayalign.errors import UserError
from rayalign.preflight.folders import (
    check_model,
    check_scratch,
    check_template,
    check_tokenizer,
    check_vocabulary,
    hub_problem,
    num_tokens_of,
)
from rayalign.preflight.rows import MAX_ROWS_READ, first_rows, samples_problem, too_few_prompts, too_many_of_world

MIN_FREE_BYTES = 200 * 2**20

State = Literal["ok", "made", "download", "missing"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a run needs: there, made by the run itself, to be downloaded, or missing (`text` says what to do)."""

    key: str
    state: State
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


def check_run(config: RunConfig, stages: Sequence[Stage], *, learned_reward: bool = True) -> None:
    """Raises UserError with the first thing that is missing for these stages, and how many more there are."""
    missing = [f for f in examine_run(config, stages, learned_reward=learned_reward) if f.state == "missing"]
    if missing:
        more = f" (and {len(missing) - 1} more: `rayalign doctor CONFIG` lists all)" if len(missing) > 1 else ""
        raise UserError(f"{missing[0]}{more}")


def examine_run(config: RunConfig, stages: Sequence[Stage], *, learned_reward: bool = True) -> list[Finding]:
    """Everything that these stages of a run need, each once.

    Args:
        learned_reward: False where a reward of the user's own stands in, which reads no reward.init.
    """
    findings: dict[str, Finding] = {}
    for finding in _examine(config, stages, learned_reward):
        findings.setdefault(finding.key, finding)
    return list(findings.values())


def _examine(config: RunConfig, stages: Sequence[Stage], learned_reward: bool) -> Iterator[Finding]:
    yield _run_dir(config)
    try:
        make_plan(config.placement, max_staleness=config.max_staleness)
    except UserError as error:
        yield Finding("", "missing", str(error))
    for stage in stages:
        earlier = [s.name for s in config.stages[: config.stages.index(stage)]]
        for key, needed in needs_of(config, stage).items():
            if learned_reward or not key.endswith(".reward.init"):
                yield _look(config, stage, key, needed, earlier)
        if isinstance(stage, RlStage) and stage.reward is None and learned_reward:
            key = f"stages.{stage.name}.reward"
            yield Finding(key, "missing", f"stage {stage.name} needs a reward: set {key}, or pass train(reward=...)")
        too_few = too_few_prompts(config, stage) if isinstance(stage, LoopStage) else None
        if too_few:
            yield Finding(f"stages.{stage.name}.improve.prompts_per_step", "missing", too_few)
        if isinstance(stage, PlantedStage):
            for setting, problem in too_many_of_world(stage):
                yield Finding(f"stages.{stage.name}.{setting}", "missing", problem)
        else:
            yield from _tokenizer(config, stage, earlier)
    yield from _packages(config)


def needs_of(config: RunConfig, stage: Stage) -> dict[str, Input]:
    """What a stage reads, by the key of the config that says where: its own settings, and those that stages share."""
    found = {f"stages.{stage.name}.{key}": needed for key, needed in stage.inputs().items()}
    found |= stage.shared_inputs(config.data)
    if isinstance(stage, SftStage) and stage.policy is None and stage.scratch is None:
        found["model.path"] = Input("model", config.model.path)
    return found


def _look(config: RunConfig, stage: Stage, key: str, needed: Input, earlier: list[str]) -> Finding:
    location = needed.location
    if location is None:
        return Finding(key, "missing", f"stage {stage.name} needs {needed.kind}: set {key}")
    made = _made(key, location, stage, earlier)
    if made:
        return made
    if needed.kind == "reward" and is_service(location):
        return _service(key, location)
    if isinstance(needed.source, DataSource):
        return _data(key, needed.kind, needed.source)
    if needed.kind == "samples":
        problem = samples_problem(location, num_tokens_of(_tokenizer_of(config)))
        return Finding(key, "missing" if problem else "ok", problem or location)
    if needed.kind == "reward" and os.path.isfile(Path(location).expanduser() / LOG_RATIO):
        return Finding(key, "ok", location)
    problem = check_model(location, config.model)
    problem = problem or check_vocabulary(location, _tokenizer_of(config), config.data.chat_template)
    return _judged(key, location, problem)


def _made(key: str, location: str, stage: Stage, earlier: list[str]) -> Finding | None:
    """The finding for an artifact of the run itself; None for other locations."""
    reference = stage_reference(location)
    if reference is None:
        return None
    if reference[0] in earlier:
        return Finding(key, "made", f"made by stage {reference[0]}")
    return Finding(
        key, "missing", f"{location} is made after stage {stage.name} needs it; move stage {reference[0]} before it"
    )


def _service(key: str, url: str) -> Finding:
    """A service is asked when its stage begins; here only whether it may be."""
    try:
        problem = clear_text_problem(url)
    except UserError as error:
        problem = str(error)
    return Finding(key, "missing" if problem else "ok", problem or f"{url}, a service that scores; not asked yet")


def _data(key: str, kind: str, source: DataSource) -> Finding:
    path = Path(source.path).expanduser()
    if not os.path.exists(path) and could_be_hub_name(source.path):
        return _judged(key, source.path, hub_problem(source.path, "datasets"))
    try:
        rows = first_rows(kind, source)
        if rows is not None:
            num = sum(1 for _ in rows)
            return Finding(key, "ok", f"{source.path} ({'at least ' * (num == MAX_ROWS_READ)}{num} {kind})")
    except UserError as error:
        return Finding(key, "missing", str(error))
    return Finding(key, "ok", source.path)


def _tokenizer(config: RunConfig, stage: Stage, earlier: list[str]) -> Iterator[Finding]:
    key = "model.tokenizer" if config.model.tokenizer else "model.path"
    location = _tokenizer_of(config)
    template = config.data.chat_template
    shown = f"{key} (tokenizer)"  # model.path may be a model and a tokenizer in one
    made = _made(shown, location, stage, earlier)
    yield made or _judged(shown, location, check_tokenizer(location, needs_template=template is None))
    if template is not None:
        yield _judged("data.chat_template", template, check_template(template))
    too_few = check_scratch(stage.scratch, location, template) if isinstance(stage, SftStage) and stage.scratch else None
    if too_few:
        yield Finding(f"stages.{stage.name}.scratch.vocab_size", "missing", too_few)


def _tokenizer_of(config: RunConfig) -> str:
    return config.model.tokenizer or config.model.path


def _judged(key: str, location: str, problem: str | None) -> Finding:
    if problem:
        return Finding(key, "missing", problem)
    if os.path.exists(Path(location).expanduser()) or location == "plain":
        return Finding(key, "ok", location)
    return Finding(key, "download", f"{location} comes from the Hugging Face hub, or its cache")


def _packages(config: RunConfig) -> Iterator[Finding]:
    """What the config asks for beyond what every installation has."""
    telemetry = config.telemetry
    asked = {
        "telemetry.tensorboard": ("tensorboard", telemetry.tensorboard, "tensorboard", "set it to false"),
        "telemetry.wandb": ("wandb", telemetry.wandb, "'rayalign[wandb]'", "remove it"),
        "telemetry.mlflow": ("mlflow", telemetry.mlflow, "'rayalign[mlflow]'", "remove it"),
        "model.attention": ("flash_attn", config.model.attention == "flash_attention_2", "flash-attn", "set it to sdpa"),
    }
    for key, (module, wanted, requirement, otherwise) in asked.items():
        if wanted and importlib.util.find_spec(module) is None:
            yield Finding(key, "missing", f"{module} is not installed: pip install {requirement}, or {otherwise}")
        elif wanted:
            yield Finding(key, "ok", f"{module} is installed")


def _run_dir(config: RunConfig) -> Finding:
    folder = Path(config.run_dir).expanduser() / config.name
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not os.path.isdir(there):
        return Finding("run_dir", "missing", f"{folder} cannot be made ({there} is a file); choose another run_dir")
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding("run_dir", "missing", f"{folder} cannot be written ({there} is closed to you); choose another")
    free = shutil.disk_usage(there).free
    if free < MIN_FREE_BYTES:
        wants = f"a run wants {MIN_FREE_BYTES // 2**20} MiB; free some, or choose another run_dir"
        return Finding("run_dir", "missing", f"{there} has {free // 2**20} MiB free, and {wants}")
    return Finding("run_dir", "ok", f"{folder} ({free / 2**30:.1f} GiB free)")

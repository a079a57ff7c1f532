"""The first rows of the data that a run names, and whether they hold enough prompts to improve a policy on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rayalign.config.base import stage_reference
from rayalign.config.data import DataSource
from rayalign.config.loops import LoopStage
from rayalign.config.run import RunConfig
from rayalign.config.stages import PlantedStage
from rayalign.data import shapes
from rayalign.data.files import read_file
from rayalign.data.samples import is_sample_file, stored_samples
from rayalign.data.sources import read_rows
from rayalign.data.splits import split_heldout
from rayalign.data.tally import Tally
from rayalign.data.tokenize import prompt_ids
from rayalign.errors import UserError
from rayalign.planted.grammar import NUM_PROMPTS
from rayalign.planted.world import HELDOUT_ONE_IN

MAX_ROWS_READ = 10_000  # of a file; the rest is read when its stage comes
MAX_JSON_BYTES = 64 * 2**20  # a .json is parsed whole
NOT_COUNTED = np.empty(0, dtype=np.int64)

HELDOUT_PROMPTS = NUM_PROMPTS // HELDOUT_ONE_IN
WORLD_SETTINGS = {
    "num_pretrain": "train",
    "num_demonstrations": "train",
    "num_preferences": "train",
    "num_prompts": "train",
    "num_eval_prompts": "heldout",
}

SHAPES: dict[str, Callable[..., Iterable[Any]]] = {
    "demonstrations": shapes.demonstrations,
    "prompts": shapes.prompts,
    "preferences": shapes.preferences,
}


def first_rows(kind: str, source: DataSource) -> Iterator[Any] | None:
    """At most MAX_ROWS_READ rows of a kind; None where no row can be read quickly. Raises UserError for what is wrong."""
    path = Path(source.path).expanduser()
    if kind == "demonstrations" and _is_quick(source) and is_sample_file(path):
        samples = islice(stored_samples(read_file(path)), min(source.limit or MAX_ROWS_READ, MAX_ROWS_READ))
        return (row for _, row in samples if row["ended"])
    rows = SHAPES[kind](read_rows(source, resolve=str), tally=Tally())  # told by the stage that reads all of them
    return (row for _, row in islice(rows, MAX_ROWS_READ)) if _is_quick(source) else None


def samples_problem(location: str, num_tokens: int | None) -> str | None:
    """What is wrong with the first rows of stored samples, of a tokenizer with so many tokens; None where nothing is."""
    path = Path(location).expanduser()
    if not os.path.isfile(path):
        return f"{location}: no such file; check the path, or sample them in a stage"
    try:
        num = sum(1 for _ in islice(stored_samples(read_file(path), num_tokens=num_tokens), MAX_ROWS_READ))
    except UserError as error:
        return str(error)
    return None if num else f"{location}: holds no samples; sample some, or name another file"


def too_few_prompts(config: RunConfig, stage: LoopStage) -> str | None:
    """What to do about prompts that do not fill one step; None where they do, or cannot be counted yet."""
    kind = "prompts" if config.data.prompts else "demonstrations"
    source = config.data.prompts or config.data.demonstrations
    if source is None:
        return None
    remedy = "give more in data.prompts"
    if stage_reference(source.path):
        ids, remedy = _ids_of_world(config, source, remedy)
    else:
        ids = _ids_of_file(kind, source)
    # What is dropped or cut would change the split: all that can be said then is that no prompt is added.
    if kind == "demonstrations" and config.data.heldout_demonstrations is None and config.data.overlong == "error":
        ids = ids[split_heldout(ids, frac=config.data.heldout_frac, seed=config.seed)[0]]
    num, needed = len(np.unique(ids)), stage.improve.prompts_per_step
    if num >= needed or num == 0:
        return None
    what = "prompts" if kind == "prompts" else "different prompts to train on"
    return f"a step draws {needed} prompts, and data.{kind} ({source.path}) has {num} {what}; lower it to {num}, or {remedy}"


def _ids_of_world(config: RunConfig, source: DataSource, remedy: str) -> tuple[np.ndarray, str]:
    """[B] numbers of the prompts, all different, that a planted stage will write, and how it would write more."""
    reference = stage_reference(source.path)
    world = next(stage for stage in config.stages if reference and stage.name == reference[0])
    if not isinstance(world, PlantedStage) or not reference:
        return NOT_COUNTED, remedy
    files = {
        "prompts.jsonl": ("num_prompts", world.num_prompts),
        "eval_prompts.jsonl": ("num_eval_prompts", world.num_eval_prompts),
        "demonstrations.jsonl": ("num_demonstrations", world.num_demonstrations),
    }
    setting, num = files.get(reference[1], ("", 0))
    if min(num, source.limit or num) >= MAX_ROWS_READ:
        return NOT_COUNTED, remedy
    if source.limit and source.limit < num:
        return np.arange(source.limit), remedy
    return np.arange(num), f"raise stages.{world.name}.{setting}"


def too_many_of_world(stage: PlantedStage) -> Iterator[tuple[str, str]]:
    """The settings of a planted stage that ask for more prompts than its world has, and what to do about each."""
    for setting, split in WORLD_SETTINGS.items():
        most = HELDOUT_PROMPTS if split == "heldout" else NUM_PROMPTS - HELDOUT_PROMPTS
        asked = stage.model_dump(include={setting})[setting]
        if asked > most:
            yield setting, f"the world has {most} different prompts for these, not {asked}; lower it to {most}"


def _ids_of_file(kind: str, source: DataSource) -> np.ndarray:
    """[B] the prompt of each row as a number; empty unless all rows can be read quickly."""
    try:
        rows = list(first_rows(kind, source) or ()) if _is_quick(source) else []
    except UserError:
        return NOT_COUNTED  # told where the data itself is looked at
    if len(rows) == MAX_ROWS_READ:
        return NOT_COUNTED
    return np.arange(len(rows)) if kind == "prompts" else prompt_ids(_prompt(row) for row in rows)


def _prompt(row: Any) -> Any:
    """What tells the prompt of a demonstration, or of a stored sample, from others."""
    return tuple(row["prompt_tokens"]) if isinstance(row, dict) else row.prompt


def _is_quick(source: DataSource) -> bool:
    """Whether the first rows are here and can be read without reading all, and without the `datasets` library."""
    path = Path(source.path).expanduser()
    if os.path.isdir(path):
        return not any(os.path.exists(path / name) for name in ("dataset_dict.json", "state.json"))
    return os.path.exists(path) and (not path.name.endswith((".json", ".json.gz")) or path.stat().st_size <= MAX_JSON_BYTES)

"""Data of every kind that is well, and the way that a run takes with it: what its damaged forms are put through."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from rayalign.actors.fleet import LocalFleet
from rayalign.config.load import parse_config
from rayalign.data.template import load_tokenizer
from rayalign.planted.tokenizer import save_tokenizer
from rayalign.planted.world import PlantedWorld
from rayalign.preflight.check import check_run
from rayalign.stages.context import Components, RunContext
from rayalign.stages.inputs import load_preferences, load_prompts, load_samples, sequences_of
from rayalign.telemetry.progress import Progress
from rayalign.telemetry.tracker import Tracker
from tests.hostile.judge import Case
from tests.hostile.texts import folder, new_file

Rows = list[Any]


@cache
def tokenizer() -> Path:
    """The planted world's."""
    save_tokenizer(folder() / "tokenizer")
    load_tokenizer(folder() / "tokenizer")  # what its import takes is not a case's time
    return folder() / "tokenizer"


@cache
def model_folder() -> Path:
    """What the checks before a run take for a model; nothing here loads one."""
    here = folder() / "model"
    here.mkdir()
    (here / "config.json").write_text(json.dumps({"vocab_size": 10_000, "max_position_embeddings": 4096}))
    (here / "model.safetensors").touch()
    return here


@cache
def world() -> PlantedWorld:
    """Where the rows that are well come from."""
    return PlantedWorld(0, "low")


@cache
def good(kind: str) -> tuple[dict[str, Any], ...]:
    """Some rows of a kind."""
    tokenizer()
    pairs = world().preferences(6, 10.0)
    demonstrations = world().demonstrations(world().cast.expert, 6)
    rows: dict[str, Rows] = {
        "demonstrations": demonstrations,
        "prompts": [{"prompt": row["prompt"]} for row in demonstrations],
        "preferences": pairs,
        "samples": [
            {"prompt_tokens": [3 + i, 4, 5], "response_tokens": [6, 7], "ended": True,
            "logprob": -1.5} for i in range(6)
        ],
    }
    return tuple(rows[kind])


KINDS = ("demonstrations", "prompts", "preferences", "samples")
LOADERS: dict[str, Callable[[RunContext, Any], object]] = {
    "demonstrations": sequences_of,
    "preferences": load_preferences,
    "prompts": lambda context, source: load_prompts(context, source, room=8),
    "samples": lambda context, source: load_samples(context.locate(source.path)),
}


def use(kind: str, source: dict[str, Any]) -> None:
    """What a run does with data: the checks before it starts, then rows to tokens."""
    model = str(model_folder())
    pairs = {"better": source["path"], "worse": source["path"]} if kind == "samples" else None
    stages = {
        "demonstrations": {"kind": "sft"},
        "prompts": {"kind": "sample", "policy": model, "sampling": {"max_new_tokens": 8}},
        "preferences": {"kind": "fit_reward", "init": model},
        "samples": {"kind": "fit_reward", "init": model, "pairs": pairs},
    }
    values = {
        "name": "data",
        "run_dir": str(folder() / "runs"),
        "model": {"path": model, "tokenizer": str(tokenizer()), "max_length": 96},
        "data": {"overlong": "truncate", **({} if kind == "samples" else {kind: source})},
        "placement": {"backend": "inprocess"},
        "telemetry": {"tensorboard": False},
        "stages": [stages[kind]],
    }
    config = parse_config(values)
    check_run(config, config.stages)
    telemetry = Tracker(folder() / "tracked", config.telemetry, run_name="data", resolved_config={})
    parts = Components(rollout=_never, reward=_never)
    progress = Progress(False, io.StringIO())
    data = config.data.demonstrations or config.data.prompts or config.data.preferences or _Path(source["path"])
    with contextlib.closing(LocalFleet(config.placement)) as fleet:
        context = RunContext(config, folder() / "runs" / "data", fleet, parts, telemetry, progress)
        LOADERS[kind](context, data)


def _never(_setup: Any) -> Any:
    raise AssertionError("reading data starts no worker")


class _Path:
    def __init__(self, path: str) -> None:
        self.path = path


def write_rows(rows: Rows, suffix: str) -> Path:
    """A file of these rows: JSONL, a list, or a list under `data`."""
    if suffix.startswith(".jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        text = json.dumps({"data": rows} if len(rows) % 2 else rows, indent=1)
    content = text.encode()
    return new_file(gzip.compress(content) if suffix.endswith(".gz") else content, "rows{}" + suffix)


def read(kind: str, damage: str, what: str, file: Path, **known: Any) -> Case:
    """A case of one file."""
    pattern = known.pop("pattern", rf"([a-z_.0-9]+: )?{re.escape(str(file))}(:|: | )")
    source = {"path": str(file)}
    untouched = folder() / "runs"
    return Case(damage, f"{kind}: {what}", lambda: use(kind, source), pattern=pattern, untouched=untouched, **known)


@cache
def content_of(kind: str, suffix: str) -> bytes:
    rows = list(good(kind))
    if suffix != ".parquet":
        return write_rows(rows, suffix).read_bytes()
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()

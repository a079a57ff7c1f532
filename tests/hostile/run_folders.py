"""Strategies for run folders that were damaged between two runs."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from functools import cache
from io import StringIO
from pathlib import Path

from hypothesis import strategies as st
from rich.console import Console

from rayalign.config.load import parse_config
from rayalign.config.run import RunConfig
from rayalign.report.table import print_report
from rayalign.run import _settings, artifacts_of, built_in, latest_results, run
from rayalign.storage.aside import write_json
from tests.hostile.judge import Case
from tests.hostile.texts import DAMAGES, folder, numbers

RESULTS = {
    "models": {"base": {"1": {"golden": {"mean": 0.5, "low": 0.4, "high": 0.6, "num": 9}, "ended_frac": 1.0}}},
    "expert": {"golden": 0.9},
    "reward_accuracy": {"heldout_pairs": {"mean": 0.5, "low": 0.4, "high": 0.6, "num": 9}},
    "examples": [{"prompt": "a", "demonstration": "b", "answers": {"base": "c"}}],
}
RECORD = {"stage": "evaluate", "round": 0, "step": 1, "global_step": 1, "time_s": 1.0, "policy/entropy": 2.0}


def config_in(run_dir: Path) -> RunConfig:
    """A world, and an evaluation on it."""
    prompts = {"path": "stage:world/eval_prompts.jsonl"}
    evaluate = {"kind": "evaluate", "models": {"base": "some/model"}, "prompts": prompts}
    return parse_config(
        {
            "name": "again",
            "run_dir": str(run_dir),
            "model": {"path": "stage:world/tokenizer"},
            "placement": {"backend": "inprocess"},
            "telemetry": {"tensorboard": False, "progress": False},
            "stages": [{"kind": "planted", "num_pretrain": 5, "num_prompts": 5, "num_eval_prompts": 5}, evaluate],
        }
    )


@cache
def finished() -> Path:
    """The folder of a run whose stages are done: the world as its stage wrote it, the evaluation as one would have."""
    built_in()  # what its import takes is not a case's time
    run_dir = folder() / "finished"
    config = config_in(run_dir)
    here = run_dir / "again"
    for stage in config.stages:
        write_json(here / stage.name / "done.json", _settings(config, stage, {}))
    write_json(here / "evaluate" / "results.json", RESULTS)
    (here / "metrics.jsonl").write_text("".join(json.dumps({**RECORD, "step": i,
    "global_step": i}) + "\n" for i in range(5)))
    (here / "config.yaml").write_text("name: again\n")
    return here


def use(config: RunConfig) -> None:
    """The run begins again, and its report is printed, as the command line does."""
    with contextlib.redirect_stderr(StringIO()):
        run(config)
    results = latest_results(config, Path(config.run_dir) / config.name)
    if results is not None:
        print_report(Console(file=StringIO()), results, artifacts_of(config, Path(config.run_dir) / config.name))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
PARTS = (
    "world/done.json", "evaluate/done.json", "evaluate/results.json", "metrics.jsonl", "config.yaml", ".lock",
    "summary.json", "plot.png",
)  # fmt: skip


@st.composite
def other_values(draw: st.DrawFn, content: bytes) -> bytes:
    """JSON of other types: the whole of it, or one value in it."""
    whole = json.loads(content.splitlines()[0] if content.startswith(b'{"stage"') else content)
    other = draw(JSON | st.sampled_from([10**400, "x" * 9000, float("inf")]))
    if draw(st.booleans()) or not whole:
        return json.dumps(other).encode() + b"\n"
    node = whole
    while True:
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], (dict, list)) or not node[key] or draw(st.booleans()):
            break
        node = node[key]
    node[key] = other
    return json.dumps(whole).encode() + b"\n"


@st.composite
def damaged(draw: st.DrawFn) -> Case:
    """One file of a finished run cut off, overwritten, of other types, or a folder in its place."""
    run_dir = folder() / f"runs{next(numbers)}"
    here = run_dir / "again"
    shutil.copytree(finished(), here)
    name = draw(st.sampled_from(PARTS))
    file = here / name
    content = file.read_bytes() if file.exists() else b""
    action = draw(st.sampled_from(["a folder", "values", "values", "bytes", "bytes"]))
    if action == "a folder":
        file.unlink(missing_ok=True)
        (file / "sub").mkdir(parents=True)
        what = action
    elif action == "values" and file.suffix in (".json", ".jsonl") and content:
        file.write_bytes(draw(other_values(content)))
        what = file.read_text()[:300]
    else:
        lines = content.split(b"\n")
        place, line = draw(st.integers(0, len(content))), draw(st.integers(0, len(lines) - 1))
        what = draw(st.sampled_from(sorted(DAMAGES)))
        file.write_bytes(DAMAGES[what](content, place, lines, line, draw(st.binary(min_size=1, max_size=9))))
    config = config_in(run_dir)
    pattern = rf".*{re.escape(str(here))}"
    untouched = None if name in ("metrics.jsonl", "plot.png", ".lock") else here / "world"
    return Case("a run folder", f"{name}: {what}", lambda: use(config), pattern=pattern, untouched=untouched)

"""A run that is stopped again and again ends with the numbers of one that was not: every metric of every step."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rayalign.config.load import parse_config
from rayalign.errors import Stopped, UserError
from rayalign.run import run
from tests.conftest import HUNG_S

pytestmark = pytest.mark.own_process
MEASURED = ("time/", "idle_frac/", "tokens_per_s/", "time_s", "update_s")  # of the clock, not of the run
STOP_AFTER = (3, 5, 5, 9, 9, 8)  # records between one stop and the next: one in each stage, or nearly so


def config_of(values: dict[str, Any], base: str, name: str, **keys: Any) -> Any:
    """SFT, a fitted reward, AVA, paper 1 (PPO's critic, replay, moving reference), IRFT and AIHF, some steps each."""
    sampling = {"max_new_tokens": 26}
    world = {s["name"]: s for s in values["stages"]}["sft"]
    start = world["policy"]
    reward = {"init": base, "pooling": "mean", "steps": 3, "batch_size": 8, "num_per_prompt": 1, "num_prompts": 16}
    improve = {"steps": 3, "prompts_per_step": 4, "samples_per_prompt": 2, "kl_coef": 0.1}
    loop = {"sampling": sampling, "probe_size": 4, "canary_every": 2, "rounds": 2}
    implicit = {"kind": "implicit", "policy": base, "batch_size": 16, "max_steps": 3, "rounds": 2, "probe_size": 4}
    implicit |= {"sampling": sampling, "optimizer": {"learning_rate": 1e-4}}
    rft = {
        "kind": "irl",
        "name": "rft",
        "policy": base,
        "reward": {**reward, "start": "fresh", "replay": "cumulative", "normalise": "samples"},
        "improve": {**improve, "advantage": "gae", "critic": {}, "reference": "round", "minibatches": 2, "epochs": 2},
        **loop,
    }
    aihf = {
        "kind": "irl",
        "name": "aihf",
        "policy": base,
        "reward": {**reward, "preference_weight": 1.0},
        "improve": improve,
        **loop,
    }
    stages = [
        {"kind": "sft", "name": "sft", "policy": start, "max_steps": 5, "batch_size": 16},
        {"kind": "fit_reward", "name": "fit", "init": base, "max_steps": 4, "batch_size": 8},
        {"kind": "ava", "name": "ava", "variant": "preferences", "init": base, "max_steps": 4, "batch_size": 8},
        rft,
        {**implicit, "name": "irft", "keep_previous": True},
        aihf,
    ]
    data = {**values["data"], "preferences": {"path": f"{Path(start).parents[1]}/world/preferences.jsonl"}}
    checkpoints = {"every_s": None, "every_steps": 1}
    placement = {"backend": "inprocess"}
    config = {**values, "name": name, "data": data, "placement": placement, "checkpoints": checkpoints, "stages": stages}
    return parse_config({**config, **keys})


def numbers(folder: Path) -> list[dict[str, Any]]:
    """All that was logged, without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith(MEASURED) and not k.startswith(MEASURED)} for row in rows]


def stop_after(folder: Path, num: int) -> None:
    """Sends this process SIGTERM once the run has logged `num` more records; as a scheduler would, from outside."""
    file, end = folder / "metrics.jsonl", time.monotonic() + HUNG_S

    def lines() -> int:
        return file.read_text().count("\n") if file.exists() else 0

    target = lines() + num

    def watch() -> None:
        while time.monotonic() < end and lines() < target:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@pytest.fixture
def base(loop_values: dict[str, Any]) -> str:
    """The small base model's folder."""
    return next(s for s in loop_values["stages"] if s["name"] == "rft")["reward"]["init"]


def test_an_interrupted_run_has_the_numbers_of_an_uninterrupted_one(loop_values, base, tmp_path, capfd):
    whole = run(config_of(loop_values, base, "whole"))
    config = config_of(loop_values, base, "stopped")
    for num in (*STOP_AFTER, None):
        previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a stop that comes after the end is nobody's
        try:
            if num is not None:
                stop_after(tmp_path / "stopped", num)
            with contextlib.suppress(Stopped):
                run(config)
                break
        finally:
            signal.signal(signal.SIGTERM, previous)
    resumed = {line.split(":")[0] for line in capfd.readouterr().err.splitlines() if "goes on after step" in line}
    assert len(resumed) >= 4, f"only {resumed} were stopped in the middle"
    before, after = numbers(whole), numbers(tmp_path / "stopped")
    assert [(r["stage"], r["step"]) for r in after] == [(r["stage"], r["step"]) for r in before]
    for wanted, found in zip(before, after, strict=True):
        assert found == wanted
    for report in ("ava/report.json", "fit/report.json"):
        assert (whole / report).read_text() == (tmp_path / "stopped" / report).read_text()


def sft_config(values: dict[str, Any], folder: Path, name: str, **keys: Any) -> Any:
    """Six steps of SFT on 60 rows of their own, on the base model."""
    rows = folder / "rows.jsonl"
    if not rows.exists():
        demonstrations = Path(values["data"]["demonstrations"]["path"])
        rows.write_text("".join(demonstrations.read_text().splitlines(keepends=True)[:60]))
    sft = {**next(s for s in values["stages"] if s["name"] == "sft"), "data": {"path": str(rows)}}
    stages = [{**sft, "max_steps": 6, "batch_size": 8, **keys.pop("sft", {})}]
    checkpoints = {"every_s": None, "every_steps": 2}
    config = {**values, "name": name, "data": {}, "placement": {"backend": "inprocess"}, "checkpoints": checkpoints}
    return parse_config({**config, "stages": stages, **keys})


def stopped(config: Any, folder: Path) -> None:
    """Runs until some records are there."""
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        stop_after(folder, 3)
        with pytest.raises(Stopped, match="saved after step|were too few"):
            run(config)
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_what_an_interrupted_stage_is_refused_and_what_it_may(loop_values, tmp_path, capfd):
    """Other settings, other data, a damaged checkpoint, and a beginning anew; each in words."""
    folder = tmp_path / "run"
    stopped(sft_config(loop_values, tmp_path, "run"), folder)
    saved = sorted(path.name for path in (folder / "checkpoints" / "sft").iterdir() if path.name.isdigit())
    assert saved and not (folder / ".stop").exists()

    with pytest.raises(UserError) as refused:
        run(sft_config(loop_values, tmp_path, "run", sft={"optimizer": {"learning_rate": 3e-3}}))
    assert "stage sft was interrupted with another optimizer.learning_rate (0.001, now 0.003)" in str(refused.value)
    assert "resume=changed" in str(refused.value)

    rows = tmp_path / "rows.jsonl"
    before = rows.read_text()
    rows.write_text("".join(before.splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="was interrupted with another content of rows"):
        run(sft_config(loop_values, tmp_path, "run"))
    rows.write_text(before)

    weights = next((folder / "checkpoints" / "sft" / saved[-1] / "state").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    capfd.readouterr()
    run(sft_config(loop_values, tmp_path, "run"))
    said = capfd.readouterr().err
    assert f"{saved[-1]} is damaged" in said and "bytes of" in said
    assert [row["step"] for row in numbers(folder)] == list(range(6))

    stopped(sft_config(loop_values, tmp_path, "second"), tmp_path / "second")
    run(sft_config(loop_values, tmp_path, "second", resume="anew"))
    assert "goes on" not in capfd.readouterr().err
    assert numbers(tmp_path / "second") == numbers(folder)
    assert not list((folder / "checkpoints" / "sft").rglob("state"))  # a stage that is done needs none

    stopped(sft_config(loop_values, tmp_path, "third"), tmp_path / "third")
    done = len(numbers(tmp_path / "third"))
    rows.write_text("".join(before.splitlines(keepends=True)[:-1]))
    run(sft_config(loop_values, tmp_path, "third", resume="changed", sft={"optimizer": {"learning_rate": 3e-3}}))
    assert "goes on after step" in capfd.readouterr().err
    rates = [row["learning_rate"] for row in numbers(tmp_path / "third")]
    assert len(rates) == 6 and done < 6
    assert rates[-1] == pytest.approx(3 * numbers(folder)[-1]["learning_rate"]) and rates[0] < rates[-1]

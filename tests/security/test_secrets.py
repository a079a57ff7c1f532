"""No secret stands in a config, and so none in what a run writes or says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rayalign.config.load import dump_config, load_config, parse_config
from rayalign.config.service import TOKEN as VARIABLE
from rayalign.errors import ConfigError
from rayalign.preflight.check import examine_run
from rayalign.preflight.memory import group_memory
from tests.conftest import run_rayalign
from tests.services import TOKEN

SECRET = "pa55word"


def values(**stage: Any) -> dict[str, Any]:
    rl = {"kind": "rl", "policy": "m", "reward": "https://rewards.example:8400/score", **stage}
    return {"name": "x", "model": {"path": "m"}, "data": {"prompts": {"path": "p.jsonl"}}, "stages": [rl]}


def refused(given: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as error:
        parse_config(given)
    assert SECRET not in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("user", [f"me:{SECRET}", SECRET, f":{SECRET}", f"me:{SECRET}@odd"])
@pytest.mark.parametrize(
    ("key", "scheme"),
    [
        ("telemetry.mlflow.tracking_uri", "http"),
        ("stages.rl.reward", "https"),
        ("data.prompts.path", "s3"),
        ("model.path", "HTTPS"),
        ("placement.address", "ray"),
        ("checkpoints.mirror", "s3"),
    ],
)
def test_an_address_with_a_password_is_refused(key: str, scheme: str, user: str, tmp_path: Path) -> None:
    """In a file and in an override; the message names the key."""
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(values()))
    with pytest.raises(ConfigError) as error:
        load_config(file, [f"{key}={scheme}://{user}@host.example/x"])
    assert SECRET not in str(error.value)
    assert f"{key}: the address holds a user or a password, which would be written to disk" in str(error.value)


@pytest.mark.parametrize(
    "option",
    [
        f"secret_key={SECRET}",
        f"region=eu-west-1&client_secret={SECRET}",
        f"sas_token={SECRET}",
        f"sv=2022&sig={SECRET}",
        f"api_key={SECRET}",
        f"endpoint_override=me:{SECRET}%40host",
    ],
)
def test_a_mirror_with_a_secret_behind_its_address_is_refused(option: str, tmp_path: Path) -> None:
    """In a file and in an override: no part of it is repeated."""
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(values()))
    with pytest.raises(ConfigError) as error:
        load_config(file, [f"checkpoints.mirror=s3://bucket/runs?{option}"])
    assert SECRET not in str(error.value)
    assert "checkpoints.mirror: the address holds a user or a password" in str(error.value)
    assert "AWS_ACCESS_KEY_ID" in str(error.value)


def test_what_to_do_instead_is_told() -> None:
    given = values() | {"telemetry": {"mlflow": {"tracking_uri": f"http://me:{SECRET}@mlflow.example"}}}
    assert "MLFLOW_TRACKING_PASSWORD" in refused(given)
    assert VARIABLE in refused(values(reward=f"https://me:{SECRET}@rewards.example/score"))


def test_nothing_else_is_taken_for_a_password() -> None:
    for path in ("me@work/model", "data/a@b.jsonl", "hdfs://host/a@b"):
        parse_config(values() | {"data": {"prompts": {"path": path}}})


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (f"https://rewards.example/score?model={SECRET}", "ends with its path"),
        (f"https://rewards.example/score#{SECRET}", "ends with its path"),
        ("https://", "no address that can be asked"),
        ("http://:8400/score", "no address that can be asked"),
        ("http://host:port/score", "no address that can be asked"),
        ("http://[::1/score", "no address that can be asked"),
        ("http://host/a b", "no address that can be asked"),
        ("http://h\u00f6st/score", "no address that can be asked"),
    ],
)
def test_an_address_that_is_none(reward: str, words: str) -> None:
    best = {"kind": "best_of_n", "policy": "m", "reward": reward}
    judged = {"kind": "evaluate", "models": {"m": "m"}, "reward": reward}
    chosen = {"kind": "evaluate", "models": {"m": {"policy": "m", "reward": reward, "best_of": 2}}}
    for stage in ({"kind": "rl", "policy": "m", "reward": reward}, best, judged, chosen):
        assert words in refused(values() | {"stages": [stage]})


def test_a_service_gives_one_number_and_no_weights() -> None:
    dense = {"advantage": "reinforce_pp"}
    assert "token_rewards: a service gives a response one number" in refused(values(token_rewards=True, improve=dense))
    critic = {"advantage": "gae", "critic": {}}
    assert "improve.critic.init: a service gives the critic no weights" in refused(values(improve=critic))
    parse_config(values(improve={"advantage": "gae", "critic": {"init": "m"}}))


def test_a_service_is_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing looks for it on the disk, asks it, or takes the 7b in its name for its size."""
    config = parse_config(values(reward="http://rewards.example/rm-7b"))
    monkeypatch.delenv(VARIABLE, raising=False)
    found = {f.key: f for f in examine_run(config, config.stages)}["stages.rl.reward"]
    assert found.state == "ok" and "not asked yet" in found.text
    assert "reward" not in {group.role for group in group_memory(config)}
    monkeypatch.setenv(VARIABLE, TOKEN)
    found = {f.key: f for f in examine_run(config, config.stages)}["stages.rl.reward"]
    assert found.state == "missing" and "would travel in clear" in found.text and TOKEN not in found.text
    monkeypatch.setenv(VARIABLE, "two words")
    found = {f.key: f for f in examine_run(config, config.stages)}["stages.rl.reward"]
    assert found.state == "missing" and "two words" not in found.text


def test_the_resolved_config_has_no_place_for_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, TOKEN)
    text = dump_config(parse_config(values()))
    assert TOKEN not in text
    assert yaml.safe_load(text)["placement"]["reward_service"] == {"timeout_s": 60, "retries": 5, "batch_size": 64}
    assert "reward_service.token: unknown key" in refused(values() | {"placement": {"reward_service": {"token": SECRET}}})


def test_the_command_line_says_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(values()))
    secrets = {VARIABLE: TOKEN, "WANDB_API_KEY": SECRET, "HF_TOKEN": SECRET, "MLFLOW_TRACKING_PASSWORD": SECRET}
    plain = "stages.rl.reward=http://rewards.example/score"
    for words in (["config", str(file)], ["doctor", str(file)], ["train", str(file), plain, f"run_dir={tmp_path}"]):
        done = run_rayalign(*words, **secrets)
        assert SECRET not in done.stdout + done.stderr and TOKEN not in done.stdout + done.stderr
    assert done.returncode == 2 and done.stderr.count("\n") == 1

"""Configs of control: those to start from, and what is refused, in one line that names the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayalign.config.load import dump_config
from rayalign.control.commands import load_control
from rayalign.control.data import coefficients, load_data
from rayalign.control.environments import look_at
from rayalign.control.train import task_of
from rayalign.errors import ConfigError, DataError, UserError
from tests.control.conftest import MakeConfig

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = sorted((REPOSITORY / "configs" / "control").glob("*.yaml"))


def test_there_are_configs_to_start_from() -> None:
    environments = {"pendulum", "cartpole", "hopper", "hopper-fast", "halfcheetah", "halfcheetah-fast", "walker2d", "ant"}
    methods = {f"pendulum-{name}" for name in ("aihf", "two-stage", "preferences", "gail", "airl", "cloning", "ensemble")}
    assert {path.stem for path in FILES} == environments | methods


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_printed_it_is_the_same_config(file: Path, tmp_path: Path) -> None:
    config = load_control(file)
    (tmp_path / "resolved.yaml").write_text(dump_config(config))
    assert load_control(tmp_path / "resolved.yaml") == config
    assert config.name == file.stem


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_environment_is_there(file: Path) -> None:
    pytest.importorskip("mujoco")
    assert task_of(load_control(file)).horizon in (200, 500, 1000)


BAD: dict[str, tuple[list[str], str]] = {
    "unknown": (["polcy.tau=1"], "polcy"),
    "method": (["method=gail"], "method"),
    "weight": (["method=aihf", "reward.preference_weight=0"], "with a weight of 0 it is not aihf"),
    "discriminator": (["method=preferences", "reward.loss=logistic"], "preferences have no discriminator"),
    "divergence": (["reward.divergence=jensen_shannon"], "set loss to logistic"),
    "pretrain": (["reward.pretrain_steps=3"], "ml_irl reads no preferences"),
    "clamp": (["reward.clamp=-1"], "reward.clamp=-1"),
    "best": (["checkpoints.best=true/return_mean"], "checkpoints.best: control runs have none"),
    "mirror": (["checkpoints.mirror=s3://bucket/runs"], "checkpoints.mirror: control runs have none"),
    "layers": (["policy.hidden=[]"], "policy.hidden"),
    "pessimism": (["reward.pessimism=1"], "one network has no deviation; set ensemble to 2 or more"),
    "ppo's": (["policy.ppo={clip: 0.1}"], "ppo: sac does not read it"),
    "sac's": (["policy.algorithm=ppo", "policy.fragment=2048", "policy.tau=0.1"], "tau: ppo does not read it"),
    "cloned": (["method=preferences", "policy.start=cloned"], "policy.start: preferences reads no demonstrations"),
    "nothing to clone": (["policy.cloning_weight=1"], "no batch holds demonstrations; set demonstration_share"),
    "no steps of a clone": (["policy.start=cloned", "policy.warmup_steps=0"], "warmup_steps: from a clone's the reward"),
    "share": (["method=preferences", "policy.demonstration_share=0.5"], "demonstration_share: preferences reads no"),
    "fragment": (["policy.algorithm=ppo", "policy.fragment=100"], "from a fragment of 100 steps; raise fragment"),
    "round": (["policy.algorithm=ppo", "policy.fragment=2048"], "200 steps are no fragments of 2048"),
    "left over": (["policy.algorithm=ppo", "policy.fragment=128", "policy.batch_size=100"], "fills no batch of 100"),
    "all demonstrated": (["policy.demonstration_share=1"], "demonstration_share"),
    "fixed": (["policy.entropy_coef=0.2", "policy.initial_entropy_coef=0.1"], "entropy_coef is fixed at 0.2"),
    "few steps": (["policy.steps_per_round=1", "placement.num_learners=2"], "steps_per_round: 1 does not divide"),
    "no weight": (["reward.demonstration_weight=0"], "with a weight of 0 ml_irl learns no reward"),
    "replay": (["policy.replay_size=100"], "does not hold the 400 of warmup_steps"),
    "window": (["policy.replay_size=400", "reward.agent_window=500"], "policy.replay_size keeps 400"),
    "shares": (["method=aihf", "reward.preference_batch=1", "placement.num_learners=2"], "preference_batch: 1 does not"),
    "batch": (["policy.batch_size=100", "placement.num_learners=3"], "policy.batch_size"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values(case: str) -> None:
    overrides, told = BAD[case]
    with pytest.raises(ConfigError) as caught:
        load_control(REPOSITORY / "configs" / "control" / "pendulum.yaml", overrides)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_sources_that_a_method_needs(small: MakeConfig) -> None:
    task = look_at(small().environment)
    with pytest.raises(UserError, match="demonstrations: method ml_irl learns from them"):
        load_data(small().model_copy(update={"demonstrations": None}), task)
    with pytest.raises(UserError, match="preferences: method aihf learns from them"):
        load_data(small(method="aihf").model_copy(update={"preferences": None}), task)
    with pytest.raises(DataError, match="no such file"):
        load_data(small(demonstrations={"path": "nowhere.npz"}), task)


def test_a_method_reads_its_own_sources_only(small: MakeConfig) -> None:
    """And the weights follow: by counts, or each source's own."""
    task = look_at(small().environment)
    found = {}
    for method in ("ml_irl", "aihf", "preferences"):
        config = small(method=method, demonstrations={"num": 1})
        data = load_data(config, task)
        found[method] = (data.demonstrations is not None, data.preferences is not None, coefficients(config, data))
    assert found["ml_irl"] == (True, False, (1.0, 0.0))
    assert found["preferences"] == (False, True, (0.0, 1.0))
    assert found["aihf"][:2] == (True, True)
    assert found["aihf"][2] == pytest.approx((1 / 31, 30 / 31))
    means = small(method="aihf", reward={"weighting": "means", "demonstration_weight": 2.0})
    assert coefficients(means, load_data(means, task)) == (2.0, 1.0)

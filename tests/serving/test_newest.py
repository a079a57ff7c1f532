"""Of a run, evaluate and export mean the same models: the newest finished policy, and the reward that it followed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayalign.cli.suites.data import tell_policy, tell_reward
from rayalign.errors import UserError
from rayalign.serving.places import find_policy, find_reward
from rayalign.sharing.found import find_run
from tests.sharing.runs import IRL, finish, make_run

RL = {"kind": "rl", "name": "again", "policy": "stage:rft/policy", "reward": "stage:rft/reward"}
LATER = IRL | {"name": "later", "policy": "stage:rft/policy"}


def leave(run: Path, stage: str, *roles: str) -> None:
    """Folders that hold models, as far as who looks for them can tell."""
    for role in roles:
        (run / stage / role).mkdir(parents=True)
        settings = {"rayalign_reward": {}} if role == "reward" else {}
        (run / stage / role / "config.json").write_text(json.dumps(settings))


def test_the_newest_policy_and_its_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = RL | {"sampling": {"max_new_tokens": 20}}
    run = make_run(tmp_path / "runs" / "tiny", [{"kind": "sft"}, IRL, LATER, again])
    leave(finish(run, "sft").parent, "sft", "policy")
    leave(run, "rft", "policy", "reward")  # a stage that is still at work
    assert find_policy(run) == run / "sft" / "policy" and find_reward(run) == run / "rft" / "reward"
    finish(run, "rft")
    assert find_policy(run) == run / "rft" / "policy"
    leave(finish(run, "later").parent, "later", "policy", "reward")
    assert find_reward(run) == run / "later" / "reward"
    leave(finish(run, "again").parent, "again", "policy")
    assert find_policy(run) == run / "again" / "policy"
    assert find_reward(run) == run / "rft" / "reward", "the one that it followed"
    assert {model.folder for model in find_run(run).models} == {find_policy(run), find_reward(run)}
    tell_policy(run)
    tell_reward(run / "later" / "reward")
    assert capsys.readouterr().out == f"policy of {run}: {run / 'again' / 'policy'}\n"


def test_of_stages_that_have_not_finished_none_is_chosen(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "tiny", [{"kind": "sft"}, IRL])
    leave(run, "sft", "policy")
    leave(run, "rft", "policy")
    with pytest.raises(UserError, match="2 policies are in this run, of no finished stage"):
        find_policy(run)

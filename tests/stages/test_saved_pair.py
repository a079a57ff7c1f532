"""What an alternation saves: policy and reward of one round, whatever ends the process while they are written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rayalign.stages.loop_setup import LoopGroups
from rayalign.storage.aside import write_json


class Killed(BaseException):
    """Ends the process, so to speak."""


class Writer:
    """A group whose model is the number of a round."""

    def __init__(self) -> None:
        self.round = 0

    def save(self, folder: str) -> None:
        """Writes it."""
        Path(folder).mkdir()
        (Path(folder) / "round").write_text(str(self.round))


class Killer:
    """Lets `num` moves of files and folders happen, then kills."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num: int | None = None
        for name in ("rename", "replace"):
            monkeypatch.setattr(Path, name, self._guard(getattr(Path, name)))

    def _guard(self, move: Any) -> Any:
        def guarded(path: Path, target: Path) -> Path:
            if self.num == 0:
                raise Killed
            self.num = self.num - 1 if self.num is not None else None
            return cast(Path, move(path, target))

        return guarded


@pytest.fixture
def groups(tmp_path: Path) -> LoopGroups:
    """An alternation in `tmp_path / "rft"` that saves rounds' numbers."""
    template = SimpleNamespace(save_tokenizer=lambda folder: None)
    context = SimpleNamespace(stage_folder=lambda name: tmp_path / name, template=lambda: template)
    stage = SimpleNamespace(name="rft", artifacts=lambda: ("policy", "reward"))
    named: Any = {"context": context, "stage": stage, "policy": Writer(), "reward": Writer()}
    return LoopGroups(**named, rollout=cast(Any, None), demonstrations=cast(Any, None), prompts=cast(Any, None), data={})


def save(groups: LoopGroups, number: int) -> None:
    """Saves a round."""
    cast(Any, groups.policy).round = cast(Any, groups.reward).round = number
    groups.save()


def saved(folder: Path) -> dict[str, str]:
    """The rounds of what stands in the run's folder."""
    return {name: file.read_text() for name in ("policy", "reward") if (file := folder / "rft" / name / "round").exists()}


def test_policy_and_reward_are_always_of_one_round(
    groups: LoopGroups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = Killer(monkeypatch)
    save(groups, 1)
    assert saved(tmp_path) == {"policy": "1", "reward": "1"}
    for moves in range(10):
        killer.num = moves
        try:
            save(groups, 2)
        except Killed:
            assert saved(tmp_path) in ({}, {"policy": "1", "reward": "1"}, {"policy": "2", "reward": "2"}), moves
        else:
            break
    assert moves > 0 and saved(tmp_path) == {"policy": "2", "reward": "2"}
    assert [path.name for path in tmp_path.iterdir()] == ["rft"]


def test_a_failed_save_leaves_the_round_before(groups: LoopGroups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(groups, 1)
    monkeypatch.setattr(groups.reward, "save", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(groups, 2)
    assert saved(tmp_path) == {"policy": "1", "reward": "1"}
    assert [path.name for path in tmp_path.iterdir()] == ["rft"]


def test_a_file_is_there_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file takes another's place in one step."""
    write_json(tmp_path / "summary.json", 1)
    Killer(monkeypatch).num = 0
    with pytest.raises(Killed):
        write_json(tmp_path / "summary.json", 2)
    assert (tmp_path / "summary.json").read_text() == "1\n"

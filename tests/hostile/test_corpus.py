"""However configs, data and run folders are damaged: accepted, or one line that names the place."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from rayalign.errors import ConfigError
from tests.hostile import judge as judging
from tests.hostile.corpus import KINDS, run_cases
from tests.hostile.judge import Case, judge


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that has nothing of what the configs name, and without the network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize("kind", KINDS)
def test_no_case_is_a_fault(kind: str) -> None:
    """No traceback, no hang, nothing left behind, no message without its place, no nonsense taken for sense."""
    num = KINDS[kind][1]
    verdicts = run_cases(kind, num)
    faults = [str(verdict) for verdict in verdicts if verdict.is_fault]
    outcomes = Counter(verdict.outcome for verdict in verdicts)
    assert not faults, f"{outcomes}\n" + "\n".join(faults[:5])
    assert len(verdicts) >= num and outcomes["refused"] > num / 4


def test_the_corpus_is_large() -> None:
    assert sum(num for _, num in KINDS.values()) >= 2000


def _raises(error: BaseException) -> None:
    raise error


def test_what_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge sees each of them."""
    monkeypatch.setattr(judging, "BOUND_S", 0.2)

    def outcome(run: object, **known: object) -> str:
        return judge(Case("", "", run, **known)).outcome

    def half_written() -> None:
        (tmp_path / "half").touch()
        raise ConfigError("x: y")

    assert outcome(lambda: None) == "accepted"
    assert outcome(lambda: None, must="refuse") == "not refused"
    assert outcome(lambda: _raises(ConfigError("a.yaml: seed: no")), place=("seed",)) == "refused"
    assert outcome(lambda: _raises(ConfigError("a.yaml: no")), place=("seed",)) == "no place"
    assert outcome(lambda: _raises(ConfigError("b.yaml: no")), pattern="a.yaml: ") == "no place"
    assert outcome(lambda: _raises(ConfigError("seed")), must="accept") == "not refused"
    assert outcome(lambda: _raises(KeyError("seed"))) == "traceback"
    assert outcome(lambda: [None for _ in iter(int, 1)]) == "hang"
    assert outcome(half_written, untouched=tmp_path) == "left behind"

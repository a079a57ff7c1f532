"""Options of suites that several share."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayalign.cli.evaluate import _of_the_suite
from rayalign.cli.suites.data import data_source


@pytest.mark.parametrize(("suite", "option"), [("generation", "--prompts"), ("ifeval", "--prompts"), ("reward", "--pairs")])
def test_the_rows_of_all_suites_are_named_alike(suite: str, option: str) -> None:
    arguments = ["place", "--suite", suite, option, "~/rows.jsonl", "--columns", "prompt=question", "--limit", "3"]
    parser = _of_the_suite(arguments)
    assert parser is not None
    parsed, _ = parser.parse_known_args(arguments)
    source = data_source(parsed, getattr(parsed, option[2:]), option)
    assert (source.path, source.limit) == (str(Path.home() / "rows.jsonl"), 3)
    assert source.columns == {"prompt": "question"}


def test_how_many_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """A count, and no seed."""
    arguments = ["place", "--suite", "lm-eval", "--tasks", "a", "--num-fewshot"]
    parser = _of_the_suite(arguments)
    assert parser is not None
    assert parser.parse_known_args([*arguments, "0"])[0].num_fewshot == 0
    with pytest.raises(SystemExit):
        parser.parse_known_args([*arguments, "-1"])
    assert "is not a whole number of at least 0" in capsys.readouterr().err

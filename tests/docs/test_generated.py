"""Generated pages say all that the code has: keys of configs, commands, messages."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from rayalign.cli import _parser
from rayalign.cli.evaluate import SUITES
from rayalign.config.control import ControlConfig
from rayalign.config.load import load_config, parse_config
from rayalign.config.recipes import find_recipe
from rayalign.config.run import RunConfig
from rayalign.data.files import read_file
from rayalign.errors import RayalignError
from rayalign.preflight.check import check_run
from tests.docs.conftest import ROOT


def models_in(kind: Any) -> Iterator[type[BaseModel]]:
    """Every model that a type reaches."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
        for field in kind.model_fields.values():
            yield from models_in(field.annotation)
    for inner in get_args(kind):
        yield from models_in(inner)


def sections(page: str) -> dict[str, str]:
    """{anchor: text of the section}."""
    parts = re.split(r"^## .*\{ #(\w+) \}$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("root", [RunConfig, ControlConfig])
def test_every_key_of_every_model_stands_in_its_section(root: type[BaseModel]) -> None:
    from generate.configuration import configuration_pages

    there: dict[str, str] = {}
    for page in configuration_pages().values():
        there |= sections(page)
    found = set(models_in(root))
    assert len(found) > 10
    for model in found:
        section = there[model.__name__.lower()]
        for key, field in model.model_fields.items():
            (row,) = re.findall(rf"^\| `{key}` \|.*$", section, flags=re.MULTILINE)
            assert ("**required**" in row) == field.is_required(), row


def test_types_bounds_and_defaults_are_told() -> None:
    from generate.configuration import configuration_pages

    pages = configuration_pages()
    stages = pages["stages.md"]
    assert "| `kl_coef` | number, >= 0 | `0.05` | beta: weight of KL(policy &#124;&#124; reference) |" in stages
    assert "| `loss` | `bradley_terry`, `linear` or `logistic` | `bradley_terry` |" in stages
    assert "| `optimizer` | [OptimizerConfig](#optimizerconfig) | `learning_rate: 1e-06` |" in stages
    assert "| `beta` | number, > 0 or list of: number, > 0 | `0.1` |" in stages
    assert "[DataSource](configuration.md#datasource) or nothing | unset |" in stages
    assert "At `stages.irl.improve` and `stages.rl.improve`." in stages
    assert "| `checkpoints` | [CheckpointConfig](configuration.md#checkpointconfig) |" in pages["control.md"]


def test_every_command_and_option_is_there() -> None:
    from generate.commands import commands_page, walk

    page = commands_page()
    help_text = _parser().format_help()
    names = re.findall(r"^    ([a-z][a-z-]+)(?:  |$)", help_text, flags=re.MULTILINE)
    assert {"train", "doctor", "serve-reward", "control"} <= set(names)
    for name in names:
        assert f"\n## rayalign {name}\n" in page
    assert "\n## rayalign control train\n" in page
    assert "| `--port PORT` | the port to listen on (8400); 0 takes a free one |" in page
    for name, command, _ in walk(_parser()):
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        options = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", command.format_help(), flags=re.MULTILINE)) - {"--help"}
        assert options <= set(re.findall(r"^\| `(--[a-z-]+)", section, flags=re.MULTILINE)), name
    assert "stages.sft.optimizer.learning_rate=1e-4" in page and "143 asked to stop" in page


@pytest.mark.parametrize("name", SUITES)
def test_every_option_of_a_suite_is_there(name: str) -> None:
    """As the suite itself adds them, whatever the page's generator walks."""
    from generate.commands import commands_page

    alone = argparse.ArgumentParser(add_help=False)
    SUITES[name].add_options(alone)
    options = {option for action in alone._actions for option in action.option_strings} | {"--out"}
    section = commands_page().split(f"\n## rayalign evaluate --suite {name}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(--[^`]*)` \|", section, flags=re.MULTILINE)
    assert options <= {word for row in rows for word in re.split(r"[ ,]+", row)}
    assert SUITES[name].description.split("\n")[0] in section and "| `PLACE` |" in section


MODEL = {"path": "m"}
LOST = {"kind": "sft", "policy": "stage:a/policy"}
SFT = {"kind": "sft"}
MISTAKES: dict[str, Callable[[Path], Any]] = {
    "two stages of one name": lambda _: parse_config({"name": "x", "model": MODEL, "stages": [SFT, SFT]}),
    "no earlier stage": lambda _: parse_config({"name": "x", "model": MODEL, "stages": [LOST]}),
    "a file that is not there": lambda place: load_config(place / "no.yaml"),
    "no such recipe": lambda _: find_recipe("nothing"),
    "nothing to learn from": lambda place: check_run(config := _without_data(place), config.stages),
    "a damaged row": lambda place: list(read_file(_damaged(place))),
}


def _without_data(place: Path) -> RunConfig:
    return parse_config({"name": "x", "run_dir": str(place), "model": {"path": str(place)}, "stages": [SFT]})


def _damaged(place: Path) -> Path:
    file = place / "rows.jsonl"
    file.write_text('{"prompt": "a", "response": "b"}\n{"prompt": \n', encoding="utf-8")
    return file


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_message_that_is_met_is_in_the_catalogue(mistake: str, tmp_path: Path) -> None:
    """Under the error that came, and with its exit code."""
    from generate.messages import GAP, messages

    with pytest.raises(RayalignError) as met:
        MISTAKES[mistake](tmp_path)
    known = [m for m in messages(ROOT / "rayalign") if re.search(_pattern(m.text, GAP), str(met.value), re.DOTALL)]
    assert known, met.value
    assert {message.code for message in known} == {2}


def _pattern(text: str, gap: str) -> str:
    """Of a catalogue's message, wherever it stands in a printed one."""
    return ".*".join(re.escape(part) for part in text.split(gap))


def test_the_catalogue_reads_whole_messages(tmp_path: Path) -> None:
    """Joined strings, names set in the function, errors of their own, validators, hazards; not what only passes one on."""
    from generate.messages import messages

    package = tmp_path / "package"
    (package / "config").mkdir(parents=True)
    (package / "data.py").write_text(
        "class RayalignError(Exception): ...\n"
        "class UserError(RayalignError): ...\n"
        "class Own(UserError): ...\n"
        "def f(x):\n"
        "    what = f'{x} is no number; give one' if x else ''\n"
        "    advice = 'set it to a number'\n"
        "    raise Own('the value ' f'{x!r} is wrong here: ' + advice)\n"
        "def g(x):\n"
        "    raise RayalignError(f'{x}: {x}')\n"
        "def h(x):\n"
        "    raise KeyError('of no interest to anybody')\n"
        "def k(x):\n"
        "    return Own('handed to whoever raises it')\n",
        encoding="utf-8",
    )
    (package / "errors.py").write_text("class ConfigError(UserError): ...\n", encoding="utf-8")
    hazard, rule = "yield f'.rounds: {x} is too many rounds'", "raise ValueError('two stages are named alike')"
    for name, line in (("hazards", hazard), ("run", rule)):
        (package / "config" / f"{name}.py").write_text(f"def f(x):\n    {line}\n", encoding="utf-8")
    found = {message.text: message for message in messages(package)}
    assert set(found) == {
        "the value … is wrong here: set it to a number",
        "stages.….rounds: … is too many rounds",
        "two stages are named alike",
        "handed to whoever raises it",
    }
    assert found["the value … is wrong here: set it to a number"].error == "Own"
    assert (found["two stages are named alike"].error, found["two stages are named alike"].code) == ("ConfigError", 2)


def test_the_catalogue_has_no_group_elsewhere() -> None:
    """A new part of the package gets a heading in docs/site/generate/messages.py."""
    from generate.messages import OTHER, messages

    found = list(messages(ROOT / "rayalign"))
    assert len(found) > 300
    assert [message for message in found if message.group == OTHER] == []
    assert {message.code for message in found if message.error == "Stopped"} == {143}


def test_links_are_led_to_where_the_site_has_them() -> None:
    from generate.links import rewritten

    broken: list[str] = []
    text = "[a](../configs/rft.yaml) `[b](../x)` [c](recipes.md#hazards) [d](https://x.org/../y)\n```\n[e](../nothing)\n```"
    assert rewritten(text, "control.md", broken.append) == text.replace("../configs/rft.yaml", "source/configs/rft.yaml.md")
    assert rewritten("[a](docs/control.md#methods)", "index.md", broken.append) == "[a](control.md#methods)"
    assert rewritten("[a](docs/control.md)", "project/changelog.md", broken.append) == "[a](../control.md)"
    assert broken == []
    rewritten("[a](../../elsewhere)", "control.md", broken.append)
    assert broken == ["docs/control.md: the link ../../elsewhere leads to nothing; mend or remove it"]

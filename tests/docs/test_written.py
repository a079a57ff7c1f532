"""What pages show in code is there: commands parse, the files that they name exist, keys of YAML are keys of the config."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from rayalign.cli import _parser
from rayalign.config.run import RunConfig
from rayalign.config.stages import Stage
from tests.docs.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
STAGES = {model.model_fields["kind"].default: model for model in get_args(get_args(Stage)[0])}
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]+\b")  # a word that stands for the reader's own


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """Contents of the code blocks of a page in these languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    yield from (text for language, text in found if language in languages)


def commands() -> Iterator[tuple[Path, list[str]]]:
    """Each `rayalign ...` of the pages, with continuations and without comments, redirections and what ray adds before."""
    for page in PAGES:
        for block in blocks(page, "bash", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                for place, word in enumerate(words):
                    if word == "rayalign" and (place == 0 or words[place - 1] == "--"):  # of ray job submit
                        own = words[place + 1 :]
                        yield page, own[: own.index(">")] if ">" in own else own


@pytest.mark.parametrize(("page", "words"), [pytest.param(p, w, id=f"{p.stem}: {' '.join(w)}") for p, w in commands()])
def test_a_command_parses_and_its_files_exist(page: Path, words: list[str]) -> None:
    _parser().parse_args(words)
    for word in words:
        if word.startswith(("configs/", "benchmarks/")) and not PLACEHOLDER.search(word):
            assert (ROOT / word).is_file()


def stages_in(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping with a kind, however deep."""
    if isinstance(value, dict):
        if value.get("kind") in STAGES:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from stages_in(inner)


def unknown(kind: Any, value: Any, key: str = "") -> Iterator[str]:
    """Keys of a value that no model of its type has."""
    models = [t for t in (kind, *get_args(kind)) if isinstance(t, type) and issubclass(t, BaseModel)]
    if not models or not isinstance(value, dict):
        return
    (model,) = models
    for name, inner in value.items():
        if name in model.model_fields:
            yield from unknown(model.model_fields[name].annotation, inner, f"{key}.{name}")
        else:
            yield f"{key}.{name}"


FOREIGN = {"apiVersion", "scrape_configs"}  # keys of Kubernetes and of Prometheus
SNIPPETS = [(page, text) for page in PAGES for text in blocks(page, "yaml")]


@pytest.mark.parametrize("page", sorted({page for page, _ in SNIPPETS}), ids=lambda page: page.stem)
def test_keys_of_shown_configs_are_known(page: Path) -> None:
    """Of a whole config, of a part of it, or of stages alone."""
    for text in [text for other, text in SNIPPETS if other == page]:
        shown = yaml.safe_load(text)
        if isinstance(shown, dict) and not shown.keys() & FOREIGN:
            assert list(unknown(RunConfig, {name: part for name, part in shown.items() if name != "stages"})) == []
        for stage in stages_in(shown):
            assert list(unknown(STAGES[stage["kind"]], stage, stage["kind"])) == []

"""The commands of docs/cluster.md exist: Ray's subcommands and options, make's targets, the files named."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / "cluster.md", ROOT / "cluster" / "README.md", ROOT / "CONTRIBUTING.md"]


def shell_commands(page: Path) -> list[list[str]]:
    """The words of every command in the shell blocks of a page, comments and continuations resolved."""
    commands = []
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        block = re.sub(r"<<'YAML'\n.*?^YAML\n", "\n", block, flags=re.MULTILINE | re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if re.fullmatch(r"[;&|]+", word):
                    commands += [words] if words else []
                    words = []
                else:
                    words.append(word)
    return commands


COMMANDS = [command for page in PAGES for command in shell_commands(page)]


def ray_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """The click command that `words` names, and the words after it."""
    from ray.scripts.scripts import cli

    command: click.Command = cli
    while isinstance(command, click.Group):
        command, words = command.commands[words[0]], words[1:]
    return command, words


def test_the_page_shows_what_it_promises() -> None:
    shown = {" ".join(words[:3]) for words in COMMANDS}
    assert {"ray job submit", "ray start --head", "ray get-auth-token --generate"} <= shown
    assert {words[0] for words in COMMANDS} >= {"sbatch", "kubectl", "docker", "make", "rayalign"}


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "ray"], ids=" ".join)
def test_rays_commands_and_options_exist(words: list[str]) -> None:
    command, arguments = ray_command(words[1:])
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
    assert {word.split("=")[0] for word in own if word.startswith("-")} <= known


def test_options_of_ray_in_running_text_exist() -> None:
    text = "".join(page.read_text() for page in PAGES)
    submit, _ = ray_command(["job", "submit"])
    start, _ = ray_command(["start"])
    known = {option for command in (submit, start) for parameter in command.params for option in parameter.opts}
    known |= {"--generate", "--shm-size", "--build-arg", "--nodes", "--partition"}
    assert set(re.findall(r"`[^`\n]*?(--[a-z-]+)", text)) - known - {"--"} == set()


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in COMMANDS:
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_links_exist(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"(?<![\w/])((?:cluster|constraints|docs|tests)/[\w./-]*\w)", text))
    linked = {page.parent / target for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text)}
    assert [path for path in {ROOT / name for name in named} | linked if not path.exists()] == []

"""The command line's reference, from the parsers themselves."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator

from generate.markdown import block, prose
from rayalign.cli import _parser
from rayalign.cli.evaluate import SUITES
from rayalign.cli.parser import EXIT_CODES, OVERRIDES, Parser

WIDTH = 100
INTRO = """# Command line

`rayalign COMMAND --help` says the same in a terminal. Every error is one line on stderr: what, where, and what to do
([all of them](messages.md))."""


def commands_page() -> str:
    """A section for each command, for those below it, and for each suite of `evaluate`."""
    parser = _parser()
    parts = [INTRO, *(part for name, command, summary in walk(parser) for part in _section(name, command, summary))]
    parts += ["## Settings", block(_without_title(OVERRIDES)), "## Exit codes", block(_without_title(EXIT_CODES))]
    return "\n\n".join(parts) + "\n"


def walk(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """(`rayalign NAME ...`, its parser, its one-line summary), in the order of the help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                yield command.prog, command, summaries.get(name, "")
                yield from _suites(command)
                yield from walk(command)


def _suites(command: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """The options of each suite hang on no sub-parser: the command asks for their parser when it has read the name."""
    if isinstance(command, Parser) and command.by_choice is not None:
        for name, suite in SUITES.items():
            chosen = command.by_choice(["--suite", name])
            if chosen is not None:
                yield chosen.prog, chosen, suite.summary


def _section(name: str, command: argparse.ArgumentParser, summary: str) -> Iterator[str]:
    yield f"## {name}"
    yield prose(f"{summary[:1].upper()}{summary[1:]}.")
    # Python 3.14 colours its help; a page has none.
    command.formatter_class = functools.partial(command.formatter_class, width=WIDTH)
    usage = command.format_usage().removeprefix("usage: ")
    yield block(usage)
    if command.description:
        yield prose(command.description)
    rows = list(_rows(command))
    if rows:
        yield "\n".join(["| argument | |", "| --- | --- |", *rows])
    epilog = (command.epilog or "").replace(OVERRIDES, "").replace(EXIT_CODES, "").strip()
    if epilog:
        yield block(epilog)
    if "KEY=VALUE" in usage:
        yield "`KEY=VALUE`: [Settings](#settings)."


def _rows(command: argparse.ArgumentParser) -> Iterator[str]:
    formatter = command._get_formatter()
    for action in command._actions:
        if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)) or action.help == argparse.SUPPRESS:
            continue
        shown = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        value = "" if action.nargs == 0 else "{" + ",".join(map(str, action.choices)) + "}" if action.choices else shown
        name = f"{', '.join(action.option_strings)} {value}".strip() if action.option_strings else value
        required = " **Required.**" if action.option_strings and action.required else ""
        yield f"| `{name}` | {prose(formatter._expand_help(action) if action.help else '')}{required} |"


def _without_title(text: str) -> str:
    """Without the first line, which the page has as a heading."""
    return text.partition("\n")[2]

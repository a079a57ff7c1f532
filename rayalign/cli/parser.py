"""What all commands share: a parser whose errors are one line, exit codes, options that several take."""

from __future__ import annotations

import argparse
from typing import NoReturn

OVERRIDES = """settings:
  KEY=VALUE overrides the file, from left to right; VALUE is YAML. Stages go by their names.
    seed=1  name=second-try           plain values
    placement.policy.gpus=4           a key inside others
    stages.sft.optimizer.learning_rate=1e-4
    stages.evaluate.temperatures='[1.0, 0.5]'
    data.prompts=                     nothing: unset
  `rayalign config CONFIG` prints all keys with their values."""

EXIT_CODES = """exit codes:
  0 done, 2 something you can mend (the one line says what), 1 a failure on the way, 130 interrupted,
  143 asked to stop (SIGTERM) and saved"""


class Parser(argparse.ArgumentParser):
    """argparse, with errors on one line like all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"rayalign: {message}; `{self.prog} --help` shows how\n")


def add_command(
    commands: argparse._SubParsersAction[Parser], name: str, summary: str, description: str, about: str = OVERRIDES
) -> Parser:
    """With the exit codes at the end of its help, and `about` before them."""
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"{about}\n\n{EXIT_CODES}".lstrip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model_options(command: argparse.ArgumentParser) -> None:
    """How a saved model is loaded."""
    command.add_argument("--threads", type=count, metavar="N", help="threads that score; OMP_NUM_THREADS, or all cores")
    command.add_argument("--chat-template", metavar="FILE", help='a .jinja file, or "plain"; else the one saved beside it')
    command.add_argument("--trust-remote-code", action="store_true", help="run code that the folder brings")


def count(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)

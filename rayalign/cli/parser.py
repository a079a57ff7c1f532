"""What all commands share: a parser whose errors are one line, exit codes, options that several take."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from rayalign.suites.options import ModelOptions

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
    """argparse, with errors on one line like all others.

    Where the options depend on one of them, `by_choice` gives the parser of these arguments (None: this one).
    """

    by_choice: Callable[[Sequence[str]], argparse.ArgumentParser | None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's own, by the parser that `by_choice` gives."""
        chosen = self.by_choice(args) if self.by_choice is not None and args is not None else None
        return super().parse_known_args(args, namespace) if chosen is None else chosen.parse_known_args(args, namespace)

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


def add_engine_options(command: argparse.ArgumentParser) -> None:
    """How a saved language model is loaded to answer; `model_options` reads them."""
    add_model_options(command)
    command.add_argument("--max-length", type=count, metavar="N", help="of prompt and answer (the model's, up to 8192)")
    command.add_argument("--tensor-parallel", type=count, default=1, metavar="N", help="GPUs that share the model (1)")
    command.add_argument("--gpu-memory-frac", type=share, default=0.85, metavar="X", help="of a GPU, for vLLM (0.85)")
    command.add_argument("--kv-cache-gib", type=positive, default=0.5, metavar="X", help="vLLM's cache without a GPU (0.5)")


def model_options(parsed: argparse.Namespace) -> ModelOptions:
    """What `add_engine_options` asked for."""
    from rayalign.suites.options import ModelOptions

    return ModelOptions(
        threads=parsed.threads,
        chat_template=parsed.chat_template,
        trust_remote_code=parsed.trust_remote_code,
        max_length=parsed.max_length,
        tensor_parallel=parsed.tensor_parallel,
        gpu_memory_frac=parsed.gpu_memory_frac,
        kv_cache_gib=parsed.kv_cache_gib,
    )


def count(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def whole(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def positive(text: str) -> float:
    """A number above 0, for argparse."""
    value = _number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def not_negative(text: str) -> float:
    """A number of at least 0, for argparse."""
    value = _number(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def share(text: str) -> float:
    """A number above 0 and at most 1, for argparse."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1")
    return value


def seed(text: str) -> int:
    """A whole number from 0 to 2**31 - 1, for argparse."""
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**31 - 1}")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan

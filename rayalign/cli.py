"""The command line: train, demo, config, doctor. Errors are one line; exit code 2 for what the user can mend."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

from rayalign import __version__
from rayalign.config.load import dump_config, load_config
from rayalign.config.run import RunConfig
from rayalign.errors import RayalignError, UserError

EPILOG = """examples:
  rayalign demo
  rayalign config configs/rft.yaml
  rayalign train configs/rft.yaml model.path=Qwen/Qwen2.5-0.5B-Instruct seed=1
  rayalign train configs/rft.yaml stages.irl.rounds=3 placement.policy.gpus=4
  ray job submit --working-dir . -- rayalign train configs/rft.yaml
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `rayalign` command."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except RayalignError as error:
        print(f"rayalign: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        print("rayalign: interrupted; finished stages are kept, the same command goes on from there", file=sys.stderr)
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rayalign",
        description="Learns a reward and a policy together from demonstrations, on Ray.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rayalign {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="run the stages of a config; a finished stage is not run again")
    _add_config(train)
    train.set_defaults(run=_train)
    config = commands.add_parser("config", help="validate a config and print it resolved, with every default")
    _add_config(config)
    config.set_defaults(run=_config)
    doctor = commands.add_parser("doctor", help="versions, devices, memory, disk, and whether a config fits here")
    doctor.add_argument("configs", nargs="*", metavar="CONFIG", help="configs to check; the demo's if none")
    doctor.set_defaults(run=_doctor)
    demo = commands.add_parser("demo", help="make a planted world and run SFT and RFT on it, on two CPU cores")
    _add_overrides(demo)
    demo.set_defaults(run=_demo)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help='a YAML file, or "demo" for the built-in one')
    _add_overrides(parser)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="for instance seed=1 or stages.sft.epochs=2"
    )


def _train(parsed: argparse.Namespace) -> None:
    _run(_load(parsed.config, parsed.overrides))


def _demo(parsed: argparse.Namespace) -> None:
    _run(_load("demo", parsed.overrides))


def _config(parsed: argparse.Namespace) -> None:
    print(dump_config(_load(parsed.config, parsed.overrides)), end="")


def _doctor(parsed: argparse.Namespace) -> None:
    from rayalign.doctor import examine

    configs = {name: _load(name, []) for name in parsed.configs or ["demo"]}
    sys.exit(0 if examine(configs) else 2)


def _load(name: str, overrides: Sequence[str]) -> RunConfig:
    if name == "demo" and not Path(name).exists():
        with as_file(files("rayalign.planted") / "demo.yaml") as path:
            return load_config(path, overrides)
    return load_config(name, overrides)


def _run(config: RunConfig) -> None:
    from rich.console import Console

    from rayalign.report.table import print_report
    from rayalign.run import artifacts_of, latest_results, run

    folder = run(config)
    console = Console()
    results = latest_results(config, folder)
    artifacts = artifacts_of(config, folder)
    if results is not None:
        print_report(console, results, artifacts | {"plot": str(folder / "plot.png")})
    else:
        for name, path in artifacts.items():
            console.print(f"{name}: {path}", soft_wrap=True)
    console.print(f"run folder: {folder}", soft_wrap=True)


if __name__ == "__main__":
    main()

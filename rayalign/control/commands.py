"""`rayalign control expert | train | evaluate`: what each does with a config."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rayalign.config.control import ControlConfig
from rayalign.config.load import dump_config, load_config_as

# Makes a command's parser in the manner of the command line that it is part of: name, summary, description, about keys.
AddCommand = Callable[[Any, str, str, str, str], argparse.ArgumentParser]

OVERRIDES = """settings:
  KEY=VALUE overrides the file, from left to right; VALUE is YAML.
    seed=1  name=second-try           plain values
    policy.learning_rate=1e-3         a key inside others
    'demonstrations={path: my.npz, num: 1}'
    preferences=                      nothing: unset
  `rayalign control config CONFIG` prints all keys with their values."""
SETTINGS = "settings that take the place of the file's, for instance seed=1 or reward.inputs=state"


def add_control(commands: Any, add_command: AddCommand, parser_class: type[argparse.ArgumentParser]) -> None:
    """Adds `control` and its own commands."""
    control = commands.add_parser(
        "control",
        help="learn a reward and a policy from demonstrations in a simulated environment",
        description="Inverse reinforcement learning and AIHF in Gymnasium environments, on RLlib: docs/control.md.",
    )
    inner = control.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=parser_class)
    _add(
        inner,
        add_command,
        "expert",
        "train an expert on the true reward and record demonstrations, tiers and preferences",
        "Trains a policy on the environment's own reward within expert.steps and expert.max_s, keeps the best, and writes\n"
        "demonstrations.npz, tiers and preferences.npz to RUN_DIR/NAME/expert.",
        _expert,
    )
    _add(
        inner,
        add_command,
        "train",
        "learn a reward and a policy, or clone a behaviour; goes on where it was interrupted",
        "Runs a config's method and writes policy.safetensors, reward.safetensors, results.json and metrics.jsonl to\n"
        "RUN_DIR/NAME. The data are checked before anything starts.",
        _train,
    )
    _add(
        inner,
        add_command,
        "evaluate",
        "measure a finished run's policy and reward against the true reward",
        "Rolls out RUN_DIR/NAME/policy.safetensors on evaluation.num_episodes fixed resets, and prints returns and the\n"
        "correlation of the learned with the true reward.",
        _evaluate,
    )
    report = add_command(
        inner,
        "report",
        "show what runs learned, as one HTML file",
        "Writes report.html to the run's folder, or for several runs to the folder above them: returns with bands over\n"
        "seeds, the learned against the true reward, and an episode of the policy and of the demonstrations.",
        "",
    )
    report.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run's folder (RUN_DIR/NAME), finished or not")
    report.add_argument("--out", metavar="FILE", type=Path, help="writes there instead")
    report.set_defaults(run=_report)
    _add(inner, add_command, "config", "validate a config and print it resolved", "Prints every key.", _config)


def _add(
    inner: Any,
    add_command: AddCommand,
    name: str,
    summary: str,
    description: str,
    run: Callable[[argparse.Namespace], None],
) -> None:
    command = add_command(inner, name, summary, description, OVERRIDES)
    command.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/control/pendulum.yaml")
    command.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=SETTINGS)
    command.set_defaults(run=run)


def load_control(path: str | Path, overrides: Sequence[str] = ()) -> ControlConfig:
    """Reads a control config. Raises ConfigError."""
    return load_config_as(ControlConfig, path, overrides)


def _config(parsed: argparse.Namespace) -> None:
    print(dump_config(load_control(parsed.config, parsed.overrides)), end="")


def _expert(parsed: argparse.Namespace) -> None:
    config = load_control(parsed.config, parsed.overrides)
    from rayalign.control.experts import make_expert

    place = make_expert(config)
    results = json.loads((place / "results.json").read_text(encoding="utf-8"))
    for name, found in results["tiers"].items():
        print(f"{place / name}.npz: true return {found['return_mean']:.1f}")
    print(f"random actions: {results['random_return']:.1f}")
    if results["tiers"]["demonstrations"]["return_mean"] <= results["random_return"]:
        print(
            "warning: the expert is no better than random actions, so there is nothing to learn; raise expert.steps, and "
            "expert.max_s where that ended it"
        )
    print(f"expert: {place}")


def _train(parsed: argparse.Namespace) -> None:
    config = load_control(parsed.config, parsed.overrides)
    from rayalign.control.folder import RESULTS_FILE
    from rayalign.control.train import train

    folder = train(config)
    _print_results(json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8")))
    print(f"run folder: {folder}")


def _evaluate(parsed: argparse.Namespace) -> None:
    config = load_control(parsed.config, parsed.overrides)
    from rayalign.control.train import evaluate

    _print_results(evaluate(config))


def _report(parsed: argparse.Namespace) -> None:
    from rayalign.control.report import write_report

    print(f"report: {write_report(parsed.runs, parsed.out)}")


def _print_results(results: dict[str, Any]) -> None:
    num = len(results["returns"])
    print(f"true return: {results['return_mean']:.1f} +- {results['return_std']:.1f} over {num} episodes")
    if results.get("demonstrations_return_mean") is not None:
        print(f"demonstrations: {results['demonstrations_return_mean']:.1f}")
    if results.get("reward_correlation") is not None:
        print(f"correlation of the learned with the true reward: {results['reward_correlation']:.3f}")

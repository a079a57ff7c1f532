"""The command line. Errors are one line; exit code 2 for what the user can mend."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

from rayalign import __version__
from rayalign.cli.evaluate import add_compare, add_evaluate
from rayalign.cli.parser import EXIT_CODES, Parser, add_command, add_model_options
from rayalign.cli.report import add_report
from rayalign.cli.sharing import add_export, add_push
from rayalign.cli.watch import add_watch
from rayalign.config.load import dump_config, load_config
from rayalign.config.recipes import all_recipes, find_recipe
from rayalign.config.run import RunConfig
from rayalign.control.commands import add_control
from rayalign.errors import UserError, one_line_errors

RECIPES = """examples:
  rayalign recipes rft > my.yaml                              then set model and data in it
  rayalign recipes rft --planted > small.yaml                 rayalign train small.yaml runs as it is"""

PICTURES = {"plot": "plot.png", "report": "report.html"}  # that a run draws of itself

EXAMPLES = """examples:
  rayalign demo                                               see it work: minutes, on any machine
  rayalign recipes                                            the methods, by name; with a name, its config
  rayalign doctor configs/rft.yaml                            what it needs, and whether it is here
  rayalign config configs/rft.yaml seed=1                     all settings, resolved
  rayalign train configs/rft.yaml model.path=Qwen/Qwen2.5-0.5B-Instruct
  rayalign report runs/demo                                   what it learned, as one HTML page
  rayalign watch runs/demo                                    follow a run from another terminal
  rayalign serve-reward runs/demo                             score with its reward over HTTP, for other runs
  rayalign export runs/demo --to shared                       its policy and reward, to give to others (docs/sharing.md)
  rayalign control train configs/control/pendulum.yaml        the same on a simulated robot (docs/control.md)
  rayalign train configs/rft.yaml stages.irl.rounds=3 placement.policy.gpus=4
  ray job submit --working-dir . -- rayalign train configs/rft.yaml"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `rayalign` command."""
    parsed = _parser().parse_args(arguments)
    try:
        with one_line_errors():
            parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`head`, say) has what it wanted. Python would complain once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="rayalign",
        description="Learns a reward and a policy together from demonstrations, on Ray.",
        epilog=f"{EXAMPLES}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rayalign {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)
    _add_train(commands)
    _add_demo(commands)
    _add_recipes(commands)
    _add_config(commands)
    _add_doctor(commands)
    _add_serve_reward(commands)
    add_watch(commands)
    add_evaluate(commands)
    add_compare(commands)
    add_report(commands)
    add_export(commands)
    add_push(commands)
    add_control(commands, add_command, Parser)
    return parser


def _add_train(commands: argparse._SubParsersAction[Parser]) -> None:
    train = add_command(
        commands,
        "train",
        "run the stages of a config; a finished stage is not run again",
        "Runs the stages of a config, in order. What they need (data, models, GPUs) is checked before anything starts.\n"
        "Everything is written to RUN_DIR/NAME: metrics.jsonl, the resolved config, and a folder a stage with its models\n"
        "as Hugging Face folders. The same command after an interruption keeps the stages that were finished.",
    )
    _add_config_argument(train)
    _add_overrides(train)
    train.set_defaults(run=_train)


def _add_demo(commands: argparse._SubParsersAction[Parser]) -> None:
    demo = add_command(
        commands,
        "demo",
        "make a planted world and run SFT and RFT on it, on two CPU cores",
        "Runs the built-in config on a text world that it makes itself, with a known expert and a known reward: a small\n"
        "base model, SFT on 200 demonstrations, then a reward learned from them and a policy improved on it (RFT).\n"
        "Ends with a table, and leaves runs/demo/. `rayalign config demo` prints the config.",
    )
    _add_overrides(demo)
    demo.set_defaults(run=_demo)


def _add_recipes(commands: argparse._SubParsersAction[Parser]) -> None:
    recipes = add_command(
        commands,
        "recipes",
        "list the methods, with their papers and the data they need, or print the config of one",
        "Lists the recipes: name, what it does, the paper, and the data it learns from. With a name, prints\n"
        "the config to start from, in the paper's size and with the source of each value; --planted prints the small one,\n"
        "which makes its own world and runs on two CPU cores, with every default.",
        RECIPES,
    )
    recipes.add_argument("name", nargs="?", metavar="NAME", help="a recipe; without one, all are listed")
    recipes.add_argument("--planted", action="store_true", help="its config for the planted world, resolved")
    recipes.set_defaults(run=_recipes)


def _add_config(commands: argparse._SubParsersAction[Parser]) -> None:
    config = add_command(
        commands,
        "config",
        "validate a config and print it resolved, with every default",
        "Validates a config and prints it resolved: every key, with its default where the file sets none. What is\n"
        "printed is a config itself: `rayalign config a.yaml > b.yaml` gives the same run.",
    )
    _add_config_argument(config)
    _add_overrides(config)
    config.set_defaults(run=_config)


def _add_doctor(commands: argparse._SubParsersAction[Parser]) -> None:
    doctor = add_command(
        commands,
        "doctor",
        "versions, devices, memory, disk, and what each config needs and whether it is there",
        "Shows versions, devices, memory and disk; then for each config where its groups run and whether they fit this\n"
        "machine (or the cluster at placement.address), and which data, models and packages it needs and whether they\n"
        "are there. Starts nothing. Exit code 2 if a config cannot run.",
    )
    doctor.add_argument(
        "configs", nargs="*", default=[], metavar="CONFIG", help='YAML files, or "demo", the built-in one (the default)'
    )
    # argparse cannot tell two lists apart; `_doctor` does.
    doctor.usage = "rayalign doctor [-h] [CONFIG ...] [KEY=VALUE ...]"
    doctor.set_defaults(run=_doctor)


def _add_serve_reward(commands: argparse._SubParsersAction[Parser]) -> None:
    serve = add_command(
        commands,
        "serve-reward",
        "score over HTTP with a saved reward, for other runs",
        "Serves the reward of a run, or of a folder that holds one. Other runs score with it: they set the\n"
        "reward of a stage rl, best_of_n or evaluate to the address that is printed. Both sides need the same\n"
        "RAYALIGN_REWARD_TOKEN in their environment. Beyond this machine it speaks https only: give --cert and --key,\n"
        "or use a tunnel.",
        about="",
    )
    serve.add_argument("place", type=Path, metavar="RUN_OR_FOLDER", help="a run's folder, or RUN/STAGE/reward")
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen on (127.0.0.1)")
    serve.add_argument("--port", type=int, default=8400, help="the port to listen on (8400); 0 takes a free one")
    serve.add_argument("--cert", type=Path, metavar="FILE", help="a certificate (PEM), for https")
    serve.add_argument("--key", type=Path, metavar="FILE", help="its key, if it is not in the same file")
    add_model_options(serve)
    serve.set_defaults(run=_serve_reward)


def _add_config_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help='a YAML file, or "demo", the built-in one')


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    words = "settings that take the place of the file's, for instance seed=1 or stages.sft.epochs=2"
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=words)


def _train(parsed: argparse.Namespace) -> None:
    _run(_load(parsed.config, parsed.overrides))


def _demo(parsed: argparse.Namespace) -> None:
    _run(_load("demo", [*_demo_placement(), *parsed.overrides]))


def _demo_placement() -> list[str]:
    """On a machine with a GPU vLLM's GPU build knows no CPU: the three groups take turns on one GPU."""
    from rayalign.preflight.machine import gpus

    if not gpus():
        return []
    groups = [f"placement.{role}={{gpus: 1, cpus: 1}}" for role in ("policy", "reward", "rollout")]
    return [*groups, "placement.colocate=true", "placement.gpu_memory_frac=0.3"]


def _recipes(parsed: argparse.Namespace) -> None:
    if parsed.name is None:
        if parsed.planted:
            raise UserError("--planted goes with a recipe's name: rayalign recipes NAME --planted")
        _list_recipes()
        return
    recipe = find_recipe(parsed.name)
    if parsed.planted:
        print(dump_config(load_config(recipe.file("planted"))), end="")
    else:
        print(recipe.file("paper").read_text(encoding="utf-8"), end="")


def _list_recipes() -> None:
    """Two lines each: what it does, and where it is from and what it needs."""
    recipes = all_recipes()
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        print(f"{recipe.name:<{width}}  {recipe.summary}")
        print(f"{'':<{width}}  {recipe.paper}; needs {', '.join(recipe.data)}")


def _config(parsed: argparse.Namespace) -> None:
    print(dump_config(_load(parsed.config, parsed.overrides)), end="")


def _doctor(parsed: argparse.Namespace) -> None:
    from rayalign.doctor import examine

    overrides = [word for word in parsed.configs if "=" in word and not Path(word).exists()]
    names = [word for word in parsed.configs if word not in overrides] or ["demo"]
    if not examine({name: _load(name, overrides) for name in names}):
        sys.exit(2)


def _serve_reward(parsed: argparse.Namespace) -> None:
    from rayalign.serving.serve import serve_reward

    serve_reward(
        parsed.place,
        host=parsed.host,
        port=parsed.port,
        threads=parsed.threads,
        cert=parsed.cert,
        key=parsed.key,
        chat_template=parsed.chat_template,
        trust_remote_code=parsed.trust_remote_code,
    )


def _load(name: str, overrides: Sequence[str]) -> RunConfig:
    if name == "demo" and not Path(name).exists():
        with as_file(files("rayalign.planted") / "demo.yaml") as path:
            return load_config(path, overrides)
    if "=" in name and not Path(name).exists():
        raise UserError(f"{name!r}: the config comes first, then KEY=VALUE: rayalign train configs/rft.yaml {name}")
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
        print_report(console, results, artifacts | {name: str(folder / file) for name, file in PICTURES.items()})
    else:
        for name, path in artifacts.items():
            console.print(f"{name}: {path}", soft_wrap=True)
    console.print(f"run folder: {folder}", soft_wrap=True)



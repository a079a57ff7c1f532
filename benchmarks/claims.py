"""Claims, with seeds, base models, intervals and the controls that must stand beside them.

    python benchmarks/claims.py rft                 # 2 base models x 5 seeds, about half an hour on two cores
    python benchmarks/claims.py rft --seeds 1 --bases 1
    python benchmarks/claims.py irft                # 3 seeds of a recipe's planted run, some minutes; see behaviour.py
    python benchmarks/claims.py aihf rlhf           # one after the other; `recipes` are all of them

`rft`: does RFT beat SFT on the same demonstrations in golden reward, at every decoding temperature, in the planted
low world? Beside it: SFT with its epochs re-tuned (the best of five for each temperature, chosen on the very prompts
it is judged on), best-of-16 over SFT with the reward that RFT learned, and the closed form pi_SFT^k / pi_0^(k-1).
A cell is one base model and one seed (demonstrations, order, reward batches, rollouts); differences are paired by cell.

A claim is a config of one cell (its last stage evaluates every method), what a cell is worth by method and temperature,
and the method that the others are set against: see CLAIMS.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from behaviour import BEHAVIOURS, PLANTED, cell_config, measures
from behaviour import report as report_of

from rayalign.config.load import dump_config, load_config, parse_config
from rayalign.evaluate.statistics import mean_interval, paired_difference

REPOSITORY = Path(__file__).resolve().parents[1]
DEMO = REPOSITORY / "rayalign" / "planted" / "demo.yaml"
EPOCHS = (1, 2, 3, 4, 6)
TEMPERATURES = (1.0, 0.7, 0.5, 0.2)
NUM_PROMPTS = 300  # held-out, the same ones for every method
BEST_OF = 16
POWERS = (2, 3)

Golden = dict[str, dict[str, float]]  # by method, by temperature


@dataclass(frozen=True)
class Claim:
    """What is claimed of one method, on cells of base models and seeds."""

    method: str  # that the others are subtracted from
    config: Callable[[str], dict[str, Any]]  # of a cell, from the base model's folder; name and seed come on top
    golden: Callable[[Golden], Golden]  # the methods to report, from the models evaluated


def main() -> None:
    """Runs what is not there yet, prints the table, writes CLAIM.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="+", choices=[*CLAIMS, *BEHAVIOURS, "recipes"], metavar="CLAIM")
    parser.add_argument("--seeds", type=int, help="5 for rft, 3 for the recipes")
    parser.add_argument("--bases", type=int, default=2, help="base models; the recipes have one")
    parser.add_argument("--parallel", type=int, default=os.cpu_count() or 1, help="cells at a time, one core each")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/claims"), help="holds finished cells, by the code's digest"
    )
    arguments = parser.parse_args()
    arguments.out /= code_digest()
    names = list(BEHAVIOURS) if "recipes" in arguments.claims else [n for n in arguments.claims if n in BEHAVIOURS]
    with ThreadPoolExecutor(arguments.parallel) as pool:
        for name in CLAIMS.keys() & set(arguments.claims):
            _claim(name, arguments, pool)
        if names:
            _behaviours(arguments.out, names, arguments.seeds or 3, pool)


def _claim(name: str, arguments: argparse.Namespace, pool: ThreadPoolExecutor) -> None:
    started, claim = time.monotonic(), CLAIMS[name]
    bases = list(pool.map(lambda b: make_base(arguments.out, b), range(arguments.bases)))
    cells = [(base, seed) for seed in range(arguments.seeds or 5) for base in range(arguments.bases)]
    found = list(pool.map(lambda cell: run_cell(claim, arguments.out / name, bases[cell[0]], *cell), cells))
    report = summarise(claim.method, found)
    report["wall_s"] = round(time.monotonic() - started, 1)
    (arguments.out / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    print(table(claim.method, report, cells))


def _behaviours(out: Path, names: list[str], seeds: int, pool: ThreadPoolExecutor) -> None:
    """Prints each recipe's table as soon as its seeds are there; writes NAME.json."""
    recipes = {name: BEHAVIOURS[name].base_recipe for name in names}
    bases = {recipe: str(make_base(out, 0, recipe).resolve()) for recipe in set(recipes.values())}

    def run(name: str, seed: int) -> dict[str, dict[str, float]]:
        values = cell_config(BEHAVIOURS[name], bases[recipes[name]])
        values |= {"name": f"seed{seed}", "run_dir": str(out / name)}
        values |= {"seed": seed, "placement": _one_core()}
        values["stages"][0]["seed"] = seed
        _train(out / name / f"seed{seed}.yaml", values)
        return measures(out / name / f"seed{seed}")

    pending = {name: [pool.submit(run, name, seed) for seed in range(seeds)] for name in names}
    for name, cells in pending.items():
        found = [cell.result() for cell in cells]
        (out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
        print(report_of(BEHAVIOURS[name], found), end="\n\n", flush=True)


def code_digest() -> str:
    """Names the code that decides what a cell is and how it is judged, so that cells of other code are not taken."""
    package = REPOSITORY / "rayalign"
    files = [DEMO, package / "run.py", *(REPOSITORY / "benchmarks" / f"{name}.py" for name in ("claims", "behaviour"))]
    for part in ("planted", "config", "data", "objectives", "models", "engines", "evaluate", "stages"):
        files += sorted((package / part).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]


def make_base(out: Path, base: int, recipe: str | None = None) -> Path:
    """The folder of base model `base`, of the demo or of a recipe: from its own random weights, on its own texts."""
    name = f"{recipe}_base{base}" if recipe else f"base{base}"
    values = yaml.safe_load(dump_config(load_config(PLANTED / f"{recipe}.yaml" if recipe else DEMO)))
    values |= {"name": name, "run_dir": str(out), "seed": 100 + base, "placement": _one_core()}
    values["stages"] = [stage for stage in values["stages"] if stage["name"] in {"world", "pretrain", "base"}]
    values["stages"][0]["seed"] = 100 + base
    values["data"] = {}
    _train(out / f"{name}.yaml", values)
    return out / name / "base" / "policy"


def run_cell(claim: Claim, out: Path, base_folder: Path, base: int, seed: int) -> dict[str, Any]:
    """Trains and evaluates one cell; golden reward by method and temperature."""
    name = f"base{base}_seed{seed}"
    values = claim.config(str(base_folder.resolve()))
    values |= {"name": name, "run_dir": str(out), "seed": seed, "placement": _one_core()}
    values["stages"][0]["seed"] = seed
    _train(out / f"{name}.yaml", values)
    results = json.loads((out / name / values["stages"][-1]["name"] / "results.json").read_text())
    by_model = {
        model: {str(float(t)): cell["golden"]["mean"] for t, cell in by_t.items()}
        for model, by_t in results["models"].items()
    }
    return {
        "base": base,
        "seed": seed,
        "golden": claim.golden(by_model),
        "reward_accuracy": results.get("reward_accuracy"),
        "expert": results["expert"]["golden"],
    }


def rft_config(base: str) -> dict[str, Any]:
    """The demo, with SFT for other numbers of epochs, and the controls that need no more training."""
    values = yaml.safe_load(DEMO.read_text().replace("stage:base/policy", base))
    world, *rest = [s for s in values["stages"] if s["name"] not in {"pretrain", "base"}]
    sft = next(s for s in rest if s["name"] == "sft")
    others = [{**sft, "name": f"sft_{e}", "epochs": e} for e in EPOCHS if e != sft["epochs"]]
    evaluate = rest[-1]
    best = {"policy": "stage:sft/policy", "reward": "stage:rft/reward", "best_of": BEST_OF}
    evaluate |= {"num_prompts": NUM_PROMPTS, "temperatures": list(TEMPERATURES)}
    evaluate["models"] = {
        **{s["name"]: f"stage:{s['name']}/policy" for s in others},
        f"best_of_{BEST_OF}": best,
        **{f"closed_form_k{k}": {"policy": "stage:sft/policy", "reference": base, "power": k} for k in POWERS},
        **evaluate["models"],
    }
    values["stages"] = [world, *others, *rest]
    return values


def rft_golden(by_model: Golden) -> Golden:
    """SFT's epochs re-tuned for each temperature; RFT last."""
    tuned = [by_model["sft"], *(by_model[f"sft_{e}"] for e in EPOCHS if f"sft_{e}" in by_model)]
    retuned = {t: max(row[t] for row in tuned) for t in by_model["sft"]}
    order = [f"best_of_{BEST_OF}", *(f"closed_form_k{k}" for k in POWERS), "rft"]
    first = {"base": by_model["base"], "sft": by_model["sft"], "sft_epochs_retuned": retuned}
    return first | {method: by_model[method] for method in order}


def summarise(judged: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Means, and paired differences of one method minus each other one, with 95% t intervals over seeds.

    The base models of a seed share its demonstrations, so the seed's mean over them is one observation.
    """

    def by_seed(method: str, temperature: float) -> list[float]:
        values: dict[int, list[float]] = {}
        for cell in cells:
            values.setdefault(cell["seed"], []).append(cell["golden"][method][str(temperature)])
        return [fmean(found) for found in values.values()]

    report: dict[str, Any] = {"cells": cells, "golden": {}, f"{judged}_minus": {}}
    for method in cells[0]["golden"]:
        report["golden"][method] = {str(t): mean_interval(by_seed(method, t)).as_dict() for t in TEMPERATURES}
        if method == judged:
            continue
        report[f"{judged}_minus"][method] = {}
        for t in TEMPERATURES:
            pair = paired_difference(by_seed(judged, t), by_seed(method, t))
            report[f"{judged}_minus"][method][str(t)] = pair.difference.as_dict() | {
                "positive": sum(c["golden"][judged][str(t)] > c["golden"][method][str(t)] for c in cells),
                "excludes_zero": pair.excludes_zero,
            }
    return report


def table(judged: str, report: dict[str, Any], cells: list[tuple[int, int]]) -> str:
    """The report as Markdown."""
    heads = " | ".join(f"T={t:g}" for t in TEMPERATURES)
    rule = "| --- |" + " --- |" * len(TEMPERATURES)
    lines = [f"Golden reward, {len(cells)} cells; mean +- half width of the 95% t interval over seeds", ""]
    lines += [f"| method | {heads} |", rule]
    lines += [f"| {method} | {_row(row)} |" for method, row in report["golden"].items()]
    lines += ["", f"| {judged.upper()} minus | {heads} |", rule]
    differences = report[f"{judged}_minus"].items()
    lines += [f"| {method} | {_row(row, signed=True, cells=len(cells))} |" for method, row in differences]
    return "\n".join(lines)


def _row(row: dict[str, Any], *, signed: bool = False, cells: int = 0) -> str:
    texts = []
    for estimate in row.values():
        half = "" if estimate["low"] is None else f" +- {estimate['mean'] - estimate['low']:.3f}"
        count = f" ({estimate['positive']}/{cells})" if signed else ""
        texts.append(f"{estimate['mean']:{'+' if signed else ''}.3f}{half}{count}")
    return " | ".join(texts)


def _train(config: Path, values: dict[str, Any]) -> None:
    """Runs a config in a process of its own, on one core, without Ray."""
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(dump_config(parse_config(values)))
    log = config.with_suffix(".log")
    with log.open("a") as output:
        done = subprocess.run(
            [sys.executable, "-m", "rayalign.cli", "train", str(config)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(),
        )
    if done.returncode:
        sys.exit(f"{config.stem} failed (exit code {done.returncode}); see {log}")


def _one_core() -> dict[str, Any]:
    return {"backend": "inprocess"}


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


CLAIMS = {"rft": Claim("rft", rft_config, rft_golden)}

if __name__ == "__main__":
    main()

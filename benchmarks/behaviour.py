"""What the planted runs of the recipes should do, and whether they do: each claim of `claims.py` but the first.

A claim is a recipe of configs/planted, perhaps with stages added, and statements about its models: a measure of one
minus the same of another (or minus a number), which is expected to be above zero. Measures of a model's samples:

    golden@T   the known reward at temperature T           parsed   share of samples within the grammar, T = 1
    mad        mean |frequency of an attribute - the demonstrator's| over the qualities but the fact, T = 1
    best@N     known reward of the best of N by the reward of a best_of_n stage
    pairs      share of held-out pairs that a fitted reward orders as they are
    writer     how much further a reward sets demonstrations above the policy than the policy above its base (AUC)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from rayalign.config.load import dump_config, load_config
from rayalign.evaluate.statistics import mean_interval

REPOSITORY = Path(__file__).resolve().parents[1]
PLANTED = REPOSITORY / "configs" / "planted"
QUALITIES = ("name", "answers", "polite", "noinsult", "offer", "end")
NUM_PROMPTS = 200

Stages = list[dict[str, Any]]


@dataclass(frozen=True)
class Statement:
    """`measure` of `more` minus that of `less` (a model, or a number) is expected above zero."""

    text: str
    measure: str
    more: str
    less: str | float


@dataclass(frozen=True)
class Behaviour:
    """A recipe's claim. `change` is given the recipe's own stages by name, and returns those to run."""

    recipe: str
    statements: tuple[Statement, ...] = ()
    change: Callable[[dict[str, dict[str, Any]]], Stages] | None = None
    base_recipe: str | None = None  # whose base model it runs on; by default the demo's, which most recipes have


def cell_config(claim: Behaviour, base: str) -> dict[str, Any]:
    """The recipe as plain values on a base model that is there: fewer prompts to judge on, and the closed form beside it."""
    text = dump_config(load_config(PLANTED / f"{claim.recipe}.yaml"))
    values = yaml.safe_load(text.replace("stage:base/policy", base))
    stages = {stage["name"]: stage for stage in values["stages"] if stage["name"] not in ("pretrain", "base")}
    stages["evaluate"] |= {"num_prompts": NUM_PROMPTS, "num_per_prompt": 1}
    if "sft" in stages:
        stages["evaluate"]["models"].setdefault("closed_2", {"policy": "stage:sft/policy", "reference": base, "power": 2.0})
    return values | {"stages": claim.change(stages) if claim.change else list(stages.values())}


def measures(folder: Path) -> dict[str, dict[str, float]]:
    """What one finished cell's models are worth: {model: {measure: value}}."""
    expert = json.loads((folder / "world" / "world.json").read_text())["expert"]["expected_frequencies"]
    found: dict[str, dict[str, float]] = {}
    for file in sorted(folder.glob("*/results.json")):
        for model, by_t in json.loads(file.read_text())["models"].items():
            own = found.setdefault(model, {})
            own |= {f"golden@{t}": cell["golden"]["mean"] for t, cell in by_t.items()}
            if "1" in by_t:
                own["parsed"], attributes = by_t["1"]["parsed_frac"], by_t["1"]["attributes"]
                if attributes:
                    own["mad"] = fmean(abs(attributes[q] - expert[q]) for q in QUALITIES)
    for file in sorted(folder.glob("*/curve.json")):
        points = json.loads(file.read_text())["points"]
        found[file.parent.name] = {f"best@{row['n']}": row["golden"]["mean"] for row in points if "golden" in row}
    for file in sorted(folder.glob("*/report.json")):
        report = json.loads(file.read_text())
        accuracy = report.get("heldout_accuracy") or report.get("heldout_accuracy_sum")  # of fit_reward, of ava
        if accuracy:
            found.setdefault(file.parent.name, {})["pairs"] = accuracy["mean"]
        if "heterogeneity" in report:
            difference = report["heterogeneity"]["writer_minus_progress"]
            found.setdefault(file.parent.name, {})["writer"] = difference["mean"]
    return found


def report(claim: Behaviour, cells: list[dict[str, dict[str, float]]]) -> str:
    """All measures as a table, mean +- half width of the 95% t interval over seeds, then the statements with theirs."""
    names = sorted({measure for cell in cells for model in cell.values() for measure in model}, key=_order)
    lines = [f"| {claim.recipe}: {len(cells)} seeds | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for model in cells[0]:
        texts = [_text([cell[model][name] for cell in cells if name in cell.get(model, {})]) for name in names]
        if any(texts):
            lines.append(f"| {model} | {' | '.join(texts)} |")
    if claim.statements:
        lines += ["", "| expected above 0 | difference | seeds |", "| --- | --- | --- |"]
    for statement in claim.statements:
        differences = [_value(cell, statement.measure, statement.more) - _less(cell, statement) for cell in cells]
        positive = sum(difference > 0 for difference in differences)
        lines.append(f"| {statement.text} | {_text(differences, sign='+')} | {positive}/{len(cells)} |")
    return "\n".join(lines)


def _order(name: str) -> tuple[int, str, float]:
    kind, _, number = name.partition("@")
    place = ("golden", "best", "mad", "parsed", "pairs", "writer").index(kind)
    return place, kind, -float(number or 0) if kind == "golden" else float(number or 0)


def _value(cell: dict[str, dict[str, float]], measure: str, model: str) -> float:
    return cell[model][measure]


def _less(cell: dict[str, dict[str, float]], statement: Statement) -> float:
    less = statement.less
    if isinstance(less, float):
        return less
    model, _, measure = less.partition(":")
    return _value(cell, measure or statement.measure, model)


def _text(values: list[float], sign: str = "") -> str:
    if not values:
        return ""
    found = mean_interval(values).as_dict()
    half = "" if found["low"] is None else f" +- {found['mean'] - found['low']:.3f}"
    return f"{found['mean']:{sign}.3f}{half}"


# ------------------------------------------------------------------------------------------------------- the claims


def _irft(stages: dict[str, dict[str, Any]]) -> Stages:
    """Beside the recipe's: beta .1 trained too long, with one generation and with five."""
    long = stages["small_1"] | {"beta": 0.1}
    stages["long_1"] = long | {"name": "long_1", "max_steps": 80, "epochs": 20}
    stages["long_5"] = long | {"name": "long_5", "rounds": 5, "max_steps": 16, "epochs": 20}
    return _evaluated_last(stages, "long_1", "long_5")


def _imitation(stages: dict[str, dict[str, Any]]) -> Stages:
    """beta 1 on the reward as it is, a moving reference, and as many rounds as it takes."""
    imitate = stages["rounds_4"] | {"name": "imitate", "rounds": 8}
    imitate["improve"] = imitate["improve"] | {"kl_coef": 1.0, "steps": 8}
    kept = {name: stages[name] for name in ("world", "sft", "base_samples", "rft", "evaluate")}
    kept["evaluate"]["models"] = {
        name: model for name, model in kept["evaluate"]["models"].items() if not name.startswith("rounds_")
    }
    kept["imitate"] = imitate
    return _evaluated_last(kept, "imitate")


def _afd_rewards(stages: dict[str, dict[str, Any]]) -> Stages:
    """What the curves of best-of-n say is not asked again."""
    models = stages["evaluate"]["models"]
    stages["evaluate"]["models"] = {name: model for name, model in models.items() if not name.startswith("best_")}
    return list(stages.values())


def _evaluated_last(stages: dict[str, dict[str, Any]], *more: str) -> Stages:
    evaluate = stages.pop("evaluate")
    evaluate["models"] = {**evaluate["models"], **{name: f"stage:{name}/policy" for name in more}}
    return [*stages.values(), evaluate]


def _above(more: str, less: str, measure: str = "golden@1", text: str = "") -> Statement:
    return Statement(text or f"{more} - {less}, {measure}", measure, more, less)


BEHAVIOURS: dict[str, Behaviour] = {
    "imitation": Behaviour(
        "rft",
        (
            Statement("beta 1, rounds: nearer to the demonstrator than the base (mad)", "mad", "base", "imitate"),
            Statement("and nearer than SFT (mad)", "mad", "sft", "imitate"),
            Statement("small beta, one round: goes past it, golden@1", "golden@1", "rft", "sft"),
            Statement("and farther from it than imitation (mad)", "mad", "rft", "imitate"),
        ),
        _imitation,
    ),
    "irft": Behaviour(
        "irft",
        (
            _above("large_5", "large_1", text="beta 2: T = 5 over T = 1, golden@1"),
            Statement("beta 2: T = 5 nearer to the demonstrator (mad)", "mad", "large_1", "large_5"),
            Statement(
                "beta .1, too long: T = 5 keeps the grammar, T = 1 breaks (parsed)", "parsed", "long_5", "long_1"
            ),
            _above("small_1", "sft", text="beta .3, T = 1, early stop: past SFT, golden@1"),
            _above("small_1", "sft", "golden@0.2", "the same at T = 0.2"),
        ),
        _irft,
    ),
    "afd_rewards": Behaviour(
        "afd_rewards",
        (
            Statement("Init-SFT over SFT-Demo, best of 64", "best@64", "best_init_sft", "best_sft_demo"),
            Statement(
                "SFT-Demo is hackable: best of 4 over best of 64", "best@4", "best_sft_demo", "best_sft_demo:best@64"
            ),
            Statement("the diagnosis parts them: SFT-Demo over Init-SFT (writer)", "writer", "sft_demo", "init_sft"),
            Statement("and SFT-Demo is above the margin of .1 that it warns at (writer)", "writer", "sft_demo", 0.1),
        ),
        _afd_rewards,
        base_recipe="afd_rewards",
    ),
    "aihf": Behaviour(
        "aihf",
        tuple(_above("aihf", "sft", f"golden@{t}", f"joint over SFT at T = {t}") for t in ("1", "0.7", "0.5", "0.2")),
    ),
    "rft_rounds": Behaviour(
        "rft", (_above("rft", "sft"), _above("rounds_4", "rounds_1", text="beta 3: four rounds over one"))
    ),
    "demonstrations_to_rewards": Behaviour(
        "demonstrations_to_rewards", (_above("irl", "sft"), _above("irl", "sft", "golden@0.2"))
    ),
    "rlhf": Behaviour("rlhf", tuple(_above(m, "sft") for m in ("ppo", "rloo", "grpo", "grpo_no_std", "reinforce_pp"))),
    "ava_p": Behaviour(
        "ava_p",
        (
            _above("summed", "base"),
            _above("dense", "base"),
            Statement("reward: held-out pairs above chance", "pairs", "reward", 0.5),
        ),
    ),
    "ava_d": Behaviour("ava_d", (_above("direct", "base"),)),
    "afd": Behaviour("afd", tuple(_above(m, "sft") for m in ("best_of_16", "raft", "rl"))),
    "afd_adversarial": Behaviour(
        "afd_adversarial",
        (
            *(Statement(f"{m}: nearer than the base (mad)", "mad", "base", m) for m in ("reverse_kl", "jensen_shannon")),
            Statement("forward KL as published: away from the demonstrators (mad)", "mad", "forward_kl", "base"),
            Statement("forward KL by its density ratio: nearer (mad)", "mad", "base", "forward_kl_exp"),
        ),
    ),
    "aihf_direct": Behaviour("aihf_direct", (_above("aihf_direct", "base"),)),
    "aihf_selfplay": Behaviour("aihf_selfplay", (_above("aihf_selfplay", "spin"),)),
    "extrapolate": Behaviour("extrapolate", (_above("closed_2", "sft"), _above("closed_3", "sft"))),
    "best_of_n": Behaviour("best_of_n", (_above("best_of_16", "sft"),)),
    "raft": Behaviour("raft", (_above("raft", "sft"),)),
    "spin": Behaviour("spin", (_above("spin", "base"),)),
    "dpo": Behaviour("dpo", (_above("dpo", "sft"),)),
    "ipo": Behaviour("ipo", (_above("ipo", "sft"),)),
    "gsil": Behaviour("gsil", (_above("gsil", "base"),)),
    "dft": Behaviour("dft", (_above("dft", "base"),)),
    "sft": Behaviour("sft", (_above("sft", "base"),)),
}

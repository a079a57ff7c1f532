"""Speed of a policy-only step: rayalign against TRL's GRPOTrainer and against bare vLLM, in one run on the same cores.

    python benchmarks/step.py --quick          # few repetitions: a look, not a result
    python benchmarks/step.py --out step.json  # the long form, for a machine that does nothing else

A step is 8 prompts x 4 samples x 64 forced new tokens, a reward function that costs nothing, one AdamW step, and for
rayalign the weight sync. Each system is first screened over dtypes, threads, attention and
environment, and its best setting named; then the
best ones take turns (A B C D, D C B A, ...), so that drift of the machine hits all alike. Everything printed was
measured in this run. See benchmarks/README.md for how to read it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import step_report
import workload
from channel import TUNED, Contender, ContenderFailed, Record

HERE = Path(__file__).resolve().parent
SCRIPTS = {"ray": "rayalign_step.py", "inprocess": "rayalign_step.py", "vllm": "bare_vllm.py"}
SCRIPTS |= dict.fromkeys(("trl", "trl_master"), "trl_step.py")
ATTENTIONS = ("sdpa", "eager")
DTYPES = {"ray": ("float32", "bfloat16"), "inprocess": ("float32", "bfloat16"),
          "trl": ("float32", "bfloat16", "autocast"),
          "trl_master": ("float32", "autocast")}  # fmt: skip # weights in float32, as rayalign's optimiser has them


@dataclass(frozen=True)
class Setting:
    """One system at one setting."""

    system: str
    dtype: str
    threads: int
    attention: str = "sdpa"  # of the trainer (and of TRL's generation)
    tuned: bool = True  # with channel.TUNED in its environment

    def __str__(self) -> str:
        return f"{self.system}: {step_report.described(vars(self))}"


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    sizes: list[str]
    threads: list[int]
    systems: list[str]
    refinements: list[dict[str, Any]]  # tried on a system's fastest dtype, threads and attention
    screen_steps: int
    rounds: int
    steps_a_round: int


class Bench:
    """Starts contenders on one model's folder; ends all of them at the end."""

    def __init__(self, folder: Path, trl_python: str | None) -> None:
        self._folder, self._trl_python = folder, trl_python
        self._alive: list[Contender] = []
        self._started = 0

    def start(self, setting: Setting) -> Contender:
        """Starts one, warm and idle."""
        python = self._trl_python if setting.system.startswith("trl") else sys.executable
        command = [str(python), str(HERE / SCRIPTS[setting.system]), "--model", str(self._folder)]
        command += ["--dtype", setting.dtype, "--threads", str(setting.threads)]
        if setting.system in {"ray", "inprocess"}:
            command += ["--backend", setting.system]
        if setting.system != "vllm":
            command += ["--attention", setting.attention]
        self._started += 1
        log = self._folder / f"{self._started}-{setting.system}.log"
        contender = Contender(str(setting), command, threads=setting.threads, tuned=setting.tuned, log=log)
        self._alive.append(contender)
        return contender

    def stop(self, contender: Contender) -> None:
        """Ends one."""
        self._alive.remove(contender)
        contender.stop()

    def close(self) -> None:
        """Ends what is left."""
        for contender in list(self._alive):
            self.stop(contender)


def main() -> None:
    """Measures each size, prints tables and verdicts, writes JSON; profiles what missed its target."""
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that contenders and folders go with this process
    plan = plan_of(arguments)
    trl_python = arguments.trl_python or (trl_environment() if "trl" in plan.systems else None)
    report: dict[str, Any] = {"machine": step_report.machine(), "plan": vars(plan), "sizes": {}}
    print(step_report.headline(report["machine"]), flush=True)
    try:
        for size in plan.sizes:
            report["sizes"][size] = measure(size, plan, trl_python)
            print(step_report.table(size, report["sizes"][size]), flush=True)
    except ContenderFailed as error:
        sys.exit(f"step.py: {error}")
    verdicts = step_report.verdicts(report["sizes"])
    report["verdicts"] = verdicts
    print(step_report.verdict_lines(verdicts), flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.profile:
        for size in {v["size"] for v in verdicts if not v["met"]}:
            profile(size, report["sizes"][size])


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions, all cores only, no in-process form")
    parser.add_argument("--sizes", nargs="+", default=["1m", "15m"], choices=["1m", "15m", "tiny"])
    parser.add_argument("--threads", nargs="+", type=int, help="by default 1 and all cores")
    parser.add_argument("--rounds", type=int, help="turns that each contender takes in the final")
    parser.add_argument("--no-trl", action="store_true", help="without TRL (and its environment)")
    parser.add_argument("--trl-python", help="an interpreter that has TRL; by default .venv-trl is made")
    parser.add_argument(
        "--no-profile", dest="profile", action="store_false", help="no profile of what missed its target"
    )
    parser.add_argument("--out", type=Path, help="where the numbers go, as JSON")
    return parser.parse_args()


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Long or quick, with what the command line overrules."""
    cores = os.cpu_count() or 1
    systems = ["ray"] + ([] if arguments.quick else ["inprocess"]) + ([] if arguments.no_trl else ["trl", "trl_master"])
    threads = arguments.threads or ([cores] if arguments.quick else sorted({1, cores}))
    quick = arguments.quick
    return Plan(
        sizes=arguments.sizes,
        threads=threads,
        systems=systems,
        refinements=[] if quick else [{"tuned": False}],
        screen_steps=2 if quick else 4,
        rounds=arguments.rounds or (3 if quick else 10),
        steps_a_round=1 if quick else 2,
    )


def trl_environment() -> str:
    """The interpreter of TRL's environment, made if it is not there."""
    found = subprocess.run([str(HERE / "trl_env.sh")], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        sys.exit("step.py: no TRL; give --trl-python, or --no-trl to measure without it")
    return found.stdout.split("\n")[-2]


def measure(size: str, plan: Plan, trl_python: str | None) -> dict[str, Any]:
    """Screens each system, then lets the best settings and bare vLLM take turns."""
    with model_folder(size) as (folder, parameters), contextlib.closing(Bench(folder, trl_python)) as bench:
        screened: dict[str, float] = {}
        finalists: dict[Setting, Contender] = {}
        for system in plan.systems:
            best, contender = screen(bench, system, plan, screened)
            finalists[best] = contender
        bare = replace(next(iter(finalists)), system="vllm")
        finalists[bare] = bench.start(bare)
        records = take_turns(finalists, plan)
        return {
            "parameters": parameters,
            "screened_step_s": screened,
            "settings": {s.system: vars(s) for s in finalists},
            "facts": {s.system: c.facts | {"start_s": c.start_s} for s, c in finalists.items()},
            "records": records,
            "summary": step_report.summary(records),
        }


def screen(bench: Bench, system: str, plan: Plan, screened: dict[str, float]) -> tuple[Setting, Contender]:
    """The system's fastest setting, left running; the others are ended.

    First every dtype, number of threads and attention, then for the fastest of these the other environment.
    """
    best: tuple[float, Setting, Contender] | None = None

    def try_out(setting: Setting) -> None:
        nonlocal best
        contender = bench.start(setting)
        seconds = median(record["step_s"] for record in contender.steps(plan.screen_steps))
        screened[str(setting)] = seconds
        print(f"  screened {setting}: {seconds:.3f} s a step", file=sys.stderr, flush=True)
        loser = contender
        if best is None or seconds < best[0]:
            loser, best = best[2] if best else None, (seconds, setting, contender)
        if loser is not None:
            bench.stop(loser)

    for threads, dtype, attention in product(plan.threads, DTYPES[system], ATTENTIONS):
        try_out(Setting(system, dtype, threads, attention))
    assert best is not None
    for change in plan.refinements:
        try_out(replace(best[1], **change))
    return best[1], best[2]


def take_turns(finalists: dict[Setting, Contender], plan: Plan) -> dict[str, list[Record]]:
    """Records of each system, round by round; every other round in reverse order."""
    records: dict[str, list[Record]] = {setting.system: [] for setting in finalists}
    for number in range(plan.rounds):
        order = list(finalists.items())
        for setting, contender in order if number % 2 == 0 else reversed(order):
            found = contender.steps(plan.steps_a_round)
            records[setting.system] += [record | {"round": number} for record in found]
    return records


@contextlib.contextmanager
def model_folder(size: str) -> Iterator[tuple[Path, int]]:
    """A folder with random weights, tokenizer and prompts."""
    with tempfile.TemporaryDirectory(prefix="step-") as name:
        folder = Path(name)
        yield folder, workload.make_model(folder, size, workload.CORES)


def profile(size: str, found: dict[str, Any]) -> None:
    """Where the policy update's time goes, at the setting that missed."""
    setting = found["settings"]["ray"]
    command = [sys.executable, str(HERE / "profile_update.py"), "--size", size]
    command += [word for key in ("dtype", "threads", "attention") for word in (f"--{key}", str(setting[key]))]
    print(f"\nA target was missed at {size}. Where the step went is in the table above; the policy update:", flush=True)
    with open(os.devnull, "w") as nowhere:
        environment = os.environ | (TUNED if setting["tuned"] else {})
        subprocess.run(command, stderr=nowhere, env=environment, check=False)


if __name__ == "__main__":
    main()

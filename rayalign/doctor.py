"""`rayalign doctor`: what is installed, what the machine has, and for each config what it needs and whether it is there."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table

from rayalign import __version__
from rayalign.actors.plan import check_fits, make_plan
from rayalign.config.hazards import hazards
from rayalign.config.run import RunConfig
from rayalign.errors import PlacementError
from rayalign.preflight import machine
from rayalign.preflight.check import examine_run
from rayalign.preflight.memory import PROCESS_GIB, GroupMemory, group_memory, saved_gib

Mark = Literal["ok", "note", "missing"]
STYLES: dict[str, str] = {"ok": "green", "note": "yellow", "missing": "bold red"}
MARKS: dict[str, Mark] = {"ok": "ok", "download": "note", "missing": "missing"}
NEEDS_TO_RUN = {"torch", "ray", "transformers", "deepspeed", "vllm"}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    mark: Mark
    what: str
    text: str


def examine(configs: Mapping[str, RunConfig], console: Console | None = None) -> bool:
    """Prints the report; False where any of the configs cannot run here."""
    console = console or Console()
    gpus = machine.gpus()
    packages = list(check_packages())
    _print(console, f"rayalign {__version__}", packages)
    _print(console, "this machine", check_machine(gpus))
    able = not any(check.mark == "missing" for check in packages)
    for name, config in configs.items():
        checks = list(check_config(config, gpus))
        _print(console, f"{name} (run {config.name}: {', '.join(stage.name for stage in config.stages)})", checks)
        num_missing = sum(check.mark == "missing" for check in checks)
        able = able and not num_missing
        if num_missing:
            console.print(f"[bold red]{num_missing} missing[/]: this config cannot run here yet", highlight=False)
        else:
            console.print("this config can run here", highlight=False)
    return able


def check_packages() -> Iterable[Check]:
    """Versions: missing ones stop every run, ones out of range are only told."""
    python = sys.version_info
    yield Check("ok" if python >= (3, 11) else "missing", "python", f"{python.major}.{python.minor}.{python.micro}")
    for package in machine.packages():
        wanted = f" (wanted: {package.allowed})" if package.allowed else ""
        if package.version is None:
            extra = "cpu" if not machine.gpus() else "gpu"
            mark: Mark = "missing" if package.name in NEEDS_TO_RUN else "note"
            yield Check(mark, package.name, f"not installed{wanted}: pip install 'rayalign[{extra}]', or `make env`")
        elif not package.fits:
            yield Check("note", package.name, f"{package.version} is outside what was tested{wanted}: `make env` mends it")
        else:
            yield Check("ok", package.name, f"{package.version}{wanted}")


def check_machine(gpus: list[machine.Gpu]) -> Iterable[Check]:
    """Devices, memory, and what a first start may build."""
    for number, gpu in enumerate(gpus):
        yield Check("ok", f"GPU {number}", f"{gpu.name}, {gpu.memory_gib:.0f} GiB")
    if not gpus:
        yield Check("note", "GPU", "none: models run on the CPU, which is for small ones")
    unit = machine.bf16_unit()
    in_hardware = f"bfloat16 by {unit}" if unit else "no bfloat16 unit: float32 is the faster dtype here"
    yield Check("ok", "CPU", f"{machine.cpus()} logical cores, {machine.cpu_name()}, {in_hardware}")
    available, total = machine.memory_gib()
    yield Check("ok" if available >= 4 else "note", "memory", f"{available:.1f} of {total:.1f} GiB are available")
    tools = {"C++ compiler": machine.compiler(), "ninja": machine.ninja()}
    for name, path in tools.items():
        advice = "not found: DeepSpeed and vLLM may build kernels at their first start; install it if one fails to"
        yield Check("ok" if path else "note", name, path or advice)


def check_config(config: RunConfig, gpus: list[machine.Gpu]) -> Iterable[Check]:
    """Placement, then data, models and the rest, in the order in which a run needs them; last, what may go wrong with it."""
    yield from check_placement(config, gpus)
    yield from check_memory(config, gpus)
    on_cpu = not config.placement.policy.gpus
    if on_cpu and config.model.dtype == "bfloat16" and machine.bf16_unit() is None:
        yield Check("note", "model.dtype", "bfloat16 without a unit for it is slow on this CPU: set model.dtype=float32")
    findings = [finding for finding in examine_run(config, config.stages) if finding.key]  # placement was told above
    yield from (Check(MARKS[f.state], f.key, f.text) for f in findings if f.state != "made")
    made = [finding.key for finding in findings if finding.state == "made"]
    if made:
        yield Check("ok", "made by the run itself", ", ".join(made))
    yield from (Check("note", "hazard", line) for line in hazards(config))


def check_placement(config: RunConfig, gpus: list[machine.Gpu]) -> Iterable[Check]:
    """The plan in words, and whether it fits the cluster that the config names, or this machine alone."""
    placement = config.placement
    try:
        plan = make_plan(placement, max_staleness=config.max_staleness)
        yield Check("ok", "placement", plan.sentence())
        if placement.backend == "inprocess":
            yield Check("ok", "fits", "in this process, without Ray")
        elif placement.address or os.environ.get("RAY_ADDRESS"):
            from rayalign.actors.cluster import nodes_of_cluster

            nodes = nodes_of_cluster(placement)
            check_fits(plan, nodes)
            yield Check("ok", "fits", f"the cluster has room on {len(nodes)} node(s): {_totals(nodes)}")
        else:
            nodes = [{"CPU": float(machine.cpus()), "GPU": float(len(gpus))}]
            check_fits(plan, nodes)
            yield Check("ok", "fits", f"this machine has room: {_totals(nodes)}")
    except PlacementError as error:
        yield Check("missing", "fits", str(error))


def check_memory(config: RunConfig, gpus: list[machine.Gpu]) -> Iterable[Check]:
    """What each group's models take, without activations, beside what the devices here have."""
    groups = group_memory(config)
    if not groups:
        yield Check("note", "memory", "the size of the models is not known before they are here")
        return
    told = "; ".join(str(group) for group in groups) + "; activations come on top"
    problem = _memory_problem(config, groups, gpus)
    yield Check("missing" if problem else "ok", "memory", f"{told}{problem}")
    free = machine.free_disk_gib(config.run_dir)
    saved = f"the run's models take {saved_gib(config):.1f} GiB, and {free:.1f} GiB are free"
    yield Check("ok" if saved_gib(config) < free else "missing", "disk", saved)


def _memory_problem(config: RunConfig, groups: list[GroupMemory], gpus: list[machine.Gpu]) -> str:
    """Why the groups' models do not fit here; empty where they do, or where the devices are elsewhere."""
    placement = config.placement
    if placement.address or os.environ.get("RAY_ADDRESS"):
        return ""
    if not placement.policy.gpus:
        processes = PROCESS_GIB * sum(group.num_workers for group in groups)
        needs = processes + _together((g.num_workers * g.steady_gib, g.num_workers * g.each_gib) for g in groups)[1]
        has = machine.memory_gib()[1]
        return "" if needs < has else f". Too much: {needs:.1f} GiB with the processes, and this machine has {has:.1f}"
    smallest = min((gpu.memory_gib for gpu in gpus), default=math.inf)
    trained = {group.role: (group.steady_gib, group.each_gib) for group in groups if group.role != "rollout"}
    if placement.colocate:
        trained = {"policy and reward": _together(trained.values())}
    sampled = {group.role: group.each_gib / placement.gpu_memory_frac for group in groups if group.role == "rollout"}
    most = {name: gib for name, (_, gib) in trained.items()} | sampled
    full = [f"{name} needs {gib:.1f} GiB" for name, gib in most.items() if gib > smallest]
    advice = "raise zero_stage or the group's gpus, use lora, or take a smaller model"
    if any(steady <= smallest < gib for steady, gib in trained.values()):
        advice = "it is loaded whole before ZeRO-3 shares it out: take a smaller model, or kl_coef 0 to load no reference"
    return f". Too much: {', '.join(full)}, and a GPU here has {smallest:.1f}; {advice}" if full else ""


def _together(groups: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """What groups take that load one after the other, of what each takes: (while it works, at most)."""
    amounts = list(groups)
    steady = sum(amount for amount, _ in amounts)
    return steady, steady + max((most - amount for amount, most in amounts), default=0.0)


def _totals(nodes: list[dict[str, float]]) -> str:
    return ", ".join(f"{sum(node[kind] for node in nodes):g} {kind}" for kind in ("CPU", "GPU"))


def _print(console: Console, title: str, checks: Iterable[Check]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row(f"[{STYLES[check.mark]}]{check.mark}[/]", check.what, _plain(check.text))
    console.print(table, highlight=False)


def _plain(text: str) -> str:
    """Text that rich takes as it is."""
    return text.replace("[", r"\[")

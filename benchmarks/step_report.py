"""What step.py prints and judges: medians and ranges, ratios round by round, the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from statistics import median
from typing import Any

from channel import Record

NAMES = {
    "ray": "rayalign, Ray actors",
    "inprocess": "rayalign, in process",
    "trl": "TRL GRPOTrainer",
    "trl_master": "TRL, float32 weights",
    "vllm": "bare vLLM",
}
PHASES = ("generate", "score", "improve", "sync")
WORK = ("generate", "score", "improve")  # what workers do; the rest of a step is controller, Ray and sync
SPEED_UP = {"1m": 1.0, "15m": 1.5}  # over TRL
MAX_OVERHEAD = {"15m": 0.10}
MIN_ENGINE_SHARE = 0.95  # of bare vLLM's tokens/s

Span = dict[str, float]


def summary(records: dict[str, list[Record]]) -> dict[str, Any]:
    """Median, least and most of each system's numbers, and of the ratios between systems round by round."""
    found: dict[str, Any] = {system: {} for system in records}
    for system, steps in records.items():
        found[system]["step_s"] = span([r["step_s"] for r in steps])
        found[system]["tokens_per_s"] = span([r["tokens"] / r["step_s"] for r in steps])
        if "improve_s" in steps[0]:
            found[system] |= {f"{phase}_s": span([r[f"{phase}_s"] for r in steps]) for phase in PHASES}
            found[system]["overhead_frac"] = span([overhead(r) for r in steps])
            found[system]["generate_tokens_per_s"] = span([r["tokens"] / r["generate_s"] for r in steps])
    for system in ("ray", "inprocess"):
        for rival in ("trl", "trl_master"):
            if system in records and rival in records:
                found[system][f"times_as_fast_as_{rival}"] = span(paired(records, rival, "step_s", system, "step_s"))
        if system in records and "vllm" in records:
            found[system]["share_of_bare_vllm"] = span(paired(records, "vllm", "step_s", system, "generate_s"))
    return found


def span(numbers: list[float]) -> Span:
    """Median and range."""
    return {"median": median(numbers), "min": min(numbers), "max": max(numbers), "count": len(numbers)}


def overhead(record: Record) -> float:
    """Share of a step in which no worker generates, scores or trains: controller, Ray and weight sync together."""
    return 1.0 - sum(record[f"{phase}_busy_s"] for phase in WORK) / record["step_s"]


def paired(records: dict[str, list[Record]], above: str, above_key: str, below: str, below_key: str) -> list[float]:
    """Ratio of the two systems' medians in each round: neighbours in time are compared."""

    def by_round(system: str, key: str) -> dict[float, list[float]]:
        rounds: dict[float, list[float]] = {}
        for record in records[system]:
            rounds.setdefault(record["round"], []).append(record[key])
        return rounds

    upper, lower = by_round(above, above_key), by_round(below, below_key)
    return [median(upper[number]) / median(lower[number]) for number in upper]


def verdicts(sizes: dict[str, Any]) -> list[dict[str, Any]]:
    """Each target with what was found, judged on medians, for rayalign in Ray actors (its default)."""
    judged = []
    for size, found in sizes.items():
        ours = found["summary"]["ray"]
        if size in SPEED_UP and "times_as_fast_as_trl" in ours:
            value = ours["times_as_fast_as_trl"]["median"]
            judged.append(verdict(size, "times as fast as TRL", value, SPEED_UP[size], at_least=True))
        value = ours["share_of_bare_vllm"]["median"]
        judged.append(verdict(size, "generation, of bare vLLM's tokens/s", value, MIN_ENGINE_SHARE, at_least=True))
        if size in MAX_OVERHEAD:
            value = ours["overhead_frac"]["median"]
            judged.append(
                verdict(size, "controller, Ray and sync, of the step", value, MAX_OVERHEAD[size], at_least=False)
            )
    return judged


def verdict(size: str, what: str, value: float, target: float, *, at_least: bool) -> dict[str, Any]:
    """One target and whether it is met."""
    met = value >= target if at_least else value < target
    return {"size": size, "what": what, "value": value, "target": target, "at_least": at_least, "met": met}


def verdict_lines(judged: list[dict[str, Any]]) -> str:
    """One line a target."""
    return "\n".join(
        f"{'met   ' if v['met'] else 'MISSED'}  {v['size']:>4}  {v['what']}: {v['value']:.3g} "
        f"(wanted {'at least' if v['at_least'] else 'below'} {v['target']:g})"
        for v in judged
    )


def table(size: str, found: dict[str, Any]) -> str:
    """One size: a line a system, then rayalign's phases."""
    lines = [f"\n{size}: {found['parameters']:,} parameters; medians (least to most)"]
    lines.append(f"{'':<23}{'best setting':<32}{'seconds a step':<25}{'tokens/s':>9}{'of TRL':>18}")
    for system, numbers in found["summary"].items():
        setting = found["settings"][system]
        ratio = numbers.get("times_as_fast_as_trl")
        note = f"{ratio['median']:.2f}x ({ratio['min']:.2f}-{ratio['max']:.2f})" if ratio else ""
        lines.append(
            f"{NAMES[system]:<23}{described(setting):<32}"
            f"{shown(numbers['step_s']):<25}{numbers['tokens_per_s']['median']:>9,.0f}{note:>18}"
        )
    for system in ("ray", "inprocess"):
        if system in found["summary"]:
            lines.append(phases(NAMES[system], found["summary"][system]))
    return "\n".join(lines)


def described(setting: dict[str, Any]) -> str:
    """A setting in few words."""
    threads = f"{setting['threads']} thread{'s' if setting['threads'] > 1 else ''}"
    attention = "" if setting["system"] == "vllm" else f", {setting['attention']}"
    return f"{setting['dtype']}, {threads}{attention}{'' if setting['tuned'] else ', plain environment'}"


def phases(name: str, numbers: dict[str, Span]) -> str:
    """Where a step goes."""
    parts = ", ".join(f"{phase} {numbers[f'{phase}_s']['median']:.3f}" for phase in PHASES)
    bare, rival = numbers["share_of_bare_vllm"], numbers.get("times_as_fast_as_trl_master")
    span = f"{rival['median']:.2f}x ({rival['min']:.2f}-{rival['max']:.2f})" if rival else ""
    against = f"; {span} of TRL with float32 weights" if rival else ""
    return (
        f"  {name}: {parts} s; controller, Ray and sync {shown(numbers['overhead_frac'], percent=True)}; "
        f"generation {bare['median']:.1%} ({bare['min']:.1%}-{bare['max']:.1%}) of bare vLLM{against}"
    )


def shown(numbers: Span, *, percent: bool = False) -> str:
    """Median (least to most)."""
    form = "{:.1%}" if percent else "{:.3f}"
    return "{} ({}-{})".format(*(form.format(numbers[key]) for key in ("median", "min", "max")))


def machine() -> dict[str, Any]:
    """Cores, model, load before the start, and versions."""
    return {
        "cores": os.cpu_count(),
        "model": _cpu_info("model name") or platform.machine(),
        "bfloat16": [flag for flag in ("amx_bf16", "avx512_bf16") if flag in _cpu_info("flags").split()],
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "transformers", "ray", "deepspeed", "vllm")},
    }


def headline(found: dict[str, Any]) -> str:
    """The machine in one line, and a warning when it is busy."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    bfloat16 = " and ".join(found["bfloat16"]) or "no bfloat16 arithmetic"
    line = f"{found['cores']} cores, {found['model']} ({bfloat16}); Python {found['python']}, {versions}"
    if found["load_before"] > 0.5:
        line += (
            f"\nThe machine is busy (load {found['load_before']:.1f}): threads that wait for a taken core distort this."
        )
    return line


def _cpu_info(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def _version(name: str) -> str:
    for distribution in (name, f"{name}-cpu"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "absent"

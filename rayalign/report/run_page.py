"""`rayalign report RUN ...`: what runs of language models learned, as one HTML file, made at the end of every run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rayalign.errors import UserError
from rayalign.report.answers import probe_rewards, sources
from rayalign.report.charts import Axis, Chart, Level, estimates, histogram
from rayalign.report.curve import best_of_line
from rayalign.report.page import Section, page
from rayalign.report.results import Estimate, Results, estimates_below, title
from rayalign.report.round_charts import ALTERNATION, FITTING, MISMATCH, Panel, panel_charts
from rayalign.report.run_files import RunFiles, grouped, labels, read_run
from rayalign.report.story import run_lines, state_of
from rayalign.report.table import shown
from rayalign.report.timing import time_charts, time_table
from rayalign.storage.aside import check_writable, written_aside
from rayalign.storage.evaluation import STAGE_SUITE

REPORT_FILE = "report.html"
BEST_OF = {"reward": "learned reward, which chooses (mean)", "golden": "golden reward, which judges (mean)"}
ENVIRONMENT = ("command", "started", "python", "platform", "cpus", "gpus")
MAX_ROWS = 60  # of a suite
HISTOGRAMS = 6  # rounds shown: the first, the last, and some between


def write_run_report(folders: Sequence[Path], out: Path | None = None, *, running: Sequence[Path] = ()) -> Path:
    """Writes `out`, or report.html in the one run's folder, or above the first of several runs' folders.

    Args:
        running: those of `folders` that a process works in now.

    Raises UserError for what is no run, and where the file cannot be written.
    """
    places = list(dict.fromkeys(folder.expanduser().absolute() for folder in folders))
    if not places:
        raise UserError("report: give a run's folder, or several")
    working = {folder.expanduser().absolute() for folder in running}
    runs = [read_run(place, is_running=place in working) for place in places]
    file = out or (places[0] if len(places) == 1 else places[0].parent) / REPORT_FILE
    check_writable(file)
    with written_aside(file) as aside:
        aside.write_text(run_report(runs), encoding="utf-8")
    return file


def run_report(runs: Sequence[RunFiles]) -> str:
    """The HTML of one run, or of several side by side: their curves in common charts, samples and times of each."""
    names = labels(runs)
    verdict, sections = [], [_results(runs, names), *_curves(runs)]
    for run, name in zip(runs, names, strict=True):
        of_run = f" of {name}" if len(runs) > 1 else ""
        verdict += [f"{name}: {line}" if of_run else line for line in run_lines(run)]
        sections += [*_histograms(run, of_run), *_best_of(run, of_run), *_suites(run, of_run), *_times(run, of_run)]
        sections.append(_samples(run, of_run))
    sections += [_alarms(runs, names), *_differences(runs, names)]
    for run, name in zip(runs, names, strict=True):
        sections += _settings(run, f" of {name}" if len(runs) > 1 else "")
    return page(", ".join(names), verdict, [section for section in sections if section is not None])


def _results(runs: Sequence[RunFiles], names: Sequence[str]) -> Section | None:
    """Rewards by temperature, and accuracies of the reward."""
    charts, lines = [], []
    for run, own in zip(runs, names, strict=True):
        read = Results(run.last_results or {})
        for quantity, label in (("golden", "golden reward (0 to 1, mean)"), ("reward", "learned reward (mean)")):
            if read.has(quantity):
                charts.append(_temperatures(own, read, quantity, label))
                break
        lines += [
            f"{own}: the learned reward ranks {100 * found.mean:.1f}% of {name.replace('_', ' ')} right "
            f"({100 * found.low:.1f} to {100 * found.high:.1f}%)"
            for name, found in read.reward_accuracy.items()
        ]
    if not charts and not lines:
        return None
    return Section("Held-out prompts", lines=lines, charts=charts)


def _temperatures(name: str, read: Results, quantity: str, label: str) -> Chart:
    curves = {
        title(model): {t: (e.mean, e.low, e.high) for t, e in read.curve(model, quantity).items()} for model in read.models
    }
    golden = quantity == "golden"
    levels = [Level("demonstrator", read.expert_golden)] if golden and read.expert_golden is not None else []
    limits = (-0.02, 1.02) if golden else None
    figure = estimates(curves, Axis("sampling temperature"), Axis(label, limits), levels)
    return Chart(figure, f"{name}: each model at each temperature, with 95% intervals over prompts")


def _curves(runs: Sequence[RunFiles]) -> list[Section]:
    """Of each stage that recorded any, all runs in common charts."""
    sections = []
    for stage in dict.fromkeys(name for run in runs for name in run.recorded):
        for heading, panels in (("by step", (*ALTERNATION, *FITTING)), ("sampler against trainer", MISMATCH)):
            charts = panel_charts(grouped(runs), stage, panels)
            if charts:
                sections.append(Section(f"Stage {stage}: {heading}", charts=charts))
    return sections


def _histograms(run: RunFiles, label: str) -> list[Section]:
    """Rewards of held-out demonstrations against samples, round by round."""
    sections = []
    for stage in dict.fromkeys(str(probe.get("stage")) for probe in run.probes):
        scored = [probe for probe in run.probes if probe.get("stage") == stage and any(probe_rewards(probe))]
        charts = []
        for probe in _some(scored):
            demonstrations, samples = probe_rewards(probe)
            both = {"demonstrations": demonstrations, "samples": samples}
            figure = histogram(both, Axis("reward of then (a response)"), Axis("share (%)"))
            charts.append(Chart(figure, f"after round {probe.get('rounds_done')}: held-out demonstrations and samples"))
        if charts:
            sections.append(Section(f"Stage {stage}: rewards of demonstrations and samples{label}", charts=charts))
    return sections


def _some(probes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(probes) <= HISTOGRAMS:
        return probes
    places = sorted({round(i * (len(probes) - 1) / (HISTOGRAMS - 1)) for i in range(HISTOGRAMS)})
    return [probes[place] for place in places]


def _best_of(run: RunFiles, label: str) -> list[Section]:
    """Score against n, of each stage that chose among samples."""
    sections = []
    for stage, curve in run.curves.items():
        if not curve.get("points"):
            continue
        charts = []
        for name, measure in BEST_OF.items():
            found = {float(p["n"]): e for p in curve["points"] if (e := Estimate.parse(p.get(name)))}
            if found:
                points = {name: {n: (e.mean, e.low, e.high) for n, e in found.items()}}
                charts.append(Chart(estimates(points, Axis("n (samples to choose from)", log=True), Axis(measure)), name))
        sections.append(Section(f"Stage {stage}: best of n{label}", lines=[best_of_line(curve)], charts=charts))
    return sections


def _suites(run: RunFiles, label: str) -> list[Section]:
    """What `rayalign evaluate` found, each estimate a row; what the run's own stages found stands above."""
    sections = []
    for name, suite in run.suites.items():
        found = [] if name.startswith(STAGE_SUITE) else list(estimates_below(suite.get("results")))
        if found:
            rows = [[" / ".join(path), shown(estimate), str(estimate.num or "")] for path, estimate in found[:MAX_ROWS]]
            left = f"{len(found) - MAX_ROWS} more estimates stand in evaluation.json" if len(found) > MAX_ROWS else ""
            table = [["what", "mean (95% interval)", "of"], *rows]
            sections.append(Section(f"Suite {name}{label}", lines=[left] if left else [], table=table))
    return sections


def _times(run: RunFiles, label: str) -> list[Section]:
    sections = []
    for stage in run.loops:
        records = run.of_stage(stage)
        table = time_table(records)
        if table:
            sections.append(Section(f"Stage {stage}: where the time went{label}", charts=time_charts(records), table=table))
    return sections


def _samples(run: RunFiles, label: str) -> Section | None:
    found = sources(run)
    return Section(f"Samples{label}", browser=found) if found else None


def _alarms(runs: Sequence[RunFiles], labelled: Sequence[str]) -> Section:
    """The hacking watch: what tripped, and what it measures."""
    told = [
        f"{name}, stage {alarm['stage']}, round {(alarm.get('round') or 0) + 1}: {alarm['line']}"
        for run, name in zip(runs, labelled, strict=True)
        for alarm in run.alarms
    ]
    names = sorted({key for run in runs for record in run.records for key in record if key.startswith("watch/")})
    charts: list[Chart] = []
    for stage in dict.fromkeys(name for run in runs for name in run.loops):
        panels = [Panel(f"{name.removeprefix('watch/').replace('_', ' ')} (its own unit)", {name: name}) for name in names]
        charts += panel_charts(grouped(runs), stage, panels)
    lines = told or ["No alarm tripped." if any(run.loops for run in runs) else "No loop has run, so nothing was watched."]
    return Section("The watch for reward hacking", lines=lines, charts=charts, folded=bool(charts) and not told)


def _differences(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Section]:
    """What differs in the configs of several runs."""
    if len(runs) < 2:
        return []
    flat = [_flat(run.config) for run in runs]
    keys = sorted({key for one in flat for key in one if key not in ("name", "run_dir")})
    rows = [[key, *(str(one.get(key, "")) for one in flat)] for key in keys if len({str(one.get(key)) for one in flat}) > 1]
    if not rows:
        return [Section("What differs in the settings", lines=["Nothing."])]
    return [Section("What differs in the settings", table=[["setting", *names], *rows])]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"stages.rft.rounds": 3, ...}; stages go by their names."""
    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for key, inner in value.items():
            found |= _flat(inner, f"{prefix}{key}.")
        return found
    if isinstance(value, list) and value and all(isinstance(one, dict) and "name" in one for one in value):
        return _flat({one["name"]: one for one in value}, prefix)
    return {prefix.removesuffix("."): value}


def _settings(run: RunFiles, label: str) -> list[Section]:
    environment = run.environment
    packages = environment.get("packages") or {}
    rows = [["what", "value"], ["folder", str(run.folder)], ["state", state_of(run)]]
    rows += [[key, str(environment[key])] for key in ENVIRONMENT if environment.get(key)]
    rows += [[name, str(version)] for name, version in packages.items()]
    text = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    return [
        Section(f"Environment{label}", lines=run.faults, table=rows),
        Section(f"Settings{label}", text=text),
    ]

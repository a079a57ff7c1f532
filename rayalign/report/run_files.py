"""A run's folder as a report reads it: finished, running, died in the middle, or of an older version.

Nothing here insists on a file or a key: what is not there is not shown. Only a folder without a config is no run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from rayalign.errors import UserError
from rayalign.report.results import results_problem
from rayalign.report.shapes import MAX_NUMBER, Alarm, BestOf, Environment, Probe, Record, fault
from rayalign.storage.evaluation import EVALUATION_FILE
from rayalign.storage.jsonl import Line, read_lines
from rayalign.storage.run_folder import ALARMS_FILE, CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE, ROUNDS_FILE

IDENTITY = ("name", "run_dir", "seed")  # differ between runs of one experiment

MAX_FAULTS = 20  # that are told


@dataclass(frozen=True)
class RunFiles:
    """What one run left."""

    folder: Path
    config: dict[str, Any]
    records: list[Line]  # of metrics.jsonl, oldest first
    probes: list[Line]  # of rounds.jsonl
    alarms: list[Line]  # of alarms.jsonl
    results: dict[str, dict[str, Any]]  # of each evaluate stage, the last one last
    curves: dict[str, dict[str, Any]]  # of each best_of_n stage
    environment: dict[str, Any]
    suites: dict[str, Any]  # of evaluation.json
    done: list[str]  # stages that have finished
    is_running: bool
    faults: list[str] = field(default_factory=list)  # what could not be read

    @property
    def name(self) -> str:
        """As its config calls it."""
        name = self.config.get("name")
        return name if isinstance(name, str) and name else self.folder.name

    @property
    def stages(self) -> list[dict[str, Any]]:
        """Their configs, in order."""
        return [stage for stage in self.config.get("stages") or [] if isinstance(stage, dict)]

    @property
    def is_finished(self) -> bool:
        """Whether every stage has."""
        return all(stage.get("name") in self.done for stage in self.stages)

    @property
    def last_results(self) -> dict[str, Any] | None:
        """Of the last evaluate stage."""
        return next(reversed(self.results.values()), None)

    def of_stage(self, name: str) -> list[Line]:
        """Its records."""
        return [record for record in self.records if record.get("stage") == name]

    @property
    def loops(self) -> list[str]:
        """Stages that move a policy round by round: the alternations, and the implicit ones."""
        moves = (r.get("stage") for r in self.records if any(name.startswith("policy/") for name in r))
        return list(dict.fromkeys(str(stage) for stage in moves))

    @property
    def recorded(self) -> list[str]:
        """Stages with records, in their order."""
        return list(dict.fromkeys(str(record.get("stage")) for record in self.records))

    @property
    def experiment(self) -> str:
        """Equal for runs that differ in their seed alone."""
        return json.dumps({k: v for k, v in self.config.items() if k not in IDENTITY}, sort_keys=True, default=str)


def read_run(folder: Path, *, is_running: bool = False) -> RunFiles:
    """Raises UserError for a folder that holds no run of language models."""
    folder = folder.expanduser().absolute()
    config = _config(folder)
    faults: list[str] = []
    names = [str(stage["name"]) for stage in config["stages"] if isinstance(stage, dict) and stage.get("name")]
    return RunFiles(
        folder=folder,
        config=config,
        records=[_numbers_only(line) for line in _lines(folder / METRICS_FILE, Record, faults)],
        probes=list(_lines(folder / ROUNDS_FILE, Probe, faults)),
        alarms=list(_lines(folder / ALARMS_FILE, Alarm, faults)),
        results={name: found for name in names if (found := _results(folder / name / "results.json", faults))},
        curves={name: found for name in names if (found := _object(folder / name / "curve.json", faults, BestOf))},
        environment=_object(folder / ENVIRONMENT_FILE, faults, Environment) or {},
        suites=_suites(folder / EVALUATION_FILE, faults),
        done=[name for name in names if (folder / name / "done.json").exists()],
        is_running=is_running,
        faults=faults,
    )


def _config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"{folder}: holds no {CONFIG_FILE}; give a run's folder (RUN_DIR/NAME)")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read ({type(error).__name__}); restore it, or give another run") from None
    if isinstance(config, dict) and "environment" in config and "stages" not in config:
        raise UserError(f"{folder}: a control run; use rayalign control report {folder}")
    if not isinstance(config, dict) or not isinstance(config.get("stages"), list):
        raise UserError(f"{file}: is no config of a run (it has no stages); was it written by another program?")
    return config


def _lines(file: Path, shape: type[BaseModel], faults: list[str]) -> Iterator[Line]:
    """Those of the shape; the others are told."""
    for number, line in enumerate(read_lines(file), start=1):
        wrong = "no JSON object" if line is None else fault(shape, line)
        if line is not None and wrong is None:
            yield line
        elif len(faults) < MAX_FAULTS:
            faults.append(f"{file.name}, line {number}: left out ({wrong})")


def _numbers_only(record: Line) -> Line:
    """Of the metrics those that can be drawn."""
    own = Record.model_fields
    return {k: v for k, v in record.items() if k in own or (isinstance(v, (int, float)) and abs(v) < MAX_NUMBER)}


def _object(file: Path, faults: list[str], shape: type[BaseModel] | None = None) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        found = None
    wrong = "no JSON object" if not isinstance(found, dict) else fault(shape, found) if shape else None
    if wrong is None:
        return dict(found)
    faults.append(f"{file.parent.name}/{file.name}: left out ({wrong})")
    return None


def _suites(file: Path, faults: list[str]) -> dict[str, Any]:
    suites = (_object(file, faults) or {}).get("suites")
    return {str(name): one for name, one in suites.items() if isinstance(one, dict)} if isinstance(suites, dict) else {}


def _results(file: Path, faults: list[str]) -> dict[str, Any] | None:
    found = _object(file, faults)
    if found is not None and (problem := results_problem(found)):
        faults.append(f"{file.parent.name}/{file.name}: damaged ({problem}), left out")
        return None
    return found


def grouped(runs: Sequence[RunFiles]) -> dict[str, list[RunFiles]]:
    """Runs that differ in their seeds alone, under the first one's label."""
    groups: dict[str, list[RunFiles]] = {}
    for run in runs:
        groups.setdefault(run.experiment, []).append(run)
    names = labels([group[0] for group in groups.values()])
    return {
        name + (f" ({len(group)} seeds)" if len(group) > 1 else ""): group
        for name, group in zip(names, groups.values(), strict=True)
    }


def labels(runs: Sequence[RunFiles]) -> list[str]:
    """A name for each that no other has: its own, or where that is another's too as much of its path as tells them apart."""
    found = []
    for run in runs:
        others = [other for other in runs if other.folder != run.folder]
        parts = run.folder.parts
        endings = ["/".join(parts[-num:]) for num in range(1, len(parts) + 1)]
        apart = next((end for end in endings if not any(str(o.folder).endswith("/" + end) for o in others)), str(run.folder))
        found.append(run.name if all(other.name != run.name for other in others) else apart)
    return found

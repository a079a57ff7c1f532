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

from rayalign.errors import UserError
from rayalign.report.results import results_problem
from rayalign.storage.run_folder import CONFIG_FILE, ENVIRONMENT_FILE

IDENTITY = ("name", "run_dir", "seed")  # differ between runs of one experiment

Record = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """What one run left."""

    folder: Path
    config: dict[str, Any]
    records: list[Record]  # of metrics.jsonl, oldest first
    probes: list[Record]  # of rounds.jsonl
    alarms: list[Record]  # of alarms.jsonl
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
        return str(self.config.get("name") or self.folder.name)

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

    def of_stage(self, name: str) -> list[Record]:
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
        records=list(_lines(folder / "metrics.jsonl", faults)),
        probes=list(_lines(folder / "rounds.jsonl", faults)),
        alarms=list(_lines(folder / "alarms.jsonl", faults)),
        results={name: found for name in names if (found := _results(folder / name / "results.json", faults))},
        curves={name: found for name in names if (found := _object(folder / name / "curve.json", faults))},
        environment=_object(folder / ENVIRONMENT_FILE, faults) or {},
        suites=(_object(folder / "evaluation.json", faults) or {}).get("suites") or {},
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


def _lines(file: Path, faults: list[str]) -> Iterator[Record]:
    """Its objects; a last line that a killed run left torn is skipped, and others that are none are told."""
    if not file.is_file():
        return
    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                found = None
            if isinstance(found, dict):
                yield found
            else:
                faults.append(f"{file.name}, line {number}: not of this program, left out")


def _object(file: Path, faults: list[str]) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    faults.append(f"{file.parent.name}/{file.name}: damaged, left out")
    return None


def _results(file: Path, faults: list[str]) -> dict[str, Any] | None:
    found = _object(file, faults)
    if found is not None and (problem := results_problem(found)):
        faults.append(f"{file.parent.name}/{file.name}: damaged ({problem}), left out")
        return None
    return found


def grouped(runs: Sequence[RunFiles]) -> dict[str, list[RunFiles]]:
    """Runs that differ in their seeds alone, under the first one's name."""
    groups: dict[str, list[RunFiles]] = {}
    for run in runs:
        groups.setdefault(run.experiment, []).append(run)
    named: dict[str, list[RunFiles]] = {}
    for group in groups.values():
        label = group[0].name + (f" ({len(group)} seeds)" if len(group) > 1 else "")
        named[label if label not in named else f"{label} in {group[0].folder.parent}"] = group
    return named

"""`rayalign control report RUN ...`: what runs learned, as one HTML file, also of a run that died in the middle."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayalign.config.control import ControlConfig
from rayalign.config.load import dump_config, load_config_as
from rayalign.control.data import load_data
from rayalign.control.demonstrations import Demonstrations
from rayalign.control.environments import Task, look_at
from rayalign.control.evaluation import correlation, roll_out
from rayalign.control.folder import POLICY_FILE, REPORT_FILE, RESULTS_FILE, REWARD_FILE, STAGE
from rayalign.control.frames import draw
from rayalign.control.pictures import Curve, StepRewards, draw_curves, draw_rewards, draw_states
from rayalign.control.policies import Network, SavedPolicy, load_network
from rayalign.errors import DataError, UserError
from rayalign.evaluate.statistics import mean_interval
from rayalign.report.page import Picture, Section, page
from rayalign.storage.aside import check_writable, written_aside
from rayalign.storage.run_folder import CONFIG_FILE, METRICS_FILE

EPISODES = 3  # whose steps stand for a source
CURVES = {
    "reward/margin_demo_minus_agent": "learned reward of demonstrations\nminus that of the policy (a step)",
    "reward/preference_accuracy": "preferences ranked right (share)",
    "reward/clamped_frac": "rewards at the clamp (share)",
    "policy/entropy": "entropy of the policy (nats)",
}


@dataclass(frozen=True)
class ControlResult:
    """A run folder as it is, finished or not."""

    folder: Path
    config: ControlConfig
    records: list[dict[str, Any]]
    results: dict[str, Any] | None

    @property
    def is_finished(self) -> bool:
        """Whether it has results and networks."""
        return self.results is not None


def read_result(folder: Path) -> ControlResult:
    """Raises UserError for what is no control run."""
    if not (folder / CONFIG_FILE).exists():
        raise UserError(f"{folder}: holds no {CONFIG_FILE}; give the folder of a control run (RUN_DIR/NAME)")
    text = (folder / CONFIG_FILE).read_text(encoding="utf-8", errors="replace")
    if any(line.startswith("stages:") for line in text.splitlines()):
        raise UserError(f"{folder}: a run of language models; use rayalign report {folder}")
    config = load_config_as(ControlConfig, folder / CONFIG_FILE)
    metrics, results = folder / METRICS_FILE, folder / RESULTS_FILE
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        found = json.loads(results.read_text(encoding="utf-8")) if results.exists() else None
        if found is not None and "tiers" in found:
            raise UserError(f"{folder}: the data of an expert; give the folder of a run that learned from them")
        own = [record for record in records if record["stage"] == STAGE]
        if found is not None and not found.keys() >= {"returns", "return_mean", "return_std"}:
            raise ValueError("results.json without returns")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{folder}: its metrics or results cannot be read ({error}); are they of this program?") from None
    return ControlResult(folder, config, own, found)


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Writes `out`, or report.html in the one run's folder, or above the runs' folders. Raises UserError."""
    runs = [read_result(folder) for folder in dict.fromkeys(folder.expanduser().absolute() for folder in folders)]
    environments = {run.config.environment.id for run in runs}
    if len(environments) > 1:
        raise UserError(f"report: runs of {' and '.join(sorted(environments))}; give runs of one environment")
    place = out or (runs[0].folder if len(runs) == 1 else runs[0].folder.parent) / REPORT_FILE
    groups = _groups(runs)
    check_writable(place)
    sections = [_returns(groups), _curves(groups), *_rewards(runs[0]), *_frames(runs[0]), _table(runs)]
    sections.append(Section("Settings of the first run", text=dump_config(runs[0].config)))
    title = f"{runs[0].config.environment.id}: {', '.join(groups)}"
    with written_aside(place) as aside:
        aside.write_text(page(title, _verdict(runs), sections), encoding="utf-8")
    return place


def _groups(runs: Sequence[ControlResult]) -> dict[str, list[ControlResult]]:
    """Runs that differ in their seeds alone, under the first one's name."""
    found: dict[str, list[ControlResult]] = defaultdict(list)
    for run in runs:
        found[run.config.model_copy(update={"seed": 0, "name": "", "run_dir": ""}).model_dump_json()].append(run)
    named: dict[str, list[ControlResult]] = {}
    for group in found.values():
        name, seeds = group[0].config.name, len({run.config.seed for run in group})
        if any(other.folder != group[0].folder and other.config.name == name for other in runs if other not in group):
            name = f"{name} in {group[0].folder.parent}"
        named[name + (f" ({seeds} seeds)" if seeds > 1 else "")] = group
    return named


def _verdict(runs: Sequence[ControlResult]) -> list[str]:
    lines = []
    for label, group in _groups(runs).items():
        finished = [run.results for run in group if run.results is not None]
        if not finished:
            done = max((record["round"] or 0 for run in group for record in run.records), default=0)
            lines.append(f"{label}: not finished; {done} of {group[0].config.rounds} rounds are done.")
            continue
        each = [result["returns"] for result in finished]
        over = f"{len(each)} runs" if len(each) > 1 else f"{len(each[0])} resets"
        found = mean_interval([float(np.mean(one)) for one in each] if len(each) > 1 else each[0])
        told = f"{label}: a true return of {found.mean:,.1f} (95% interval {found.low:,.1f} to {found.high:,.1f}, {over})"
        expert = finished[0].get("demonstrations_return_mean")
        if expert is not None:
            told += f"; the demonstrations have {expert:,.1f}"
        correlations = [one["reward_correlation"] for one in finished if one.get("reward_correlation") is not None]
        if correlations:
            told += f". Learned and true reward of a step correlate at {np.mean(correlations):.2f}"
        cut = [one["rounds"] for one in finished if one.get("rounds") not in (None, group[0].config.rounds)]
        if cut:
            told += f". max_s ended it after round {min(cut)} of {group[0].config.rounds}"
        lines.append(told + ".")
    return lines


def _curve(label: str, group: Sequence[ControlResult], metric: str) -> Curve:
    points: dict[int, list[float]] = defaultdict(list)
    for run in group:
        for record in run.records:
            if isinstance(record.get(metric), (int, float)) and "env_steps" in record:
                points[int(record["env_steps"])].append(float(record[metric]))
    return Curve(label, points)


def _returns(groups: dict[str, list[ControlResult]]) -> Section:
    curves = [_curve(label, group, "true/return_mean") for label, group in groups.items()]
    curves = [curve for curve in curves if curve.points]
    title = "True return"
    if not curves:
        return Section(title, lines=["No round measured it: behaviour cloning has none, nor has a run that just began."])
    finished = [run.results for group in groups.values() for run in group if run.results is not None]
    expert = next((one["demonstrations_return_mean"] for one in finished if one.get("demonstrations_return_mean")), None)
    level = None if expert is None else ("demonstrations", expert)
    episodes = next(iter(groups.values()))[0].config.evaluation.num_episodes
    caption = f"mean of {episodes} episodes of the deterministic policy from fixed resets"
    if any(len(group) > 1 for group in groups.values()):
        caption += "; bands: 95% over seeds"
    return Section(title, pictures=[Picture.of_figure(draw_curves(curves, "true return of an episode", level), caption)])


def _curves(groups: dict[str, list[ControlResult]]) -> Section:
    pictures = []
    for metric, label in CURVES.items():
        curves = [_curve(name, group, metric) for name, group in groups.items()]
        curves = [curve for curve in curves if curve.points]
        if curves:
            pictures.append(Picture.of_figure(draw_curves(curves, label), metric))
    return Section("The alternation", lines=() if pictures else ["No round was recorded."], pictures=pictures)


def _rewards(run: ControlResult) -> list[Section]:
    """The first run's learned reward against the true one."""
    title = f"Learned against true reward ({run.config.name})"
    if not run.is_finished:
        return [Section(title, lines=["The run has not finished."])]
    if not (run.folder / REWARD_FILE).exists():
        return []
    task = look_at(run.config.environment)
    reward = load_network(run.folder / REWARD_FILE, task)
    policy = SavedPolicy(load_network(run.folder / POLICY_FILE, task), task.is_choice)
    own = roll_out(run.config.environment, task, policy.act, EPISODES, run.config.evaluation.seed)
    sources = [_steps("policy", own, reward)]
    demonstrations, line = _demonstrations(run, task)
    if demonstrations is not None and demonstrations.rewards is not None:
        sources.append(_steps("demonstrations", demonstrations.first(EPISODES), reward))
    told = [f"{source.label}: correlation {correlation(source.learned, source.true):.2f}" for source in sources]
    if len(sources) > 1:
        both = [np.concatenate([getattr(source, name) for source in sources]) for name in ("learned", "true")]
        told.append(f"both: {correlation(*both):.2f}")
    lines = [f"Steps of {EPISODES} episodes. " + "; ".join(told) + ".", *line]
    pictures = [
        Picture.of_figure(draw_rewards(sources), "a point is a step"),
        Picture.of_figure(draw_states(sources), "visited states, in the two directions in which they vary most"),
    ]
    return [Section(title, lines=lines, pictures=pictures)]


def _demonstrations(run: ControlResult, task: Task) -> tuple[Demonstrations | None, list[str]]:
    """They may be gone since."""
    try:
        return load_data(run.config, task).demonstrations, []
    except DataError as error:
        return None, [f"Demonstrations are not shown: {error}"]


def _steps(label: str, episodes: Demonstrations, reward: Network) -> StepRewards:
    assert episodes.rewards is not None
    learned = reward(episodes.observations, episodes.actions)[:, 0]
    return StepRewards(label, episodes.observations, learned, episodes.rewards)


def _frames(run: ControlResult) -> list[Section]:
    if not run.is_finished:
        return []
    with tempfile.TemporaryDirectory() as folder:
        found, missing = draw(run.folder, Path(folder))
    pictures = [Picture.of_bytes(content, "gif", name) for name, content in sorted(found.items(), reverse=True)]
    return [Section(f"An episode ({run.config.name})", lines=[missing] if missing else [], pictures=pictures)]


def _table(runs: Sequence[ControlResult]) -> Section:
    rows = [["run", "method", "seed", "true return", "deviation", "correlation", "environment steps"]]
    for run in runs:
        results = run.results or {}
        correlated = results.get("reward_correlation")
        steps = next((f"{int(record['env_steps']):,}" for record in reversed(run.records) if "env_steps" in record), "")
        rows.append(
            [
                run.config.name,
                run.config.method,
                str(run.config.seed),
                f"{results['return_mean']:,.1f}" if results else "not finished",
                f"{results['return_std']:,.1f}" if results else "",
                "" if correlated is None else f"{correlated:.3f}",
                steps,
            ]
        )
    return Section("Runs", table=rows)

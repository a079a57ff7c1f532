"""`rayalign control expert`: a policy on the true reward, the best policy, and the data that are rolled out from it."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from rayalign.config.control import ControlConfig
from rayalign.config.load import dump_config
from rayalign.control.alternation import Alternation
from rayalign.control.data import ControlData, observation_scale
from rayalign.control.demonstrations import Demonstrations, save_demonstrations
from rayalign.control.environments import Task
from rayalign.control.evaluation import Act, measure_return, random_act, roll_out
from rayalign.control.folder import DONE_FILE, run_folder
from rayalign.control.policies import SavedPolicy, save_network
from rayalign.control.preferences import Preferences, save_preferences
from rayalign.control.train import ControlRun, opened_run, task_of
from rayalign.errors import Stopped, UserError
from rayalign.storage.aside import write_json
from rayalign.storage.differences import differences
from rayalign.storage.run_folder import make_folder, write_config
from rayalign.telemetry.progress import Progress

STAGE = "expert"
FIRST_RESET = 20_000  # of demonstrations: none is one of those that policies are measured on
NOT_RESUMED = "asked to stop; an expert has no checkpoints: the same command begins again"
OF_AN_EXPERT = {"seed", "environment", "policy", "expert"}  # settings that its data follow from
NUM_RANDOM = 2  # episodes of random actions: they set the scale of observations, and are the lowest tier of pairs


@dataclass(frozen=True)
class Look:
    """The policy after so many steps, and the true return that it had."""

    num_steps: int
    mean_return: float
    policy: SavedPolicy


def make_expert(config: ControlConfig) -> Path:
    """Trains, keeps the best, and writes demonstrations, tiers and preferences into RUN/expert; returns that folder."""
    task = task_of(config)
    if config.expert.num_preferences and config.expert.segment_length > task.horizon:
        raise UserError(
            f"expert.segment_length: {config.expert.segment_length} steps, and episodes of {task.environment} have "
            f"{task.horizon}; lower it"
        )
    folder = run_folder(config)
    settings = config.model_dump(mode="json", include=OF_AN_EXPERT)
    if _is_there(folder / STAGE, settings, config):
        Progress(config.telemetry.progress, sys.stderr).say(f"{STAGE}: finished before, kept")
        return folder / STAGE
    with opened_run(config, folder, task, ControlData()) as run:
        make_folder(folder / STAGE)
        (folder / STAGE / DONE_FILE).unlink(missing_ok=True)
        write_config(folder / STAGE, dump_config(config))
        run.tracker.keep(STAGE, 0)
        random = roll_out(config.environment, task, random_act(task, config.seed), NUM_RANDOM, FIRST_RESET - NUM_RANDOM)
        looks = _train(run, random)
        place = _write(run, looks, random)
        write_json(place / DONE_FILE, settings)
        return place


def _is_there(place: Path, settings: dict[str, Any], config: ControlConfig) -> bool:
    """Whether these data were made before. Raises UserError where others were, which runs may have learned from."""
    if config.resume == "anew" or not (place / DONE_FILE).exists():
        return False
    try:
        before = json.loads((place / DONE_FILE).read_text(encoding="utf-8"))
        changed = differences(before, settings)
    except (ValueError, AttributeError):
        raise UserError(f"{place / DONE_FILE}: cannot be read; set resume=anew to make the data again") from None
    if changed:
        raise UserError(
            f"{place}: was made with another {', '.join(changed)}; set name= for other data, or resume=anew to make these "
            "again and lose them"
        )
    return True


def _train(run: ControlRun, random: Demonstrations) -> list[Look]:
    """A look at the policy every so often, until the steps or the seconds are used up."""
    expert = run.config.expert
    rounds = -(-expert.steps // run.config.policy.steps_per_round)  # a schedule of learning rates asks for the end
    config = run.config.model_copy(update={"rounds": rounds})
    scale = observation_scale(config, random.observations)
    alternation = Alternation(config, run.task, ControlData(), scale, None)
    looks: list[Look] = []
    begun, due = time.monotonic(), 0
    try:
        with run.progress.stage(STAGE, total=expert.steps) as bar:
            if not alternation.warm_up(run.is_stopping):
                raise Stopped(NOT_RESUMED)
            while alternation.session.num_steps < expert.steps and time.monotonic() - begun < expert.max_s:
                numbers = alternation.policy_steps(lambda num: bar.update(advance=num), run.is_stopping)
                if numbers is None:
                    raise Stopped(NOT_RESUMED)
                if alternation.session.num_steps >= due:
                    due = alternation.session.num_steps + expert.evaluate_every
                    looks.append(_look(run, alternation))
                    bar.update(note={"return": looks[-1].mean_return, "best": _best(looks).mean_return})
                    found = {f"policy/{name}": value for name, value in numbers.items()}
                    run.tracker.log(
                        STAGE, None, looks[-1].num_steps, found | {"true/return_mean": looks[-1].mean_return}
                    )
            if alternation.session.num_steps < expert.steps:
                run.progress.say(f"expert.max_s: ended after {alternation.session.num_steps} of {expert.steps} steps")
            if not looks or looks[-1].num_steps < alternation.session.num_steps:
                looks.append(_look(run, alternation))
    finally:
        alternation.close()
    return looks


def _look(run: ControlRun, alternation: Alternation) -> Look:
    policy, look = alternation.policy(), run.config.evaluation
    found = measure_return(run.config.environment, run.task, policy.act, look.num_episodes, look.seed)
    return Look(alternation.session.num_steps, found, policy)


def _best(looks: list[Look]) -> Look:
    return max(looks, key=lambda look: look.mean_return)


def _write(run: ControlRun, looks: list[Look], random: Demonstrations) -> Path:
    """The best policy as `policy.safetensors` and `demonstrations.npz`, a tier of share 0.5 as `tier_50.npz`, pairs."""
    config, task, place = run.config, run.task, run.folder / STAGE
    place.mkdir(parents=True, exist_ok=True)
    best = _best(looks)
    save_network(place / "policy.safetensors", best.policy.network, task)
    tiers = {"demonstrations": best}
    tiers |= {f"tier_{round(100 * share)}": _nearest(looks, share) for share in config.expert.tiers}
    told: dict[str, dict[str, float]] = {}
    sources: list[Demonstrations] = [random]
    for number, (name, look) in enumerate(tiers.items()):
        act = _noisy(look.policy.act, task, config.expert.action_noise, config.seed + number)
        episodes = roll_out(config.environment, task, act, config.expert.num_trajectories, FIRST_RESET)
        save_demonstrations(place / f"{name}.npz", episodes, task)
        told[name] = {"return_mean": episodes.mean_return(), "steps_trained": look.num_steps}
        sources.append(episodes)
    if config.expert.num_preferences:
        save_preferences(place / "preferences.npz", _preferences(run, sources), task)
    random_return = random.mean_return()
    write_json(place / "results.json", {"environment": task.environment, "random_return": random_return, "tiers": told})
    return place


def _nearest(looks: list[Look], share: float) -> Look:
    """The look whose return is nearest to `share` of the way from the first to the best."""
    first, best = looks[0].mean_return, _best(looks).mean_return
    wanted = first + share * (best - first)
    return min(looks, key=lambda look: abs(look.mean_return - wanted))


def _noisy(act: Act, task: Task, noise: float, seed: int) -> Act:
    if not noise:
        return act
    rng = np.random.default_rng(seed)
    at_random = random_act(task, seed)

    def with_noise(observation: np.ndarray) -> np.ndarray:
        if task.is_choice:
            return at_random(observation) if rng.random() < noise else act(observation)
        action = act(observation)
        return np.asarray(action + noise * rng.normal(size=action.shape), np.float32)

    return with_noise


def _preferences(run: ControlRun, sources: list[Demonstrations]) -> Preferences:
    """Pairs of segments from any two sources, answered by their true returns.

    Raises UserError where no episode is as long as a segment.
    """
    expert, rng = run.config.expert, np.random.default_rng(run.config.seed)
    long = [source for source in sources if source.lengths.max() >= expert.segment_length]
    if not long:
        longest = max(int(source.lengths.max()) for source in sources)
        raise UserError(
            f"expert.segment_length: {expert.segment_length} steps, and the longest episode has {longest}; lower it. "
            f"The demonstrations are written, to {run.folder / STAGE}"
        )
    found = [[_segment(long, expert.segment_length, rng) for _ in range(2)] for _ in range(expert.num_preferences)]
    for pair in found:
        margin = pair[0][2] - pair[1][2]
        certain = float(margin >= 0)
        likely = float(expit(margin / expert.label_temperature)) if expert.label_temperature else certain
        if rng.random() >= likely:
            pair.reverse()
    observations = np.stack([[segment[0] for segment in pair] for pair in found])
    actions = np.stack([[segment[1] for segment in pair] for pair in found])
    return Preferences(observations, actions)


def _segment(
    sources: list[Demonstrations], length: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """Steps of one episode that is as long as that, and their true return."""
    source = sources[rng.integers(len(sources))]
    assert source.rewards is not None
    episode = int(rng.choice(np.flatnonzero(source.lengths >= length)))
    begin = int(source.lengths[:episode].sum()) + int(rng.integers(source.lengths[episode] - length + 1))
    rows = slice(begin, begin + length)
    return source.observations[rows], source.actions[rows], float(source.rewards[rows].sum())

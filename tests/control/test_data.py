"""Demonstrations and preferences: written, read back, and one clear line for each thing that can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from rayalign.config.control import EnvironmentConfig
from rayalign.control.demonstrations import load_demonstrations, save_demonstrations
from rayalign.control.environments import Task, look_at
from rayalign.control.preferences import load_preferences
from rayalign.errors import DataError, UserError
from tests.control.worlds import demonstrate, pendulum, some_preferences, write_demonstrations, write_preferences

Change = Callable[[dict[str, np.ndarray]], object]
HOPPER = Path(__file__).resolve().parents[3] / "shared" / "data" / "mujoco" / "hopper_v5_expert.npz"


def changed(path: Path, change: Change) -> Path:
    """The same file with its arrays changed."""
    with np.load(path) as file:
        arrays = {name: file[name].copy() for name in file.files}
    change(arrays)
    np.savez(path, **arrays)
    return path


def put(name: str, value: object) -> Change:
    return lambda arrays: arrays.update({name: np.asarray(value)})


def put_at(name: str, place: tuple[int, ...], value: float) -> Change:
    return lambda arrays: arrays[name].__setitem__(place, value)


@pytest.fixture(scope="module")
def task() -> Task:
    return pendulum()


def test_demonstrations_come_back(tmp_path: Path, task: Task) -> None:
    path = write_demonstrations(tmp_path / "demos.npz", 3)
    read, made = load_demonstrations(path, task), demonstrate(3)
    assert np.array_equal(read.observations, made.observations)
    assert np.abs(read.actions - made.actions).max() < 1e-6
    with np.load(path) as file:
        assert np.abs(file["actions"]).max() > 1.5  # in the file they are torques
    assert read.returns() == pytest.approx(made.returns())
    two = load_demonstrations(path, task, 2)
    assert (two.num, len(two.observations)) == (2, 400)


def test_preferences_come_back(tmp_path: Path, task: Task) -> None:
    path = write_preferences(tmp_path / "pairs.npz", 7)
    read, made = load_preferences(path, task), some_preferences(7)
    assert np.array_equal(read.observations, made.observations)
    assert np.abs(read.actions - made.actions).max() < 1e-6
    assert load_preferences(path, task, 4).num == 4


def test_unit_actions_are_taken_where_the_file_says_so(tmp_path: Path, task: Task) -> None:
    """Both scales of one file give the same actions."""
    path = write_demonstrations(tmp_path / "demos.npz", 2)
    before = load_demonstrations(path, task).actions
    changed(path, lambda a: a.update(actions=a["actions"] / 2, action_scale=np.array("unit")))
    assert np.abs(load_demonstrations(path, task).actions - before).max() < 1e-6
    changed(path, put("action_scale", "environment"))  # said of actions that only look scaled, it is believed
    assert np.abs(load_demonstrations(path, task).actions).max() == pytest.approx(0.5)


BAD_DEMONSTRATIONS: dict[str, tuple[Change, str]] = {
    "environment": (put("environment", "Hopper-v5"), "made in Hopper-v5, and environment.id is Pendulum-v1"),
    "missing": (lambda arrays: arrays.pop("lengths"), "has no array 'lengths'"),
    "observations": (put("observations", np.zeros((400, 4))), "observations has shape (400, 4), expected (any, 3)"),
    "actions": (put("actions", np.zeros((400, 2))), "actions has shape (400, 2), expected (400, 1)"),
    "rows": (put("lengths", [200, 100]), "observations has 400 rows, and the lengths add up to 300"),
    "lengths": (put("lengths", [200.5, 199.5]), "lengths is not a list"),
    "nan": (put_at("observations", (7, 2), np.nan), "observations[7, 2] is nan (1 such numbers)"),
    "infinite": (put_at("actions", (3, 0), np.inf), "actions[3, 0] is inf"),
    "text": (put("observations", np.full((400, 3), "a")), "expected numbers"),
    "bounds": (put_at("actions", (5, 0), 2.5), "actions[5, 0] is 2.5, outside [-2, 2] of Pendulum-v1"),
    "unit in env scale": (lambda a: (put("actions", a["actions"] / 2)(a), a.pop("action_scale")), "as if scaled to [-1, 1]"),
    "env in unit scale": (put("action_scale", "unit"), "outside [-1, 1]"),
    "scale": (put("action_scale", "percent"), "action_scale is 'percent'"),
    "horizon": (put("lengths", [150, 250]), "episodes are of 150 to 250 steps"),
    "shorter": (put("lengths", [100] * 4), "episodes are of 100 steps, and those of Pendulum-v1 run for 200"),
    "beyond float32": (put("observations", np.full((400, 3), 1e39)), "observations[0, 0] is 1e+39"),
    "terminated": (put("terminated", np.arange(400) == 399), "1 episodes were ended by the environment"),
}


@pytest.mark.parametrize("case", BAD_DEMONSTRATIONS)
def test_bad_demonstrations(case: str, tmp_path: Path, task: Task) -> None:
    change, told = BAD_DEMONSTRATIONS[case]
    path = changed(write_demonstrations(tmp_path / "demos.npz", 2), change)
    with pytest.raises(DataError) as caught:
        load_demonstrations(path, task)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and told in line and "\n" not in line


BAD_PREFERENCES: dict[str, tuple[Change, str]] = {
    "none": (lambda arrays: arrays.update({k: v[:0] for k, v in arrays.items() if v.ndim}), "holds no pairs"),
    "one side": (lambda arrays: arrays.pop("rejected_actions"), "has no array 'rejected_actions'"),
    "fewer": (lambda a: a.update(rejected_actions=a["rejected_actions"][:3]), "segments of one length"),
    "environment": (put("environment", "Hopper-v5"), "made in Hopper-v5"),
    "shape": (put("chosen_observations", np.zeros((5, 20, 7))), "chosen_observations has shape (5, 20, 7)"),
    "nan": (put_at("rejected_observations", (1, 2, 0), np.nan), "rejected_observations[1, 2, 0] is nan"),
    "bounds": (put_at("chosen_actions", (0, 0, 0), -3), "chosen_actions[0, 0, 0] is -3, outside [-2, 2]"),
    "scale": (
        lambda a: [a.pop("action_scale"), *(put(f"{x}_actions", np.ones((5, 20, 1)))(a) for x in ("chosen", "rejected"))],
        "scaled to",
    ),
}


@pytest.mark.parametrize("case", BAD_PREFERENCES)
def test_bad_preferences(case: str, tmp_path: Path, task: Task) -> None:
    change, told = BAD_PREFERENCES[case]
    path = changed(write_preferences(tmp_path / "pairs.npz", 5), change)
    with pytest.raises(DataError) as caught:
        load_preferences(path, task)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and told in line and "\n" not in line


@pytest.mark.parametrize("content", [None, b"", b"not an archive", b"PK\x03\x04torn", "objects", "one array"])
def test_files_that_are_none(content: bytes | str | None, tmp_path: Path, task: Task) -> None:
    path = tmp_path / "demos.npz"
    if content == "objects":
        np.savez(path, observations=np.array([{}]), actions=np.zeros(1), lengths=np.ones(1, dtype=int))
    elif content == "one array":
        np.save(path.with_suffix(".npy"), np.zeros(3))
        path.with_suffix(".npy").rename(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"demos\.npz: (no such file|not an npz file)"):
        load_demonstrations(path, task)


def test_a_text_file_is_told_as_what_it_is(tmp_path: Path, task: Task) -> None:
    """numpy takes it for a pickle, and advises to load it as one."""
    (tmp_path / "demos.npz").write_text("hello")
    with pytest.raises(DataError, match=r"demos\.npz: not an npz file of plain arrays \(it is no zip file\)"):
        load_demonstrations(tmp_path / "demos.npz", task)


def test_a_damaged_byte_is_told_wherever_it_lies(tmp_path: Path, task: Task) -> None:
    """Or does no harm: what a compressed file makes of it differs from byte to byte."""
    path = write_demonstrations(tmp_path / "demos.npz", 1)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    told = 0
    for place in rng.integers(0, len(whole), 150):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            load_demonstrations(path, task)
        except DataError as error:
            told += 1
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert told > 75


@pytest.mark.parametrize("ended", [np.zeros(2), np.full(400, "no"), np.full(400, np.nan), np.array(True), np.full(400, 2)])
def test_ends_that_are_none(ended: np.ndarray, tmp_path: Path, task: Task) -> None:
    path = changed(write_demonstrations(tmp_path / "demos.npz", 2), put("terminated", ended))
    with pytest.raises(DataError, match=r"demos\.npz: terminated"):
        load_demonstrations(path, task)


def test_more_than_there_is(tmp_path: Path, task: Task) -> None:
    with pytest.raises(DataError, match="has 2 episodes, and demonstrations.num asks for 3"):
        load_demonstrations(write_demonstrations(tmp_path / "d.npz", 2), task, 3)
    with pytest.raises(DataError, match="has 2 pairs, and preferences.num asks for 3"):
        load_preferences(write_preferences(tmp_path / "p.npz", 2), task, 3)


BAD_ENVIRONMENTS: dict[str, tuple[dict[str, object], str]] = {
    "namespace": ({"id": "nowhere/Pendulum-v1"}, "environment.id"),
    "near": ({"id": "Pendulm-v1"}, "did you mean Pendulum-v1"),
    "options": ({"id": "Pendulum-v1", "options": {"gravity": 10}}, "environment.options: Pendulum-v1"),
    "several choices": ({"id": "rayalign-tests/Buttons-v0"}, "only vectors with bounds, and choices numbered from 0"),
    "scale": ({"id": "Pendulum-v1", "observation_scale": [1.0]}, "observation_scale: 1 numbers"),
    "of an older package": ({"id": "Hopper-v3"}, "environment.id: Hopper-v3"),
    "no such model": ({"id": "Hopper-v5", "options": {"xml_file": "nope.xml"}}, "environment.options: Hopper-v5 does not"),
}


class Buttons(gymnasium.Env[np.ndarray, np.ndarray]):
    """Several choices at once, which no policy here gives."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))
    action_space = gymnasium.spaces.MultiDiscrete([2, 3])


gymnasium.register("rayalign-tests/Buttons-v0", Buttons, max_episode_steps=10)


@pytest.mark.parametrize("case", BAD_ENVIRONMENTS)
def test_bad_environments(case: str) -> None:
    values, told = BAD_ENVIRONMENTS[case]
    with pytest.raises(UserError) as caught:
        look_at(EnvironmentConfig.model_validate(values))
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_horizon_that_varies_is_refused_unless_asked_for() -> None:
    """Hopper ends an episode when it falls; with the reason, and the setting that keeps it going."""
    pytest.importorskip("mujoco")
    with pytest.raises(UserError, match="sign alone .*terminate_when_unhealthy=false"):
        look_at(EnvironmentConfig(id="Hopper-v5"))
    assert look_at(EnvironmentConfig(id="Hopper-v5", allow_variable_horizon=True)).horizon == 1000
    assert look_at(EnvironmentConfig(id="Hopper-v5", options={"terminate_when_unhealthy": False})).horizon == 1000
    assert look_at(EnvironmentConfig(id="HalfCheetah-v5")).horizon == 1000


@pytest.fixture(scope="module")
def cartpole() -> Task:
    return look_at(EnvironmentConfig(id="CartPole-v1", allow_variable_horizon=True))


def write_choices(path: Path, **changes: object) -> Path:
    """Two episodes of CartPole-v1, of 3 and 2 steps, with what was observed after the last action of each."""
    arrays = {
        "observations": np.arange(28, dtype=np.float32).reshape(7, 4),
        "actions": np.array([0, 1, 1, 0, 1]),
        "lengths": np.array([3, 2]),
    }
    np.savez(path, **(arrays | {name: np.asarray(value) for name, value in changes.items()}))
    return path


def test_choices_are_whole_numbers_in_the_file_and_marked_places_in_memory(tmp_path: Path, cartpole: Task) -> None:
    read = load_demonstrations(write_choices(tmp_path / "c.npz"), cartpole)
    assert read.actions.tolist() == [[1, 0], [0, 1], [0, 1], [1, 0], [0, 1]]
    assert read.observations[:, 0].tolist() == [0, 4, 8, 16, 20]  # without 12 and 24, after which nothing was done
    save_demonstrations(tmp_path / "again.npz", read, cartpole)
    again = load_demonstrations(tmp_path / "again.npz", cartpole)
    assert np.array_equal(again.actions, read.actions) and np.array_equal(again.observations, read.observations)


@pytest.mark.parametrize(
    ("actions", "told"),
    [
        ([0, 1, 2, 0, 1], r"actions\[2\] is 2, and an action of CartPole-v1 is a whole number from 0 to 1 \(1 such"),
        ([0, 1, 0.5, 0, 1], "actions holds float64, and an action of CartPole-v1 is a whole number from 0 to 1"),
        ([[0, 1]] * 5, r"actions has shape \(5, 2\), expected \(5\)"),
    ],
)
def test_what_is_no_choice(tmp_path: Path, cartpole: Task, actions: object, told: str) -> None:
    with pytest.raises(DataError, match=told):
        load_demonstrations(write_choices(tmp_path / "c.npz", actions=actions), cartpole)


def test_the_horizon_is_checked_of_the_episodes_that_are_asked_for(tmp_path: Path, task: Task) -> None:
    path = changed(write_demonstrations(tmp_path / "d.npz", 2), put("lengths", [200, 150]))
    path = changed(path, lambda arrays: [put(n, arrays[n][:350])(arrays) for n in ("observations", "actions", "rewards")])
    assert load_demonstrations(path, task, 1).num == 1
    with pytest.raises(DataError, match="episodes are of 150 to 200 steps"):
        load_demonstrations(path, task)


@pytest.mark.data
@pytest.mark.skipif(not HOPPER.exists(), reason="needs shared/data/mujoco beside the checkout")
def test_recorded_experts_are_read() -> None:
    pytest.importorskip("mujoco")
    task = look_at(EnvironmentConfig(id="Hopper-v5", options={"terminate_when_unhealthy": False}))
    read = load_demonstrations(HOPPER, task, 1)
    returns = read.returns()
    assert returns is not None and 3700 < returns[0] < 3760

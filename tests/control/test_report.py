"""The report of runs: a file that shows what it should and needs no network, also of a run that died in the middle."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayalign.config.control import EnvironmentConfig
from rayalign.control.environments import make_environment
from rayalign.control.frames import draw, placer
from rayalign.control.report import read_result, write_report
from rayalign.control.train import train
from rayalign.errors import UserError
from tests.conftest import run_rayalign
from tests.control.conftest import MakeConfig

URI = re.compile(r'src="data:image/(\w+);base64,([^"]+)"')


def pictures_of(page: str) -> list[Image.Image]:
    return [Image.open(BytesIO(base64.b64decode(content))) for _, content in URI.findall(page)]


@pytest.fixture
def finished(small: MakeConfig) -> Path:
    return train(small(method="aihf", evaluation={"every": 1, "num_episodes": 2}))


def test_a_run_of_language_models_has_its_own_report(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: x\nstages: []\n")
    with pytest.raises(UserError, match="a run of language models; use rayalign report"):
        write_report([tmp_path])


def test_a_finished_run_shows_its_pictures_and_loads_nothing(finished: Path) -> None:
    done = run_rayalign("control", "report", str(finished))
    assert (done.returncode, done.stdout) == (0, f"report: {finished / 'report.html'}\n"), done.stderr
    page = (finished / "report.html").read_text()
    shown = pictures_of(page)
    assert [picture.format for picture in shown] == ["PNG"] * 7 + ["GIF"] * 2
    assert all(np.asarray(picture.convert("L")).std() > 5 for picture in shown)  # none is blank
    assert len(page) < 3e6 and not re.search(r"(?:src|href)=.(?!data:)", page)
    results = read_result(finished).results
    assert results is not None and f"a true return of {results['return_mean']:,.1f}" in page
    assert "the demonstrations have -" in page and "correlate at" in page


def test_runs_that_differ_in_their_seeds_are_one_curve_with_a_band(finished: Path, small: MakeConfig) -> None:
    changes = {"method": "aihf", "evaluation": {"every": 1, "num_episodes": 2}}
    other = train(small(name="second", seed=1, **changes))
    third = train(small(name="third", **changes, reward={"inputs": "state"}))
    place = write_report([finished, other, third])
    page = place.read_text()
    assert place == finished.parent / "report.html"
    assert "<title>Pendulum-v1: small (2 seeds), third</title>" in page
    assert "2 seeds)" in page and page.count("<td>aihf</td>") == 3


def test_a_run_that_died_is_shown_as_far_as_it_came(finished: Path) -> None:
    for name in ("results.json", "policy.safetensors", "reward.safetensors"):
        (finished / name).unlink()
    with (finished / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "control", "rou')
    page = write_report([finished]).read_text()
    assert "small: not finished; 2 of 2 rounds are done." in page
    assert len(pictures_of(page)) == 5  # its curves
    (finished / "metrics.jsonl").unlink()
    page = write_report([finished], finished / "other.html").read_text()
    assert "not finished; 0 of 2 rounds" in page and "No round was recorded." in page


def test_demonstrations_that_are_gone_and_a_renderer_that_is_missing_are_told(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demonstrations.npz").unlink()
    (tmp_path / "without" / "pygame").mkdir(parents=True)
    (tmp_path / "without" / "pygame" / "__init__.py").write_text('raise ImportError("no display here")')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "without"))
    page = write_report([finished]).read_text()
    assert "Demonstrations are not shown: " in page and "demonstrations.npz: no such file" in page
    assert re.search(r"not drawn: [^<\n]*pygame[^<\n]*MUJOCO_GL=egl, osmesa or glfw", page)
    assert all(picture.format == "PNG" for picture in pictures_of(page))


def test_what_is_no_run(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(UserError, match="cannot be written .*; give another --out"):
        write_report([finished], finished / "config.yaml" / "report.html")
    with pytest.raises(UserError, match="holds no config.yaml; give the folder of a control run"):
        write_report([tmp_path / "nowhere"])
    other = tmp_path / "other"
    other.mkdir()
    text = (finished / "config.yaml").read_text().replace("Pendulum-v1", "CartPole-v1")
    (other / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="runs of CartPole-v1 and Pendulum-v1; give runs of one environment"):
        write_report([finished, other])
    (finished / "metrics.jsonl").write_text("{\n")
    with pytest.raises(UserError, match="its metrics or results cannot be read"):
        write_report([finished])


@pytest.mark.parametrize("name", ["Pendulum-v1", "CartPole-v1", "Hopper-v5", "HalfCheetah-v5", "Ant-v5"])
def test_an_observation_puts_the_simulator_into_its_state(name: str) -> None:
    """After the same actions from there it observes what it did the first time."""
    if name.endswith("v5"):
        pytest.importorskip("mujoco")
    config = EnvironmentConfig(id=name, allow_variable_horizon=True)
    first, second = make_environment(config), make_environment(config)
    first.reset(seed=1)
    first.action_space.seed(0)
    for _ in range(4):
        observation = first.step(first.action_space.sample())[0]
    place = placer(second)
    assert place is not None
    second.reset(seed=2)
    place(observation)
    action = first.action_space.sample()
    size = 27 if name == "Ant-v5" else None  # without the forces of contact
    later, replayed = (environment.step(action)[0][:size] for environment in (first, second))
    assert np.abs(later - replayed).max() < 1e-4
    for environment in (first, second):
        environment.close()


def test_mujoco_is_drawn_offscreen_or_says_why_not(
    small: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mujoco")
    rng = np.random.default_rng(0)
    arrays = {"observations": rng.normal(size=(1000, 11)), "actions": rng.uniform(-0.9, 0.9, (1000, 3))}
    np.savez(tmp_path / "hopper.npz", **arrays, lengths=np.array([1000]))
    folder = train(
        small(
            environment={"id": "Hopper-v5", "options": {"terminate_when_unhealthy": False}, "observation_scale": None},
            method="behaviour_cloning",
            demonstrations={"path": str(tmp_path / "hopper.npz")},
            policy={"cloning_epochs": 1},
            evaluation={"num_episodes": 1},
        )
    )
    monkeypatch.setenv("MUJOCO_GL", "nothing")
    found, told = draw(folder, tmp_path)
    assert found == {} and told is not None and told.startswith("not drawn: ") and "\n" not in told
    monkeypatch.delenv("MUJOCO_GL")
    bare = "import gymnasium; e = gymnasium.make('Hopper-v5', render_mode='rgb_array'); e.reset(); e.render()"
    if subprocess.run([sys.executable, "-c", bare], env=os.environ | {"MUJOCO_GL": "egl"}, capture_output=True).returncode:
        pytest.skip("MuJoCo cannot draw on this machine, ours aside")
    found, told = draw(folder, tmp_path)
    assert told is None and set(found) == {"policy", "demonstrations"}
    (tmp_path / "hopper.npz").unlink()
    (tmp_path / "again").mkdir()
    found, told = draw(folder, tmp_path / "again")
    assert told is None and set(found) == {"policy"}

"""Episodes as animations: of a policy, and of demonstrations, whose observations tell the simulator's state.

Drawing is done in a process of its own (`python -m rayalign.control.frames RUN OUT`), since graphics drivers crash.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rayalign.config.control import ControlConfig
from rayalign.config.load import load_config_as
from rayalign.control.data import load_data
from rayalign.control.demonstrations import Demonstrations
from rayalign.control.environments import look_at, make_environment
from rayalign.control.folder import POLICY_FILE
from rayalign.control.policies import SavedPolicy, load_network
from rayalign.errors import DataError, RayalignError
from rayalign.storage.run_folder import CONFIG_FILE

FRAMES = 100  # of an episode at most
WIDTH = 240  # pixels
FRAME_MS = 40
LIMIT_S = 300.0

Place = Callable[[np.ndarray], None]


def draw(folder: Path, out: Path) -> tuple[dict[str, bytes], str | None]:
    """GIFs by name, "policy" and "demonstrations", of a finished run; and one line on why any is missing."""
    environment = dict(os.environ)
    if "DISPLAY" not in environment:
        environment.setdefault("MUJOCO_GL", "egl")
        environment.setdefault("SDL_VIDEODRIVER", "dummy")
    command = [sys.executable, "-m", "rayalign.control.frames", str(folder), str(out)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        told = (done.stderr.strip() or f"the renderer ended with exit code {done.returncode}").splitlines()[-1]
        failed = done.returncode != 0
    except subprocess.TimeoutExpired:
        told, failed = f"nothing was drawn within {LIMIT_S:g} s", True
    found = {file.stem: file.read_bytes() for file in sorted(out.glob("*.gif"))}
    if not failed:
        return found, None
    return found, f"not drawn: {told[:200]} (MuJoCo draws by MUJOCO_GL=egl, osmesa or glfw; Pendulum and CartPole by pygame)"


def animate(folder: Path, out: Path) -> None:
    """Writes policy.gif, and demonstrations.gif where the simulator can be put into a state."""
    config = load_config_as(ControlConfig, folder / CONFIG_FILE)
    task = look_at(config.environment)
    environment = make_environment(config.environment, render_mode="rgb_array")
    try:
        policy = SavedPolicy(load_network(folder / POLICY_FILE, task), task.is_choice)
        every = -(-task.horizon // FRAMES)
        frames = []
        observation, _ = environment.reset(seed=config.evaluation.seed)
        for step in range(task.horizon):
            if step % every == 0:
                frames.append(environment.render())
            action = policy.act(np.asarray(observation, np.float32))
            observation, _, terminated, truncated, _ = environment.step(task.to_environment(action))
            if terminated or truncated:
                break
        _write(out / "policy.gif", frames)
        place = placer(environment)
        try:
            demonstrations = load_data(config, task).demonstrations
        except DataError:  # they are gone, which the report says where it would show them
            return
        if demonstrations is not None and place is not None:
            _write(out / "demonstrations.gif", _replayed(environment, place, demonstrations.first(1), every))
    finally:
        environment.close()


def _replayed(environment: Any, place: Place, episode: Demonstrations, every: int) -> list[np.ndarray]:
    environment.reset(seed=0)
    frames = []
    for step, observation in enumerate(episode.observations):
        place(observation)
        if step % every == 0:
            frames.append(environment.render())
    return frames


def placer(environment: Any) -> Place | None:
    """What puts a simulator into the state that an observation tells; None where it does not tell it.

    MuJoCo's observations leave out how far the body has come: it is summed up from its velocity.
    """
    inner = environment.unwrapped
    parts = getattr(inner, "observation_structure", None)
    if parts is not None:
        skipped, come = int(parts["skipped_qpos"]), np.zeros(int(parts["skipped_qpos"]))

        def place_body(observation: np.ndarray) -> None:
            at, speed = np.split(observation[: parts["qpos"] + parts["qvel"]].astype(np.float64), [parts["qpos"]])
            come[:] += speed[:skipped] * inner.dt
            inner.set_state(np.concatenate([come, at]), speed)

        return place_body
    kind = type(inner).__name__
    if kind not in ("PendulumEnv", "CartPoleEnv"):
        return None

    def place(observation: np.ndarray) -> None:
        numbers = observation.astype(np.float64)
        inner.state = np.array([np.arctan2(numbers[1], numbers[0]), numbers[2]]) if kind == "PendulumEnv" else numbers

    return place


def _write(path: Path, frames: list[np.ndarray]) -> None:
    pictures = []
    for frame in frames:
        picture = Image.fromarray(frame)
        picture = picture.resize((WIDTH, round(WIDTH * picture.height / picture.width)))
        pictures.append(picture.quantize(64))
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=FRAME_MS, loop=0, optimize=True)


if __name__ == "__main__":
    try:
        animate(Path(sys.argv[1]), Path(sys.argv[2]))
    except RayalignError as error:
        sys.exit(str(error))

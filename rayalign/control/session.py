"""RLlib at work for one run: env runners that sample, and learners that hold policy and reward.

Without remote runners and learners everything is in this process and Ray is not started, for a debugger as for two cores;
with them the same classes are Ray actors of a cluster.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from ray.exceptions import RayError
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.tune.registry import register_env

from rayalign.actors.deadline import failure
from rayalign.config.control import ControlConfig
from rayalign.control.algorithm import ENVIRONMENT, algorithm_config
from rayalign.control.environments import HORIZON_REASON, Task, make_training_environment
from rayalign.control.learner import POLICY, SKIPPED
from rayalign.control.networks import REWARD
from rayalign.control.policies import Network
from rayalign.errors import Diverged, RayalignError, UserError, WorkerLost

SKIPS_ALLOWED = 3
CALL_S = 600.0  # of any call to RLlib's actors
CLOSE_S = 30.0
T = TypeVar("T")
METRICS = {
    POLICY: ("critic_loss", "q_mean", "entropy", "entropy_coef", "clipped_frac", "kl_from_sampler", "cloning_loss"),
    REWARD: (
        "margin_demo_minus_agent",
        "demo_mean",
        "agent_mean",
        "preference_nll",
        "preference_accuracy",
        "clamped_frac",
        "ensemble_std",
        "slope_penalty",
    ),
}


def _training_environment(config: ControlConfig, task: Task) -> Any:
    """With its episodes cut where the policy's are to be, but never later than it does so itself."""
    cut = config.policy.max_episode_steps
    at = None if cut is None else min(cut, task.horizon)
    return make_training_environment(config.environment, at, config.policy.max_unhealthy_steps)


class RlSession:
    """Samples of the policy in, updates of policy and reward out. Close it."""

    def __init__(
        self, config: ControlConfig, task: Task, scale: np.ndarray, *, coefficients: tuple[float, float] | None
    ) -> None:
        """
        Args:
            scale: [O], what observations are divided by.
            coefficients: of the demonstrations' and the preferences' mean loss (`joint_coefficients`); None: no reward is
                learned, and the policy follows the environment's.
        """
        for noisy in ("ray.rllib", "ray._common.deprecation"):  # they warn of RLlib's own code at every start
            logging.getLogger(noisy).setLevel(logging.CRITICAL)  # what it raises is told once, by us
        self.task = task
        self._policy = config.policy
        self._num_learners = max(1, config.placement.num_learners)
        self._learns_elsewhere = config.placement.num_learners > 0  # in a process of its own, or several
        self._num_runners, self._is_remote = config.placement.num_env_runners, config.placement.remote
        # RLlib makes torch deterministic, which also fills all memory that is asked for: not for who comes after.
        self._was_deterministic = torch.are_deterministic_algorithms_enabled()
        algorithm = algorithm_config(config, task, scale, coefficients)
        register_env(ENVIRONMENT, lambda _: _training_environment(config, task))
        self._group: EnvRunnerGroup | None = None
        self._local: SingleAgentEnvRunner | None = None
        with warnings.catch_warnings():
            # Of RLlib's own name for the environment, where a process has had a session before.
            warnings.filterwarnings("ignore", message=".*Overriding environment")
            if self._num_runners:
                make = partial(EnvRunnerGroup, config=algorithm, local_env_runner=False)
                self._group = self._ask("start of env runners", make)
                self._of_runners("start", _seed_random_actions)
            else:
                self._local = SingleAgentEnvRunner(config=algorithm, worker_index=0)
                _seed_random_actions(self._local)
        build = partial(algorithm.build_learner_group, rl_module_spec=algorithm.rl_module_spec)
        try:
            self._learners = self._ask("start of learners", build)
        except BaseException:
            self._end_runners()
            raise
        self.num_steps = 0
        self.push_weights()

    @property
    def num_shares(self) -> int:
        """Among how many learners a batch is divided."""
        return self._num_learners

    def sample(self, num: int, *, random: bool = False) -> list[dict[str, np.ndarray]]:
        """At least `num` steps of the policy, or random ones, as pieces of episodes of one environment each.

        Each piece holds obs[B, O], new_obs[B, O], actions[B, A] in [-1, 1], rewards[B], terminateds[B]. Raises UserError
        where an episode ends early and that is not allowed.
        """
        pieces = [self._piece(episode, random) for episode in self._episodes(num, random) if len(episode)]
        self.num_steps += sum(len(piece["rewards"]) for piece in pieces)
        return pieces

    def _episodes(self, num: int, random: bool) -> list[Any]:
        if self._local is not None:
            return _drawn(self._local, num, random)
        each = -(-num // self._num_runners)
        found = self._of_runners("sampling", lambda runner: _drawn(runner, each, random))
        return [episode for episodes in found for episode in episodes]

    def _of_runners(self, what: str, call: Callable[[Any], Any]) -> list[Any]:
        """What each remote env runner gives. Raises WorkerLost for one that died, failed or is late."""
        assert self._group is not None
        try:
            found = self._group.foreach_env_runner(_told(call), local_env_runner=False, timeout_seconds=CALL_S)
        except RayError as error:
            raise failure(error, what) from error
        if len(found) < self._num_runners:
            raise WorkerLost(f"{what}: {len(found)} of {self._num_runners} env runners answered within {CALL_S:g} s")
        for one in found:
            if isinstance(one, RayalignError):
                raise one
        return list(found)

    def _piece(self, episode: Any, random: bool) -> dict[str, np.ndarray]:
        observations = np.asarray(episode.get_observations(), np.float32)
        actions = np.asarray(episode.get_actions())
        ended = np.zeros(len(episode), np.float32)
        ended[-1] = episode.is_terminated
        if episode.is_terminated and not self.task.allow_variable_horizon:
            raise UserError(f"environment: {self.task.environment} ended an episode early, and {HORIZON_REASON}")
        return {
            "obs": observations[:-1],
            "new_obs": observations[1:],
            "actions": self._seen(actions, random),
            "rewards": np.asarray(episode.get_rewards(), np.float32),
            "terminateds": ended,
        }

    def _seen(self, actions: np.ndarray, random: bool) -> np.ndarray:
        """As networks see them. RLlib keeps the policy's own in [-1, 1], but random ones in the environment's scale."""
        if self.task.is_choice:
            return self.task.to_unit(actions)
        vectors = np.asarray(actions, np.float32).reshape(len(actions), -1)
        return np.clip(self.task.to_unit(vectors), -1, 1) if random else vectors

    def advantage_rows(self, pieces: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """PPO's rows of the steps of `sample`, under the newest reward and critic, which all learners have alike."""
        found = self._ask("advantages", lambda: self._of_each(lambda learner: learner.advantage_rows(pieces)))
        return dict(found[0])

    def update_policy(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Updates on rows of several batches: as many as `batch_size` goes into them, in one call."""
        return self._update(POLICY, rows, self._policy.batch_size // self._num_learners)

    def update_reward(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """One step of the reward on the rows of `reward_rows`."""
        return self._update(REWARD, rows, None)

    def _update(self, module: str, rows: Mapping[str, np.ndarray], minibatch: int | None) -> dict[str, float]:
        tensors = SampleBatch({name: torch.from_numpy(array) for name, array in rows.items()})
        batch = MultiAgentBatch({module: tensors}, env_steps=len(tensors))
        timesteps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: self.num_steps}
        results = self._ask(
            f"update of the {module}",
            lambda: self._learners.update(batch=batch, timesteps=timesteps, minibatch_size=minibatch),
        )
        found = [result[module] for result in results if module in result]
        if any(_number(one[SKIPPED]) >= SKIPS_ALLOWED for one in found):
            name, key = ("reward", "reward.optimizer") if module == REWARD else ("policy", "policy")
            raise Diverged(
                f"the {name}'s loss was not finite {SKIPS_ALLOWED} times in a row; lower {key}.learning_rate in a new run "
                "(name=)"
            )
        return {name: float(np.mean([_number(r[name]) for r in found])) for name in METRICS[module] if name in found[0]}

    def begin_as(self, actor: Network) -> None:
        """Gives learners and env runners the actor of a clone.

        Its deviations, which cloning leaves alone, begin where the entropy of a vector is the target's: -1 a dimension.
        """
        state = self.state()
        own = state["learner"]["rl_module"][POLICY]
        num = self.task.action_size
        for name, tensor in actor.tensors.items():
            if name.startswith("layers."):
                _, place, part = name.split(".")
                own[f"actor.{2 * int(place)}.{part}"] = tensor.numpy().copy()  # activations lie between
        last = max(int(name.split(".")[1]) for name in own if name.startswith("actor."))
        own[f"actor.{last}.weight"][num:] = 0.0
        own[f"actor.{last}.bias"][num:] = -1.0 - 0.5 * np.log(2 * np.pi * np.e)
        for name in own:
            if name.startswith("average."):
                own[name] = own[name.replace("average", "actor", 1)].copy()
        self.restore(state)

    def push_weights(self) -> None:
        """Gives the env runners the newest policy."""
        weights = self.weights(POLICY)
        if self._local is not None:
            self._local.set_state({"rl_module": weights})
        else:
            self._of_runners("weights", lambda runner: runner.set_state({"rl_module": weights}))

    def weights(self, module: str) -> dict[str, Any]:
        """A module's parameters, as arrays by name."""
        state = self._ask("weights", lambda: self._learners.get_weights(module_ids=[module]))
        return dict(state[module])

    def of_each_learner(self, module: str) -> list[dict[str, Any]]:
        """As `weights`, of every learner: they should not differ."""
        return self._ask("weights", lambda: self._of_each(lambda learner: learner.module[module].unwrapped().get_state()))

    def _of_each(self, call: Callable[[Any], Any]) -> list[dict[str, Any]]:
        return [dict(result.get()) for result in self._learners.foreach_learner(call)]

    def _ask(self, what: str, call: Callable[[], T], limit_s: float = CALL_S) -> T:
        """What `call` gives; of other processes within the deadline, which RLlib's own calls do not have."""
        if not self._is_remote:
            return call()
        answer: Future[T] = Future()

        def work() -> None:
            try:
                answer.set_result(call())
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                answer.set_exception(error)

        threading.Thread(target=work, daemon=True).start()  # one that hangs does not keep the process from its end
        try:
            return answer.result(limit_s)
        except TimeoutError:
            raise WorkerLost(f"{what}: RLlib's workers did not answer within {limit_s:g} s; is there room?") from None
        except RayError as error:
            raise failure(error, what) from error

    def state(self) -> dict[str, Any]:
        """All of the learners: modules, targets, optimisers, entropy coefficient."""
        return dict(self._ask("saving", self._learners.get_state))

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave."""
        self._ask("restoring", lambda: self._learners.set_state(state))
        self.push_weights()

    def goes_on_at(self, num_steps: int) -> None:
        """After a resumption: other resets and random actions than those that the run began with."""
        self.num_steps = num_steps
        begin = partial(_seed_anew, more=num_steps)
        if self._local is not None:
            begin(self._local)
        else:
            self._of_runners("seeds", partial(_draw_anew, more=num_steps))
            self._of_runners("seeds", begin)
        if self._learns_elsewhere:
            self._ask("seeds", lambda: self._learners.foreach_learner(lambda learner: learner.draw_anew(num_steps)))

    def close(self) -> None:
        """Ends env runners and learners; what does not end is left to Ray."""
        torch.use_deterministic_algorithms(self._was_deterministic)
        with contextlib.suppress(WorkerLost):
            self._ask("end of learners", self._learners.shutdown, CLOSE_S)
        self._end_runners()

    def _end_runners(self) -> None:
        if self._local is not None:
            self._local.stop()
        if self._group is not None:
            with contextlib.suppress(WorkerLost):
                self._ask("end of env runners", self._group.stop, CLOSE_S)


def _drawn(runner: SingleAgentEnvRunner, num: int, random: bool) -> list[Any]:
    """Pieces of episodes; what RLlib keeps of them for metrics that nobody reads is dropped."""
    try:
        found = list(runner.sample(num_timesteps=num, random_actions=random))
    except RuntimeError as error:
        if isinstance(error.__cause__, RayalignError):  # an environment's, which RLlib raises something without words from
            raise error.__cause__ from None
        raise
    runner.get_metrics()
    return found


def _told(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`call`, whose own errors come back as its value: an env runner that raises is taken for one that died."""

    def told(runner: Any) -> Any:
        try:
            return call(runner)
        except RayalignError as error:
            return error

    return told


def _seed_random_actions(runner: SingleAgentEnvRunner) -> None:
    """RLlib seeds resets and policies, and leaves these to chance."""
    runner.env.action_space.seed(runner.config.seed + runner.worker_index)


def _seed_anew(runner: SingleAgentEnvRunner, more: int) -> None:
    runner._seed = (runner.config.seed + runner.worker_index + more) % 2**31  # of its first reset
    runner.env.action_space.seed(runner._seed)


def _draw_anew(runner: SingleAgentEnvRunner, more: int) -> None:
    """Other noise than the run began with, where the runner's process is its own."""
    torch.manual_seed((runner.config.seed + runner.worker_index + more) % 2**31)


def _number(value: Any) -> float:
    """A plain number of RLlib's statistics, which may be objects."""
    if hasattr(value, "peek"):
        value = value.peek()
    return float(value)

"""What a stage is given: the config, its folder, the fleet, and where the artifacts of earlier stages lie."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rayalign.config.base import stage_reference
from rayalign.config.run import RunConfig
from rayalign.data.template import Template, load_tokenizer
from rayalign.errors import Diverged, UserError
from rayalign.ports import Fleet, PairLossFn, RewardSetup, RewardWorker, RolloutWorker, SamplerSetup, Workers
from rayalign.stages.groups import RolloutGroup
from rayalign.telemetry.progress import Progress
from rayalign.telemetry.tracker import Tracker

STOP_FILE = ".stop"


@dataclass(frozen=True)
class Components:
    """What builds the workers. Replace one to put your own reward or rollout in the built-in one's place."""

    rollout: Callable[[SamplerSetup], RolloutWorker]
    reward: Callable[[RewardSetup], RewardWorker]
    reward_learns: bool = True  # a fixed reward is spared the samples that it would learn from
    reward_loss: PairLossFn | None = None  # in the place of `loss` in the stages that learn a reward from pairs
    implicit_loss: PairLossFn | None = None  # in the place of `demonstrations.loss` in `implicit` stages


@dataclass
class RunContext:
    """A run in progress. One rollout group stays warm across stages; others live as long as their stage."""

    config: RunConfig
    folder: Path
    fleet: Fleet
    components: Components
    tracker: Tracker
    progress: Progress
    settings: Mapping[str, Any] = field(default_factory=dict)  # that the artifacts of the stage in progress depend on
    restarted: bool = False  # the stage in progress goes on after the loss of a worker
    _sampler: RolloutGroup | None = None
    _sampler_shape: str = ""
    _templates: dict[str, Template] = field(default_factory=dict)

    def seed_of(self, stage: str, purpose: str, number: int = 0) -> int:
        """A seed of its own for each time that a stage draws samples: no two draws of a run repeat their random numbers."""
        entropy = [self.config.seed, zlib.crc32(f"{stage}/{purpose}".encode()), number]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    @property
    def stop_file(self) -> Path:
        """Is there once the run was asked to stop; on the file system, so that every rank sees it."""
        return self.folder / STOP_FILE

    @property
    def stopping(self) -> bool:
        """Whether the stage should save itself and end."""
        return self.stop_file.exists()

    def stage_folder(self, name: str) -> Path:
        """Where a stage's artifacts lie."""
        return self.folder / name

    def locate(self, location: str) -> str:
        """The path of an artifact, of a file or folder here, or else the location itself: a name of the hub.

        Raises UserError for an artifact that is not there.
        """
        reference = stage_reference(location)
        if reference is None:
            path = os.path.expanduser(location)
            # Ray Train's workers run in a folder of their own: a relative path would name nothing there.
            return os.path.abspath(path) if os.path.exists(path) else location
        artifact = self.folder.joinpath(*reference)
        if not artifact.exists():
            raise UserError(f"{location}: stage {reference[0]} left no {reference[1]!r} in {artifact.parent}")
        return str(artifact)

    @property
    def tokenizer_path(self) -> str:
        """Where the run's tokenizer is."""
        return self.locate(self.config.model.tokenizer or self.config.model.path)

    def template(self) -> Template:
        """The one way from conversations to tokens, for training and generation alike."""
        path = self.tokenizer_path
        if path not in self._templates:
            tokenizer = load_tokenizer(path, trust_remote_code=self.config.model.trust_remote_code)
            self._templates[path] = Template(tokenizer, self.config.data.chat_template)
        return self._templates[path]

    def rollout_group(self, path: str) -> RolloutGroup:
        """The warm rollout group with the weights at `path`; started at the first call or for another architecture."""
        shape = _architecture(path)
        if self._sampler is None or shape != self._sampler_shape:
            self.close_sampler()
            with self.progress.stage("starting vLLM"):
                self._sampler = self._start_rollout_group(path)
            self._sampler_shape = shape
        else:
            self._sampler.load_checkpoint(path)
        return self._sampler

    def _start_rollout_group(self, path: str) -> RolloutGroup:
        placement = self.config.placement
        group = RolloutGroup(
            self._start_sampler(path),
            colocated=placement.colocate,
            max_restarts=placement.max_restarts,
            tell=self.progress.say,
        )
        group.renew = lambda: group.load_checkpoint(path)
        return group

    def close_sampler(self) -> None:
        """Ends the warm rollout group."""
        if self._sampler is not None:
            self._sampler.workers.close()
            self._sampler = None

    def _start_sampler(self, path: str) -> Workers[RolloutWorker]:
        placement = self.config.placement
        setup = SamplerSetup(
            path=path,
            tokenizer=self.tokenizer_path,
            chat_template=self.config.data.chat_template,
            model=self.config.model,
            end_token_ids=self.template().end_token_ids,
            threads=self.fleet.threads("rollout"),
            seed=self.config.seed,
            weight_transfer=self.fleet.weight_transfer,
            tensor_parallel=placement.rollout.tensor_parallel,
            gpu_memory_frac=placement.gpu_memory_frac,
            kv_cache_gib=placement.kv_cache_gib,
            sleep_mode=placement.colocate,
        )
        return self.fleet.start("rollout", self.components.rollout, [setup] * self.fleet.num_workers("rollout"))


@contextlib.contextmanager
def last_good_kept(save: Callable[[], None]) -> Iterator[None]:
    """Around training: saves the last good weights where it ends with Diverged, which is then raised."""
    try:
        yield
    except Diverged:
        save()
        raise


def _architecture(path: str) -> str:
    """What must agree for one model's weights to fit into another's engine; the path itself for a hub name."""
    file = Path(path) / "config.json"
    if not file.exists():
        return path
    settings = json.loads(file.read_text(encoding="utf-8"))
    described = ("_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache")
    return json.dumps({k: v for k, v in settings.items() if k not in described}, sort_keys=True)

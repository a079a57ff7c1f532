"""A run in words, for model cards: what its stages did and from which papers, and the data that they read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayalign.config.ava import AvaStage
from rayalign.config.base import stage_reference
from rayalign.config.data import DataSource
from rayalign.config.fits import FitRewardStage, LogRatioStage
from rayalign.config.loops import ImplicitStage, IrlStage, RlStage
from rayalign.config.selection import BestOfNStage
from rayalign.config.service import is_service
from rayalign.config.stages import PlantedStage, SampleStage, SftStage, Stage
from rayalign.data import shapes
from rayalign.data.fingerprint import fingerprint
from rayalign.data.sources import could_be_hub_name, read_rows
from rayalign.errors import UserError
from rayalign.sharing.found import SharedRun

ARXIV = "https://arxiv.org/abs/"
AFD, AVA, AIHF, RFT, DEMONSTRATIONS = "2405.15624", "2411.09341", "2406.06874", "2405.17888", "2503.13538"
RAFT = "2304.06767"  # fine-tuning on the best of n
READERS: dict[str, Any] = {
    "demonstrations": shapes.demonstrations,
    "preferences": shapes.preferences,
    "prompts": shapes.prompts,
}
PAIR_WORDS = {"dpo": ("DPO", "2305.18290"), "ipo": ("IPO", "2310.12036"), "hinge": ("a hinge loss", AIHF)}


@dataclass(frozen=True)
class Step:
    """What one stage did, and the arXiv number of its paper, if there is one."""

    stage: str
    did: str
    paper: str | None = None

    @property
    def link(self) -> str:
        """Markdown; empty without a paper."""
        return f" ([arXiv {self.paper}]({ARXIV}{self.paper}))" if self.paper else ""


@dataclass(frozen=True)
class DataUsed:
    """Rows that stages learned from, as they lie there when the model is exported; None where they are not at hand."""

    kind: str
    name: str  # a hub name, or a file's name without its folder
    hub_name: str | None
    num_rows: int | None
    fingerprint: str | None


def steps(stages: Iterable[Stage]) -> list[Step]:
    """One for each stage that made something of the model; evaluations are none."""
    return [Step(stage.name, *told) for stage in stages if (told := _told(stage))]


def data_used(run: SharedRun, stages: Iterable[Stage]) -> list[DataUsed]:
    """Every source of rows that the stages read, once."""
    sources: dict[tuple[str, str], DataSource] = {}
    for stage in stages:
        for needed in (*stage.inputs().values(), *stage.shared_inputs(run.config.data).values()):
            if isinstance(needed.source, DataSource) and needed.kind in READERS:
                sources.setdefault((needed.source.path, needed.kind), needed.source)
    return [_read(run.folder, kind, source) for (_, kind), source in sources.items()]


def base_model(run: SharedRun) -> str | None:
    """The hub name that the run started from, where it is one and no folder here."""
    path = run.config.model.path
    here = stage_reference(path) or Path(path).expanduser().exists()
    return path if not here and could_be_hub_name(path) else None


def _told(stage: Stage) -> tuple[str, str | None] | None:
    match stage:
        case PlantedStage():
            return "wrote a synthetic text world with a known expert and a known reward", None
        case SftStage():
            return _sft(stage), RAFT if stage.data and stage.data.path.endswith("/best.jsonl") else None
        case SampleStage():
            return f"drew {stage.num_per_prompt} responses a prompt", None
        case BestOfNStage():
            return f"kept the best of up to {max(stage.n)} responses by a reward", AFD
        case FitRewardStage():
            return f"fitted a sequence reward to stored pairs (loss {stage.loss}, {stage.pooling}-token pooling)", None
        case AvaStage():
            return f"learned token rewards and a policy by AVA's variational bound, from {stage.variant}", AVA
        case LogRatioStage():
            return "took the closed-form reward log(policy / reference)", AFD
        case IrlStage():
            return _irl(stage)
        case RlStage():
            judge = "an HTTP service" if is_service(stage.reward) else "a fixed reward"
            return f"optimised the policy on {judge} ({stage.improve.advantage}, {_rounds(stage.rounds)})", "2203.02155"
        case ImplicitStage():
            return _implicit(stage)
        case _:
            return None


def _sft(stage: SftStage) -> str:
    start = "a model with random weights" if stage.scratch else "the model"
    return f"fitted {start} to responses by maximum likelihood ({_times(stage.epochs, 'epoch')})"


def _irl(stage: IrlStage) -> tuple[str, str]:
    reward = stage.reward
    sources = []
    if reward.demonstration_weight:
        sources.append(f"demonstrations against the policy's own samples (loss {reward.loss})")
    if reward.preference_weight:
        sources.append("preferences")
    improved = f"improved the policy on it ({stage.improve.advantage})"
    told = f"learned a reward from {' and '.join(sources)} and {improved} in turn, {_rounds(stage.rounds)}"
    if reward.preference_weight:
        return told, AIHF
    if reward.loss == "logistic":
        return f"{told}, divergence {reward.divergence}", AFD
    return told, DEMONSTRATIONS if stage.improve.advantage == "gae" else RFT


def _implicit(stage: ImplicitStage) -> tuple[str, str]:
    terms, papers = [], []
    if stage.demonstrations is not None:
        terms.append(f"demonstrations (loss {stage.demonstrations.loss})")
        own = {"gsil": "2410.10093", "dft": "2502.18679"}
        papers.append(own.get(stage.demonstrations.loss, RFT))
    if stage.preferences is not None:
        name, paper = PAIR_WORDS[stage.preferences.loss]
        terms.append(f"preferences ({name})")
        papers.append(paper)
    told = f"learned a reward folded into the policy from {' and '.join(terms)}, {_rounds(stage.rounds)}"
    return told, AIHF if len(papers) == 2 else papers[0]


def _rounds(num: int) -> str:
    return _times(num, "round")


def _times(num: int, unit: str) -> str:
    return f"one {unit}" if num == 1 else f"{num} {unit}s"


def _read(folder: Path, kind: str, source: DataSource) -> DataUsed:
    """Counted and hashed where the rows are on this disk; nothing is fetched."""
    reference = stage_reference(source.path)
    path = folder.joinpath(*reference) if reference else Path(source.path).expanduser()
    if not path.exists():
        hub_name = source.path if not reference and could_be_hub_name(source.path) else None
        return DataUsed(kind, hub_name or path.name, hub_name, None, None)
    try:
        rows = [row for _, row in READERS[kind](_rows(path, source))]
    except UserError:  # the file is there, and no longer what it was when the run read it
        return DataUsed(kind, path.name, None, None, None)
    return DataUsed(kind, path.name, None, len(rows), fingerprint(rows))


def _rows(path: Path, source: DataSource) -> Iterator[Any]:
    return read_rows(source, resolve=lambda _: path)

"""The model card: README.md with metadata that a hub reads, made of what the run knows and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from rayalign.errors import UserError
from rayalign.sharing.found import Kind, SharedModel
from rayalign.sharing.licences import licence_fields
from rayalign.sharing.measured import Measured
from rayalign.sharing.reproduce import loads_plainly, normaliser
from rayalign.sharing.words import DataUsed, Step

CARD_FILE = "README.md"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
LONGEST = 200  # characters of a text from data
MARKUP = re.compile(r"([\\`*_\[\]{}|#~<>&!])")
ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
KIND_WORDS: dict[Kind, str] = {
    "policy": "policy",
    "sequence_reward": "reward model, one score a response",
    "token_reward": "reward model, one reward a token",
    "log_ratio_reward": "reward in closed form: the log-ratio of two policies",
}


@dataclass(frozen=True)
class Stated:
    """What only the user knows: the licence (SPDX) and the model that training started from (a hub name)."""

    licence: str | None = None
    base_model: str | None = None

    def __post_init__(self) -> None:
        """Raises UserError for a licence that is no SPDX identifier, and a base model that is no hub name."""
        licence_fields(self.licence)
        if self.base_model is not None and not HUB_NAME.fullmatch(self.base_model):
            raise UserError(f"--base-model {self.base_model}: no hub name; give OWNER/NAME")


@dataclass(frozen=True)
class About:
    """What a card tells beside the model itself."""

    run: str
    steps: Sequence[Step]
    data: Sequence[DataUsed]
    measured: Sequence[Measured]
    called: Sequence[str]  # the evaluation's names of this model
    versions: dict[str, str]


def card(model: SharedModel, stated: Stated, about: About, recorded: dict[str, Any]) -> str:
    """The text of README.md, which huggingface_hub.ModelCard reads. Texts from data can become neither YAML nor HTML."""
    from huggingface_hub import ModelCardData

    environment = jinja2.Environment(
        autoescape=False,  # noqa: S701 - markdown: what comes from data goes through `text`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["text"] = text
    mean, std = normaliser(model.kind, model.folder)
    body = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        kind=model.kind,
        words=KIND_WORDS[model.kind],
        stage=model.stage.name,
        stated=stated,
        about=about,
        recorded=recorded,
        plain=loads_plainly(model.kind, model.folder),
        mean=mean,
        std=std,
    )
    return f"---\n{ModelCardData(**_metadata(model, stated, about)).to_yaml()}\n---\n\n{body}"


def text(value: object) -> str:
    """A text from data as plain words on one line of markdown."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    line = line if len(line) <= LONGEST else f"{line[: LONGEST - 4]} ..."
    return MARKUP.sub(lambda found: ENTITIES.get(found[1], f"\\{found[1]}"), line)


def _metadata(model: SharedModel, stated: Stated, about: About) -> dict[str, Any]:
    policy = model.kind == "policy"
    found: dict[str, Any] = {
        **licence_fields(stated.licence),
        "library_name": "transformers" if loads_plainly(model.kind, model.folder) else "rayalign",
        "tags": ["rayalign", "inverse-reinforcement-learning", *([] if policy else ["reward-model"])],
    }
    if policy or model.kind == "sequence_reward":
        found["pipeline_tag"] = "text-generation" if policy else "text-classification"
    if stated.base_model:
        found["base_model"] = stated.base_model
    if names := sorted({source.hub_name.partition(":")[0] for source in about.data if source.hub_name}):
        found["datasets"] = names
    return found

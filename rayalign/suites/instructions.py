"""IFEval's prompts and its checks, which are lm-evaluation-harness's: the numbers compare with those it reports."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayalign.config.data import DataSource
from rayalign.data.files import Place, Row, one_line
from rayalign.data.sources import read_rows
from rayalign.errors import DataError, UserError
from rayalign.suites.extras import need

SENTENCES = "tokenizers/punkt_tab/english/"  # of nltk's data
LAYOUT = "{key, prompt, instruction_id_list, kwargs}, as google/IFEval has them"


@dataclass(frozen=True)
class Asked:
    """A prompt with its instructions, I of them, and what each is told."""

    key: Any
    prompt: str
    instructions: tuple[str, ...]  # [I] such as length_constraints:number_words
    kwargs: tuple[Mapping[str, Any], ...]  # [I]

    @property
    def families(self) -> tuple[str, ...]:
        """[I] such as length_constraints."""
        return tuple(name.split(":", 1)[0] for name in self.instructions)


def read_asked(source: DataSource) -> list[Asked]:
    """The rows of a file, each instruction known and whole.

    Raises DataError, with file and line, for others; UserError where the checks lack a package or nltk's sentences.
    """
    _prepare()
    return [_asked(row, place) for place, row in read_rows(source, resolve=str)]


def followed(asked: Sequence[Asked], responses: Sequence[str]) -> dict[str, list[list[bool]]]:
    """{"strict", "loose"}: for each of P prompts, whether its response follows each of its instructions."""
    from lm_eval.tasks.ifeval.utils import process_results

    _prepare()
    before = random.getstate()
    random.seed(0)  # a check that is not told what it looks for chooses it
    try:
        found = [
            process_results(
                {"key": one.key, "prompt": one.prompt, "instruction_id_list": one.instructions, "kwargs": one.kwargs},
                [response],
            )
            for one, response in zip(asked, responses, strict=True)
        ]
    finally:
        random.setstate(before)
    return {way: [list(map(bool, row[f"inst_level_{way}_acc"])) for row in found] for way in ("strict", "loose")}


def _prepare() -> None:
    """Before lm_eval's checks are imported: they would fetch nltk's data from the network by themselves."""
    need("suite ifeval", "lm_eval", "nltk", "langdetect", "immutabledict")
    import langdetect
    import nltk

    try:
        nltk.data.find(SENTENCES)
    except LookupError:
        raise UserError(
            "suite ifeval: nltk's data punkt_tab, which tells sentences apart, is not here; run `python -m nltk.downloader "
            "punkt_tab` once, or unpack punkt_tab.zip into tokenizers/ of a folder that NLTK_DATA names"
        ) from None
    langdetect.DetectorFactory.seed = 0  # else the language of a short answer is another one from run to run


def _asked(row: Row, place: Place) -> Asked:
    names, kwargs = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(row.get("prompt"), str) or not isinstance(names, list) or not isinstance(kwargs, list) or not names:
        raise DataError(f"{place}: no prompt of IFEval; a row is {LAYOUT}")
    if len(names) != len(kwargs):
        raise DataError(f"{place}: {len(names)} instructions and {len(kwargs)} kwargs; give one for each")
    told = []
    for name, keys in zip(names, kwargs, strict=True):
        if keys is not None and not isinstance(keys, dict):
            raise DataError(f"{place}: kwargs of {name}: no object; a row is {LAYOUT}")
        # A table has every key in every row; what an instruction is not told is null there.
        own = {key: value for key, value in (keys or {}).items() if value is not None}
        _check(name, own, place)
        told.append(own)
    return Asked(row.get("key", place.number), row["prompt"], tuple(names), tuple(told))


def _check(name: Any, keys: dict[str, Any], place: Place) -> None:
    """Raises DataError for an instruction that is not known, or is told what it does not take."""
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    kind = INSTRUCTION_DICT.get(name) if isinstance(name, str) else None
    if kind is None:
        raise DataError(f"{place}: {name!r} is not an instruction of IFEval; mend instruction_id_list")
    try:
        kind(name).build_description(**{key: value for key, value in keys.items() if value})
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{place}: kwargs of {name}: {one_line(error)}") from None

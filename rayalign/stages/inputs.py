"""The data of a run as tokens, and the models that read them: each stage finds here what it needs, or what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rayalign.config.data import DataSource
from rayalign.data import shapes
from rayalign.data.files import Place, read_file
from rayalign.data.hub import quiet_hub
from rayalign.data.samples import is_sample_file, read_samples
from rayalign.data.sources import read_rows
from rayalign.data.splits import split_heldout
from rayalign.data.tally import Tally
from rayalign.data.template import load_tokenizer
from rayalign.data.tokenize import tokenize_demonstrations, tokenize_preferences, tokenize_prompts
from rayalign.data.vocabulary import Vocabulary, read_vocabulary, scratch_problem, vocabulary_problem
from rayalign.errors import ConfigError, DataError, UserError
from rayalign.stages.context import RunContext
from rayalign.types import Ragged, Sequences, TokenizedPrompts

Row = TypeVar("Row")
MANY_UNKNOWN = 0.2  # of a text's tokens, above which it was hardly meant for this tokenizer


@dataclass(frozen=True)
class DemonstrationSplit:
    """Demonstrations to learn from, and some that are kept out to measure on. Same prompt, same id."""

    train: Sequences
    heldout: Sequences


def load_demonstrations(context: RunContext, stage: str) -> DemonstrationSplit:
    """data.demonstrations, split by data.heldout_frac or beside data.heldout_demonstrations."""
    data = context.config.data
    if data.demonstrations is None:
        raise DataError(f"stage {stage} needs demonstrations: set data.demonstrations")
    every = sequences_of(context, data.demonstrations)
    if data.heldout_demonstrations is not None:
        heldout = sequences_of(context, data.heldout_demonstrations)
        both = with_shared_ids([every, heldout])
        return DemonstrationSplit(both[0], both[1])
    (every,) = with_shared_ids([every])
    train, heldout_rows = split_heldout(every.prompt_ids, frac=data.heldout_frac, seed=context.config.seed)
    return DemonstrationSplit(every.take(train), every.take(heldout_rows))


def locate_model(context: RunContext, location: str) -> str:
    """As `context.locate`, for a model that is to read the run's tokens.

    Raises UserError where it is made for other ones. What cannot be found out (no network) is left to who loads it.
    """
    path, trusted = context.locate(location), context.config.model.trust_remote_code
    own = None if path == context.tokenizer_path else _own_vocabulary(path, trust_remote_code=trusted)
    run = context.template().vocabulary(context.tokenizer_path)
    problem = vocabulary_problem(location, _num_tokens(path, trust_remote_code=trusted), own, run)
    if problem:
        raise UserError(problem)
    return path


def check_scratch(context: RunContext, stage: str, num_tokens: object) -> None:
    """Raises UserError for a new model that would not know all of the run's tokens."""
    problem = scratch_problem(num_tokens, context.template().vocabulary(context.tokenizer_path))
    if problem:
        raise UserError(f"stages.{stage}.scratch.vocab_size: {problem}")


def tell(context: RunContext, source: DataSource, tally: Tally, more: str = "") -> None:
    """Says what became of a source's rows, where any is left out or cut."""
    if tally:
        context.progress.say(f"{source.path}: {tally}{more}")


def warn_of_unknown(context: RunContext, source: DataSource, *found: Ragged) -> None:
    """Says where much of a source's text is nothing to the tokenizer: a model cannot learn to tell its words apart."""
    unknown = context.template().unknown_token_id
    num = sum(len(ragged.values) for ragged in found)
    if unknown is None or not num:
        return
    frac = sum(int((ragged.values == unknown).sum()) for ragged in found) / num
    if frac > MANY_UNKNOWN:
        context.progress.say(
            f"warning: {source.path}: {frac:.0%} of its tokens are unknown to the tokenizer ({context.tokenizer_path}), "
            "which was made for other text; set model.path (or model.tokenizer) to one that was made for this"
        )


def sequences_of(context: RunContext, source: DataSource) -> Sequences:
    """Rows with a prompt and a response, as sequences; stored samples by their tokens, as they were drawn."""
    if is_sample_file(path := Path(context.locate(source.path))):
        return _samples_that_ended(context, source, path)
    rows, places, tally = _read(context, source, shapes.demonstrations)
    room = context.config.response_room
    sequences = tokenize_demonstrations(
        rows, context.template(), **_fit(context), room=room, places=places, tally=tally
    )
    tell(context, source, tally)
    warn_of_unknown(context, source, sequences.tokens)
    return sequences


def load_prompts(context: RunContext, source: DataSource, *, room: int, limit: int | None = None) -> TokenizedPrompts:
    """Prompts, each leaving `room` tokens for a response."""
    if limit is not None and (source.limit is None or source.limit > limit):
        source = source.model_copy(update={"limit": limit})
    rows, places, tally = _read(context, source, shapes.prompts)
    room = max(room, context.config.response_room or 0)  # one cut for all stages, or their prompts would not match
    prompts = tokenize_prompts(rows, context.template(), **_fit(context), room=room, places=places, tally=tally)
    tell(context, source, tally)
    warn_of_unknown(context, source, prompts.tokens)
    return prompts


def load_preferences(context: RunContext, source: DataSource) -> tuple[Sequences, Sequences]:
    """(chosen, rejected) sequences; row i of both answers the same prompt."""
    rows, places, tally = _read(context, source, shapes.preferences)
    pairs = tokenize_preferences(rows, context.template(), **_fit(context), places=places, tally=tally)
    tell(context, source, tally)
    warn_of_unknown(context, source, *(side.tokens for side in pairs))
    return pairs


def load_samples(path: str) -> Sequences:
    """Samples that a `sample` or `best_of_n` stage stored, by their tokens."""
    return read_samples(Path(path))


def with_shared_ids(parts: list[Sequences]) -> list[Sequences]:
    """The same sequences with prompt ids that are equal exactly where the prompts' tokens are."""
    known: dict[bytes, int] = {}
    renamed = []
    for part in parts:
        ids = [known.setdefault(tokens.tobytes(), len(known)) for tokens in part.prompts()]
        renamed.append(Sequences(part.tokens, part.prompt_lengths, np.array(ids, dtype=np.int64), part.ended))
    return renamed


def matched_to(demonstrations: Sequences, samples: Sequences) -> Sequences:
    """The samples that answer a demonstration's prompt, with its id, whatever their own ids are."""
    known = zip(demonstrations.prompts(), demonstrations.prompt_ids.tolist(), strict=True)
    id_of = {tokens.tobytes(): prompt_id for tokens, prompt_id in known}
    found = [id_of.get(tokens.tobytes()) for tokens in samples.prompts()]
    kept = samples.take(np.array([row for row, prompt_id in enumerate(found) if prompt_id is not None], dtype=np.int64))
    return replace(kept, prompt_ids=np.array([i for i in found if i is not None], dtype=np.int64))


def _samples_that_ended(context: RunContext, source: DataSource, path: Path) -> Sequences:
    """Stored samples to learn from: what was cut at the limit would teach not to end."""
    num_tokens = context.template().model_settings()["vocab_size"]
    samples, tally = read_samples(path, limit=source.limit, num_tokens=num_tokens), Tally()
    _check_tokenizer(context, source, path)
    fits = samples.tokens.lengths <= context.config.model.max_length
    if not fits.all() and context.config.data.overlong == "error":
        longest, limit = int(samples.tokens.lengths.max()), context.config.model.max_length
        raise DataError(
            f"{source.path}: a sample of {longest} tokens, over max_length {limit}; raise model.max_length, or set "
            "data.overlong to drop"
        )
    for row in np.flatnonzero(~samples.ended | ~fits):
        reason = "too long" if samples.ended[row] else "sample that did not end"
        tally.leave_out(reason, f"{path.name}: sample {row + 1}")
    kept = samples.take(np.flatnonzero(samples.ended & fits))
    tally.num_used = len(kept)
    if not len(kept):
        raise DataError(f"{source.path}: no row is left ({tally}); raise sampling.max_new_tokens where it was drawn")
    tell(context, source, tally)
    return with_shared_ids([kept])[0]


def _check_tokenizer(context: RunContext, source: DataSource, path: Path) -> None:
    """Raises DataError for samples whose tokens do not read as their text: another tokenizer made them."""
    _, first = next(read_file(path))
    text = context.template().decode_prompt(first["prompt_tokens"])
    if first.get("prompt", text) != text:
        raise DataError(f"{source.path}: drawn with another tokenizer than the run's; sample again with this one")


def _own_vocabulary(path: str, *, trust_remote_code: bool) -> Vocabulary | None:
    """Of the tokenizer that a model brings; None where it brings none."""
    folder = Path(path)
    if (found := read_vocabulary(folder)) or (folder.is_dir() and not (folder / "tokenizer_config.json").is_file()):
        return found
    try:
        return Vocabulary.of(path, load_tokenizer(path, trust_remote_code=trust_remote_code))
    except ConfigError:
        return None


def _num_tokens(path: str, *, trust_remote_code: bool) -> int | None:
    """How many tokens a model knows, as its config says."""
    from transformers import AutoConfig

    try:
        with quiet_hub():
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError):
        return None
    found: int | None = getattr(config.get_text_config(), "vocab_size", None)
    return found


def _read(
    context: RunContext, source: DataSource, convert: Callable[..., Iterable[tuple[Place, Row]]]
) -> tuple[list[Row], list[Place], Tally]:
    tally = Tally()
    placed = list(convert(read_rows(source, resolve=context.locate), tally=tally))
    if not placed:
        raise DataError(f"{source.path}: no row is left ({tally})")
    places, rows = zip(*placed, strict=True)
    return list(rows), list(places), tally


def _fit(context: RunContext) -> dict[str, Any]:
    return {"max_length": context.config.model.max_length, "overlong": context.config.data.overlong}

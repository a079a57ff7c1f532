"""Judgements: asked of the judge by several threads, kept line by line as they come, and never asked twice."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rayalign.errors import RayalignError, UserError
from rayalign.suites.judge import REFUSED, Judge, Unusable
from rayalign.suites.mt_bench.prompts import Unparsed, rating, verdict

Shown = Literal["alone", "first", "second"]  # where the model's answer stands: graded alone, as assistant A's, as B's
HOPELESS = 3  # refusals, with no grade at all: the request is wrong, not the conversation
KEPT = 20_000  # characters of what a judge said


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to judge."""

    question: str
    turn: int
    shown: Shown
    messages: Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of an item: a rating, a verdict (A, B, C), or neither, and why."""

    key: str  # SHA-256 of the request: question, answers, prompts, judge and its settings
    question: str
    turn: int
    shown: Shown
    grade: float | str | None
    why: str | None = None  # there is no grade
    said: str = ""
    num_asks: int = 1
    num_without_usage: int = 0  # asks that came back without a count of tokens
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class Store:
    """A file of judgements, a line each. A line that was cut off (the program was killed) is passed over."""

    file: Path
    found: dict[str, Judgement] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.file.exists():
            return
        try:
            lines = self.file.read_bytes().split(b"\n")
        except OSError as error:
            raise UserError(f"{self.file}: cannot be read ({error.strerror}); mend it, or move it away") from None
        for line in lines:
            judgement = _parsed(line)
            if judgement is not None:
                self.found[judgement.key] = judgement

    def add(self, judgement: Judgement) -> None:
        """Appends it, on the disk before this returns."""
        self.found[judgement.key] = judgement
        with self.file.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(asdict(judgement), ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            file.flush()
            os.fsync(file.fileno())


Work = queue.SimpleQueue[tuple[str, Item, dict[str, Any]]]  # with the key of the request, and the request
Done = queue.SimpleQueue[Judgement | BaseException | None]  # None: a thread has ended


def judged(judge: Judge, items: Sequence[Item], store: Store, tell: Callable[[int, int], None]) -> list[Judgement]:
    """A judgement for each item; only those that the store lacks are asked for. `tell(done, total)` after each.

    Raises what Judge.ask raises, when all that came before it is in the store.
    """
    bodies = [judge.body(item.messages) for item in items]
    keys = [_key(body) for body in bodies]
    work: Work = queue.SimpleQueue()
    missing = {key: (key, item, body) for key, item, body in zip(keys, items, bodies, strict=True) if key not in store.found}
    for one in missing.values():
        work.put(one)
    if missing:
        _ask_all(judge, work, len(missing), store, lambda left: tell(len(items) - left, len(items)))
    return [_as(store.found[key], item) for key, item in zip(keys, items, strict=True)]


def _ask_all(judge: Judge, work: Work, num: int, store: Store, tell: Callable[[int], None]) -> None:
    """Threads ask, this one writes. They are daemons: nobody who interrupts waits for an answer under way."""
    done: Done = queue.SimpleQueue()
    working = min(judge.options.concurrency, num)
    for _ in range(working):
        threading.Thread(target=_worker, args=(judge, work, done), daemon=True).start()
    failure: BaseException | None = None
    kept, refused = _Kept(store, num, tell), ""
    try:
        while working:
            one = done.get()
            if one is None:
                working -= 1
            elif isinstance(one, BaseException):
                failure = failure or one
                judge.stop.set()
            elif refused := kept.add(one):
                judge.stop.set()
    finally:
        if working:  # nothing can be kept (the disk is full, say): what is asked now is paid for nothing
            judge.stop.set()
    if failure is not None:
        raise failure
    if refused or kept.held:
        raise UserError(f"judge {judge.url}: it takes no request: {kept.held[0].why}; see --judge-model and --judge-extra")


@dataclass
class _Kept:
    """Puts judgements into the store; the first refusals wait until the judge has taken something at all."""

    store: Store
    num_left: int
    tell: Callable[[int], None]
    held: list[Judgement] = field(default_factory=list)
    taken: bool = False

    def add(self, one: Judgement) -> str:
        """Why to give up, if there is reason to."""
        self.held.append(one)
        self.taken = self.taken or not _refused(one)
        if not self.taken:
            return "refused" if len(self.held) >= HOPELESS else ""
        while self.held:
            self.store.add(self.held.pop(0))
            self.num_left -= 1
        self.tell(self.num_left)
        return ""


def _refused(one: Judgement) -> bool:
    return (one.why or "").startswith(REFUSED)


def _worker(judge: Judge, work: Work, done: Done) -> None:
    try:
        while not judge.stop.is_set():
            key, item, body = work.get_nowait()
            done.put(_judgement(judge, key, item, body))
    except queue.Empty:
        pass
    except (RayalignError, OSError, ValueError) as error:
        done.put(error)
    finally:
        done.put(None)


def _judgement(judge: Judge, key: str, item: Item, body: dict[str, Any]) -> Judgement:
    """Asks until a grade can be read, `asks` times at most."""
    read = rating if item.shown == "alone" else verdict
    tokens, num_without, why, text = [0, 0], 0, "", ""
    asks = 0
    while asks < judge.options.asks:
        asks += 1
        try:
            said = judge.ask(body)
        except Unusable as error:
            why = str(error)
            if error.refused:
                break
            num_without += 1
            continue
        text = said.text
        if said.prompt_tokens is None or said.completion_tokens is None:
            num_without += 1
        tokens = [tokens[0] + (said.prompt_tokens or 0), tokens[1] + (said.completion_tokens or 0)]
        try:
            grade = read(text)
        except Unparsed as error:
            why = f"{error}, cut at max_tokens" if said.cut else str(error)
            continue
        return Judgement(key, item.question, item.turn, item.shown, grade, None, text[:KEPT], asks, num_without, *tokens)
    return Judgement(key, item.question, item.turn, item.shown, None, why, text[:KEPT], asks, num_without, *tokens)


def _key(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _as(found: Judgement, item: Item) -> Judgement:
    """The judgement under the names of this item: two questions may be the same request."""
    return Judgement(**asdict(found) | {"question": item.question, "turn": item.turn, "shown": item.shown})


def _parsed(line: bytes) -> Judgement | None:
    """A judgement; None for a line that holds none, and for a grade that is out of range."""
    try:
        found = Judgement(**json.loads(line))
        texts = all(isinstance(text, str) for text in (found.key, found.question, found.said))
        numbers = (found.num_asks, found.num_without_usage, found.prompt_tokens, found.completion_tokens)
        whole = texts and found.turn in (1, 2) and all(isinstance(number, int) for number in numbers)
        good = found.grade is None or (
            1 <= float(found.grade) <= 10 if found.shown == "alone" else found.grade in ("A", "B", "C")
        )
    except (ValueError, TypeError, RecursionError):
        return None
    return found if whole and good else None

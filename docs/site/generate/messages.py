"""The catalogue of messages, read from the source: what is raised, what a check before a run returns, known hazards."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from generate.markdown import plain
from rayalign.errors import STOPPED_CODE

GAP = "…"
LEAST_LETTERS = 8  # of a message's own words; with fewer it only passes on another one
ROOT_ERROR, MENDED_BY_USER, STOPPED = "RayalignError", "UserError", "Stopped"
INTRO = f"""# Troubleshooting

`rayalign doctor CONFIG` tells what is missing before anything starts. A run that goes on but goes wrong is told by the
[alarms](../algorithms.md#alarms), and for each method under *What goes wrong* in its tutorial; lost workers, damaged
checkpoints and numbers that are not finite in [checkpoints](../checkpoints.md). Here is the rest:

Every message that rayalign's own code can end with, read from the source when this page was built. Look for a few words
of yours: `{GAP}` stands for what differs from case to case (a key, a path, a number). A message says what is wrong, where,
and what to do. The number behind an error is the exit code: with 2 it is something you can mend; with 1 something
failed on the way, and the same command goes on from the last checkpoint; with {STOPPED_CODE} the run was asked to stop, and
has saved.

Messages about types (a text where a number is expected) name the key and what was given, and are not listed."""
# Where it is raised -> the heading it stands under, in the order of the page.
GROUPS = {
    "config": "Configuration",
    "preflight": "Before a run starts",
    "doctor": "Before a run starts",
    "cli": "Command line and Python",
    "api": "Command line and Python",
    "own_code": "Command line and Python",
    "data": "Data",
    "planted": "Data",
    "models": "Models and tokenizers",
    "run": "Runs, checkpoints and storage",
    "stopping": "Runs, checkpoints and storage",
    "errors": "Runs, checkpoints and storage",
    "storage": "Runs, checkpoints and storage",
    "stages": "Stages",
    "actors": "Ray: placement, workers, deadlines",
    "engines": "Engines: training, sampling, scoring",
    "objectives": "Engines: training, sampling, scoring",
    "serving": "Rewards over HTTP",
    "telemetry": "Trackers",
    "evaluate": "Evaluation and reports",
    "suites": "Evaluation and reports",
    "report": "Evaluation and reports",
    "sharing": "Sharing models",
    "control": "Control",
}
OTHER, HAZARDS = "Elsewhere", "Hazards"


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its words, the error it comes with, the exit code, and the module."""

    group: str
    text: str
    error: str
    code: int
    module: str


def messages_page(package: Path) -> str:
    """The catalogue of the package in this folder."""
    found = list(dict.fromkeys(messages(package)))
    headings = [*dict.fromkeys(GROUPS.values()), OTHER, HAZARDS]
    parts = [INTRO]
    for heading in headings:
        here = sorted((m for m in found if m.group == heading), key=lambda message: message.text.lower())
        if here:
            parts += [f"## {heading}", *([HAZARDS_ABOUT] if heading == HAZARDS else []), _table(here)]
    return "\n\n".join(parts) + "\n"


HAZARDS_ABOUT = "Warnings of `rayalign train` and `rayalign doctor`; a run goes on ([why](../recipes.md#hazards))."


def messages(package: Path) -> Iterator[Message]:
    """All messages, file by file."""
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(package.rglob("*.py"))}
    codes = _exit_codes(trees.values())
    for file, tree in trees.items():
        place = file.relative_to(package.parent).with_suffix("")
        module = ".".join(place.parts).removesuffix(".__init__")
        top = place.parts[1]
        group = GROUPS.get(top, OTHER)
        for scope, node in _nodes(tree):
            for error, words in _words(node, scope, top, module, codes):
                text = _text(words, scope)
                if sum(character.isalpha() for character in text) >= LEAST_LETTERS:
                    name, code = error or "", codes.get(error or "", 0)
                    yield Message(group, text, name, code, module) if error else _hazard(text, module)


def _words(
    node: ast.AST, scope: ast.AST, top: str, module: str, codes: dict[str, int]
) -> Iterator[tuple[str | None, ast.expr]]:
    """(error, expression of the message) of a statement; no error: a hazard, which is only told."""
    name, made = _made(node)
    if made and name in codes:
        yield name, made
    elif made and isinstance(node, ast.Raise) and name == "ValueError" and top == "config":
        yield "ConfigError", made  # of a validator: it becomes the config's error
    elif isinstance(node, ast.Return) and node.value and top == "preflight" and _returns_problem(scope):
        yield MENDED_BY_USER, node.value
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == "Finding" and len(node.args) == 3:
        if ast.unparse(node.args[1]) == "'missing'":
            yield MENDED_BY_USER, node.args[2]
    elif isinstance(node, ast.Yield) and node.value and module.endswith("config.hazards"):
        yield None, node.value


def _made(node: ast.AST) -> tuple[str, ast.expr | None]:
    """(class, first argument) of what a statement raises or hands on, where it makes it."""
    call = node.exc if isinstance(node, ast.Raise) else node.value if isinstance(node, ast.Return) else None
    if not isinstance(call, ast.Call) or not call.args:
        return "", None
    return ast.unparse(call.func).rpartition(".")[2], call.args[0]


def _hazard(text: str, module: str) -> Message:
    """The key that a hazard begins with is that of its stage."""
    return Message(HAZARDS, f"stages.{GAP}{text}", "", 0, module)


def _returns_problem(scope: ast.AST) -> bool:
    """Whether a function of the checks gives a problem in words, or None."""
    return isinstance(scope, ast.FunctionDef) and scope.returns is not None and ast.unparse(scope.returns) == "str | None"


def _nodes(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.AST]]:
    """(innermost function around it, node)."""

    def below(node: ast.AST, scope: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            yield scope, child
            yield from below(child, child if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else scope)

    return below(tree, tree)


def _exit_codes(trees: Iterable[ast.Module]) -> dict[str, int]:
    """Every error class of the package's own family, with its exit code."""
    bases = {
        node.name: [ast.unparse(base) for base in node.bases]
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }

    def ancestors(name: str) -> set[str]:
        return {name}.union(*(ancestors(base) for base in bases.get(name, [])))

    family = {name: ancestors(name) for name in bases}
    return {name: _code(all_) for name, all_ in family.items() if ROOT_ERROR in all_}


def _code(family: set[str]) -> int:
    return 2 if MENDED_BY_USER in family else STOPPED_CODE if STOPPED in family else 1


def _text(node: ast.expr, scope: ast.AST) -> str:
    """A message's words, with GAP for what is only known when it is raised."""
    return re.sub(rf"{GAP}(?:\s?{GAP})+", GAP, " ".join(_literal(node, scope).split()))


def _literal(node: ast.expr, scope: ast.AST, depth: int = 0) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_literal(part, scope, depth) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _literal(node.left, scope, depth) + _literal(node.right, scope, depth)
    if isinstance(node, ast.Name) and depth == 0:
        given = list(_given(node.id, scope))
        return _literal(given[0], scope, 1) if len(given) == 1 else GAP
    return GAP


def _given(name: str, scope: ast.AST) -> Iterator[ast.expr]:
    """What a name is set to in a function."""
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            yield node.value


def _table(found: Sequence[Message]) -> str:
    rows = [f"| {plain(m.text)} | {_kind(m)}`{m.module}` |" for m in found]
    return "\n".join(["| message | from |", "| --- | --- |", *rows])


def _kind(message: Message) -> str:
    return f"{message.error} ({message.code}), " if message.error else ""

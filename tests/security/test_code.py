"""What the package's own code may never do: unpickle, evaluate text, run a shell, or take a file's word for code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
ALLOWED_NAMES = {"UnpicklingError"}  # to tell of it
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}


def faults(tree: ast.AST) -> Iterator[str]:
    """The lines that do so."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"{node.lineno}: import {a.name}" for a in node.names if a.name.split(".")[0] in UNPICKLERS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLERS:
            yield from (f"{node.lineno}: {a.name}" for a in node.names if a.name not in ALLOWED_NAMES)
        elif isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called in SHELLS | {"eval", "exec"} or given.get("shell") == "True":
                yield f"{node.lineno}: {called}"
            if called.endswith("torch.load") and given.get("weights_only") != "True":
                yield f"{node.lineno}: torch.load without weights_only=True"
            if given.get("allow_pickle") == "True" or given.get("trust_remote_code") == "True":
                yield f"{node.lineno}: {called} trusts a file"
            if called == "yaml.load" and "_Loader" not in ast.unparse(node):  # ours is a SafeLoader
                yield f"{node.lineno}: yaml.load"


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from cloudpickle import loads", "torch.load(f)", "torch.load(f, weights_only=False)", "eval(x)",
     "subprocess.run(x, shell=True)", "np.load(f, allow_pickle=True)", "load(f, trust_remote_code=True)", "os.system(x)",
     "yaml.load(x, yaml.Loader)"],
)  # fmt: skip
def test_it_would_be_found(code: str) -> None:
    assert list(faults(ast.parse(code)))


def test_no_module_does_so() -> None:
    files = sorted((REPOSITORY / "rayalign").rglob("*.py"))
    assert len(files) > 100
    found = [f"{file.relative_to(REPOSITORY)}:{fault}" for file in files for fault in faults(parsed(file))]
    assert found == []


def parsed(file: Path) -> ast.AST:
    return ast.parse(file.read_text(encoding="utf-8"))

"""The Python reference: which modules are shown; mkdocstrings reads their docstrings without importing them."""

from __future__ import annotations

from pathlib import Path

INTRO = """# Python

`rayalign.api` is what a program of your own calls ([guide](../../extending.md)). The rest is for what it takes and gives: the
Protocols that a worker of your own satisfies, the values that travel, the objectives. Everything else in the package may
change without a word."""
# Module or package -> what it is. A package stands for its modules.
SHOWN = {
    "api": "runs from Python, with your own reward, rollout or objective",
    "ports": "Protocols of workers, and what they are built from",
    "types": "ragged tokens, rollouts, scores",
    "errors": "what is raised, and its exit codes",
    "objectives": "losses: tensors in, sums out",
    "models/rewards": "a saved reward of any kind, loaded",
    "control/train": "control from Python",
}


def python_pages(package: Path) -> dict[str, str]:
    """{file name below reference/: Markdown}: a page that lists the modules, and one for each."""
    pages, rows = {}, ["| module | |", "| --- | --- |"]
    for path, about in SHOWN.items():
        for module in _modules(package, path):
            pages[f"python/{module}.md"] = f"# {module}\n\n::: {module}\n"
            rows.append(f"| [{module}]({module}.md) | {about} |")
    return {"python/index.md": "\n".join([INTRO, "", *rows, ""]), **pages}


def _modules(package: Path, path: str) -> list[str]:
    folder = package / path
    files = sorted(folder.glob("[!_]*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    return [".".join(file.relative_to(package.parent).with_suffix("").parts) for file in files if file.exists()]

"""The Python reference: which modules are shown; mkdocstrings reads their docstrings without importing them."""

from __future__ import annotations

import ast
from pathlib import Path

from generate.markdown import prose

INTRO = """# Python

`rayalign.api` is what a program of your own calls ([guide](../../extending.md)). The rest is for what it takes and gives:
the Protocols that a worker of your own satisfies, the values that travel, the objectives. Everything else in the
package may change without a word."""
SHOWN = ("api", "ports", "types", "errors", "models/rewards", "control/train", "objectives")  # a package: its modules


def python_pages(package: Path) -> dict[str, str]:
    """{file name below reference/: Markdown}: a page that lists the modules, and one for each."""
    pages, rows = {}, ["| module | |", "| --- | --- |"]
    for file in [file for path in SHOWN for file in _modules(package / path)]:
        module = ".".join(file.relative_to(package.parent).with_suffix("").parts)
        pages[f"python/{module}.md"] = f"# {module}\n\n::: {module}\n"
        about = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        rows.append(f"| [{module}]({module}.md) | {prose(about.partition(chr(10))[0])} |")
    return {"python/index.md": "\n".join([INTRO, "", *rows, ""]), **pages}


def _modules(path: Path) -> list[Path]:
    return sorted(path.glob("[!_]*.py")) if path.is_dir() else [path.with_suffix(".py")]

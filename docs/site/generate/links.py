"""Links from a page to files of the repository: each has a place on the site, and one that leads to nothing is told.

On GitHub `../configs/rft.yaml` is the file itself; here it is a page that shows the file, made because a page links to it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
# Pages of the top folder, and where they stand on the site.
TOP_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
}
LINK = re.compile(r"(?<!\\)(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
CODE = re.compile(r"(`[^`]+`)")
FENCE = re.compile(r"^ {0,3}(```+|~~~+)")
ITEM = re.compile(r"^( {0,3})([-*+]|\d+[.)]) ")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".toml": "toml", ".jinja": "jinja"}


def source_of(uri: str) -> Path:
    """The repository's file that a page is made from; a generated page stands for a file of docs/ with its name."""
    tops = {there: name for name, there in TOP_PAGES.items()}
    return ROOT / tops[uri] if uri in tops else DOCS / uri


def place_of(file: Path) -> str:
    """Where a file or folder of the repository stands on the site."""
    path = file.relative_to(ROOT).as_posix()
    if path in TOP_PAGES:
        return TOP_PAGES[path]
    if file.suffix == ".py" or not file.is_relative_to(DOCS):
        return f"source/{path}.md" if file.is_file() else f"source/{path}/index.md"
    return file.relative_to(DOCS).as_posix()


def rewritten(markdown: str, uri: str, broken: Callable[[str], None]) -> str:
    """A page's Markdown with the links to files that the site does not hold as they are led to where it shows them."""

    def moved(found: re.Match[str]) -> str:
        target, anchor = found[2], found[3] or ""
        if _is_elsewhere(target):
            return found[0]
        file = _resolved(uri, target)
        if uri in TOP_PAGES.values() or _is_outside(file):
            if not file.exists() or not file.is_relative_to(ROOT):
                broken(f"{source_of(uri).relative_to(ROOT)}: the link {target} leads to nothing; mend or remove it")
                return found[0]
            target = posixpath.relpath(place_of(file), posixpath.dirname(uri) or ".")
        return f"{found[1]}{target}{anchor}{found[4]}"

    def outside_code(line: str) -> str:
        return "".join(part if part.startswith("`") else LINK.sub(moved, part) for part in CODE.split(line))

    return "\n".join(outside_code(line) if prose else line for prose, line in _lines(markdown))


def linked_files(markdown: str, uri: str) -> Iterator[Path]:
    """Files and folders that a page links to and that have no page of their own."""
    for prose, line in _lines(markdown):
        for found in LINK.finditer(CODE.sub("", line)) if prose else ():
            if not _is_elsewhere(found[2]):
                file = _resolved(uri, found[2])
                if file.exists() and file.is_relative_to(ROOT) and place_of(file).startswith("source/"):
                    yield file


def shown(file: Path) -> str:
    """A page that shows a file, or lists a folder."""
    name = file.relative_to(ROOT).as_posix()
    head = "---\nsearch: {exclude: true}\n---\n"  # the pages that link here are what a person looks for
    if file.is_dir():
        files = "\n".join(f"- [{inner.name}]({inner.name}.md)" for inner in files_of(file))
        return f"{head}# {name}\n\n{files}\n"
    text = file.read_text(encoding="utf-8")
    return f"{head}# {name}\n\n````{LANGUAGES.get(file.suffix, 'text')}\n{text.rstrip()}\n````\n"


def files_of(folder: Path) -> list[Path]:
    """What a folder's page lists."""
    return sorted(inner for inner in folder.iterdir() if inner.is_file() and not inner.name.startswith("."))


def spaced(markdown: str) -> str:
    """A blank line before each list that begins right below a paragraph: GitHub needs none, Python-Markdown does."""
    out: list[str] = []
    for prose, line in _lines(markdown):
        before = out[-1] if out else ""
        if prose and ITEM.match(line) and before.strip() and not ITEM.match(before) and not before.startswith(" "):
            out.append("")
        out.append(line)
    return "\n".join(out)


def _lines(markdown: str) -> Iterator[tuple[bool, str]]:
    """(whether it is prose, not code in a fence; line)."""
    fence = ""
    for line in markdown.split("\n"):
        found = FENCE.match(line)
        if found and not fence:
            fence = found[1]
            yield False, line
        elif found and found[1].startswith(fence):
            fence = ""
            yield False, line
        else:
            yield not fence, line


def _is_elsewhere(target: str) -> bool:
    return "://" in target or target.startswith(("mailto:", "/"))


def _resolved(uri: str, target: str) -> Path:
    return Path(posixpath.normpath((source_of(uri).parent / target).as_posix()))


def _is_outside(file: Path) -> bool:
    return not file.is_relative_to(DOCS) or file.suffix == ".py"

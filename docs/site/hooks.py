"""What MkDocs calls while it builds the site: generated pages, links out of docs/, and pages that no menu holds."""

from __future__ import annotations

import fnmatch
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]  # the generators, and the package of this checkout

from generate.commands import commands_page  # noqa: E402
from generate.configuration import configuration_pages  # noqa: E402
from generate.links import ROOT, TOP_PAGES, files_of, linked_files, place_of, rewritten, shown, spaced  # noqa: E402
from generate.messages import messages_page  # noqa: E402
from generate.python import python_pages  # noqa: E402

log = logging.getLogger("mkdocs.hooks")  # a warning here ends a strict build


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages that are made, and the site's own script and style."""
    for asset in sorted((HERE / "assets").iterdir()):
        files.append(File.generated(config, f"assets/{asset.name}", abs_src_path=str(asset)))
    for uri, text in _made().items():
        files.append(File.generated(config, uri, content=text))
    for file in _shown(files):
        made = File.generated(config, place_of(file), content=shown(file), inclusion=InclusionLevel.NOT_IN_NAV)
        if made.src_uri not in files.src_uris:
            files.append(made)
    config.nav = list(_held(config.nav, set(files.src_uris)))
    _say_what_no_menu_holds(files, set(_uris(config.nav)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """As GitHub shows it: links to files of the repository work, and lists begin where they begin there."""
    return spaced(rewritten(markdown, page.file.src_uri, log.warning))


def _made() -> dict[str, str]:
    pages = {there: (ROOT / name).read_text(encoding="utf-8") for name, there in TOP_PAGES.items()}
    reference = configuration_pages() | python_pages(ROOT / "rayalign")
    reference |= {"commands.md": commands_page(), "messages.md": messages_page(ROOT / "rayalign")}
    return pages | {f"reference/{name}": text for name, text in reference.items()}


def _shown(files: Files) -> Iterator[Path]:
    """Files of the repository that a page links to; of a folder, all that its page lists."""
    for page in [file for file in files if file.is_documentation_page()]:
        for file in linked_files(page.content_string, page.src_uri):
            yield from files_of(file) if file.is_dir() else ()
            yield file


def _held(nav: list[Any], there: set[str]) -> Iterator[Any]:
    """The menu without pages that are not there; a name with * stands for all pages that it fits."""
    for entry in nav:
        title, inner = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(inner, list):
            yield {title: list(_held(inner, there))}
        elif "*" in inner:
            yield from sorted(fnmatch.filter(there, inner))
        elif inner in there:
            yield entry


def _uris(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        inner = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(inner, list):
            yield from _uris(inner)
        else:
            yield inner


def _say_what_no_menu_holds(files: Files, held: set[str]) -> None:
    for file in files.documentation_pages():
        if file.src_uri not in held and not file.src_uri.startswith("source/"):
            log.warning(f"docs/{file.src_uri} is in no menu; add it under `nav` in docs/site/mkdocs.yml")

"""The site: built strictly, no link that leads to nothing, nothing from the network, search without a server."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.conftest import Built, build, small_copy


class Page(HTMLParser):
    """What a page links to, what it loads, and the anchors that it has."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if "href" in given:
            (self.links if tag == "a" else self.loads).append(given["href"])
        if "src" in given:
            self.loads.append(given["src"])


def test_it_builds_strictly_and_quietly(site: Built) -> None:
    assert site.code == 0, site.log
    assert "WARNING" not in site.log


def test_no_link_leads_to_nothing(site: Built) -> None:
    """Every page and every anchor, in what a browser gets."""
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in site.folder.rglob("*.html")}
    assert len(pages) > 50
    lost = []
    for file, page in pages.items():
        for link in page.links + page.loads:
            there = urlsplit(link)
            if there.scheme or file.name == "404.html":  # whose links begin at the site's address
                continue
            target = (file.parent / unquote(there.path)).resolve() if there.path else file
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].anchors if target in pages else set()
            if not target.is_file() or (there.fragment and target in pages and unquote(there.fragment) not in known):
                lost.append(f"{file.relative_to(site.folder)}: {link}")
    assert lost == []


def test_nothing_is_loaded_from_the_network(site: Built) -> None:
    for file in site.folder.rglob("*.html"):
        outside = [load for load in Page(file.read_text(encoding="utf-8")).loads if "//" in load]
        assert outside == [], file


def test_links_out_of_docs_show_the_file(site: Built) -> None:
    page = site.page("recipes.html")
    assert 'href="source/configs/planted/index.html"' in page
    assert 'href="rft.yaml.html"' in site.page("source/configs/planted/index.html")
    assert "closed_2" in site.page("source/configs/planted/rft.yaml.html")
    assert "ends_politely" in site.page("source/docs/examples/reward_function.py.html")
    assert 'href="project/security.html"' in site.page("index.html")


def test_a_list_below_a_paragraph_is_a_list(site: Built) -> None:
    """GitHub needs no blank line before it."""
    from generate.links import spaced

    assert spaced("a:\n- b\n- c") == "a:\n\n- b\n- c"
    assert spaced("```\na\n- b\n```") == "```\na\n- b\n```"
    assert spaced("- a\n  b\n- c") == "- a\n  b\n- c"


def test_what_is_broken_ends_the_build(tmp_path: Path) -> None:
    """A page in no menu; links to no page, no anchor, no file of the repository; a page that is gone is no fault."""
    root = small_copy(tmp_path)
    text = "# X\n\n[a](nothing.md) [b](recipes.md#no-such) [c](../configs/nothing.yaml) [d](../configs/rft.yaml)\n"
    (root / "docs" / "extra.md").write_text(text, encoding="utf-8")
    (root / "docs" / "quickstart.md").unlink()
    found = build(root)
    assert found.code != 0
    warnings = [line for line in found.log.splitlines() if "WARNING" in line]
    told = "\n".join(warnings)
    assert "docs/extra.md is in no menu; add it under `nav` in docs/site/mkdocs.yml" in told
    assert "docs/extra.md: the link ../configs/nothing.yaml leads to nothing" in told
    assert "'nothing.md'" in told and "#no-such" in told
    assert not [line for line in warnings if "extra.md" not in line], told


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the browser chromium")
def test_search_answers_in_a_page_opened_from_a_folder(site: Built, tmp_path: Path) -> None:
    # A time of the page's own: it ends when the page has nothing to do, however slow the machine.
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path}", f"file://{site.folder}/index.html?q=canary_tolerance"]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert re.search(r"[1-9]\d* matching documents", page)
    assert "reference/stages.html" in page

"""A real Chromium for reports: Debian's, or whichever is on the PATH."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str:
    """Its path; skips the test where there is none."""
    pytest.importorskip("playwright", reason="needs playwright: make env")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs a Chromium on the PATH (Debian: apt-get install chromium)")
    return found


class Page:
    """A page in the browser, with all that its console and the network saw."""

    def __init__(self, page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def _on_console(self, message) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def open(self, file: Path) -> None:
        """Loads a file and scrolls through it, so that every chart is drawn."""
        self.page.goto(file.as_uri())
        self.page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
        for chart in self.page.locator(".chart").all():
            chart.scroll_into_view_if_needed()
            chart.locator(".main-svg").first.wait_for()

    def texts(self, selector: str) -> list[str]:
        """Of every element that matches."""
        return self.page.locator(selector).all_inner_texts()


@contextmanager
def opened(file: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Page]:
    """A report in a browser of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(QUIET))
        try:
            scheme = "dark" if dark else "light"
            page = Page(browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme))
            page.open(file)
            yield page
        finally:
            browser.close()

"""A headless Chromium, and what a page does in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def opened(place: Path | str, width: int = 1280, scheme: str = "light") -> Iterator[tuple[Any, list[str]]]:
    """The page of a file, or at the URL of a server, in a window ``width`` pixels wide; what it complained of or asked another
    network for, growing.
    """
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs Chromium: apt-get update && apt-get install -y chromium")
    url = place.as_uri() if isinstance(place, Path) else place
    own = ("file:", "data:") if isinstance(place, Path) else (url, "data:", "blob:")
    faults: list[str] = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme).new_page()
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda sent: None if sent.url.startswith(own) else faults.append(sent.url))
        page.goto(url)
        try:
            yield page, faults
        finally:
            browser.close()

"""A headless Chromium, and what a page does in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def opened(file: Path, width: int = 1280, scheme: str = "light") -> Iterator[tuple[Any, list[str]]]:
    """The page of ``file`` in a window ``width`` pixels wide, and what it complained of or asked a network for, growing."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs Chromium: apt-get update && apt-get install -y chromium")
    faults: list[str] = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme).new_page()
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda own: None if own.url.startswith(("file:", "data:")) else faults.append(own.url))
        page.goto(file.as_uri())
        try:
            yield page, faults
        finally:
            browser.close()

"""``unigrpo app`` in a real browser: type and see tokens appear, draw, stop by keyboard, upload and ask; nothing complains."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator

import pytest

from unigrpo.runs.app.cli import check_gradio
from unigrpo.runs.app.live import Frame
from unigrpo.runs.app.policy import Talker, opened
from unigrpo.toy.shapes import questions

from ..support.browser import opened as browser


pytestmark = pytest.mark.browser

SUM = "Tom has 127 cups and gets 4. Total?"
OUTSIDE: list[str] = []
"""Hosts beyond this machine that the server looked for."""


class Held(Talker):
    """A policy that waits in front of the step ``hold_at``, and goes on with ``go``."""

    __slots__ = ("go", "hold_at")

    def answer(self, prompt: str, show, **options) -> None:
        def held(frame: Frame) -> None:
            show(frame)
            if frame[-1].spans[-1].done == self.hold_at:
                assert self.go.wait(60)

        Talker.answer(self, prompt, held, **options)


def _listen(event: str, values: tuple) -> None:
    host = values[0] if event == "socket.getaddrinfo" else None
    if event == "socket.connect" and isinstance(values[1], tuple):
        host = values[1][0]
    if host is not None and str(host) not in ("127.0.0.1", "localhost", "::1", "0.0.0.0"):
        OUTSIDE.append(str(host))


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, Held]]:
    pytest.importorskip("gradio", reason="needs Gradio: pip install -e '.[app]'")
    check_gradio()
    from unigrpo.runs.app.page import serve

    sys.addaudithook(_listen)
    own = opened("builtin:shapes", None)
    talker = Held(loaded=own.loaded, name=own.name, base=own.base, tasks=own.tasks, compared=False, starts={})
    talker.hold_at, talker.go = None, threading.Event()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocks = serve(talker, "127.0.0.1", port)
    with pytest.raises(ValueError, match=f"--port {port}: nothing can listen there"):
        serve(talker, "127.0.0.1", port)
    yield blocks.local_url, talker
    blocks.close(verbose=False)


@pytest.mark.parametrize("width,scheme", [(1280, "light"), (390, "dark")])
def test_a_visitor_chats_draws_asks_and_is_told_what_is_missing(width, scheme, served, tmp_path):
    url, talker = served
    talker.hold_at = None
    with browser(url, width, scheme) as (page, faults):
        prompt, answer = page.locator("#text-prompt textarea"), page.locator("#text-answer")
        page.locator("#text-send").click()
        answer.get_by_role("alert").filter(has_text="There is no prompt").wait_for()
        prompt.fill(SUM)
        prompt.press("Enter")
        answer.get_by_text("step 16 of 16").wait_for()
        assert answer.locator(".answer").text_content() == talker.loaded.generate(SUM)[0].partition("</think>")[2]
        assert answer.locator("details").get_attribute("open") is None

        page.get_by_role("tab", name="Draw", exact=True).click()
        page.get_by_text("a small green cross at the top").first.click()
        page.locator("#t2i-send").click()
        page.locator("#t2i-answer").get_by_alt_text("the picture that was drawn").wait_for()

        page.get_by_role("tab", name="Think + draw").click()
        page.locator("#r2i-prompt textarea").fill("a large red circle at the left")
        page.locator("#r2i-prompt textarea").press("Enter")
        page.locator("#r2i-answer").get_by_alt_text("the picture that was drawn").wait_for()
        assert page.locator("#r2i-answer summary").text_content() == "Thought"

        (row,) = questions("test", 1)
        row["image"].save(tmp_path / "shape.png")
        page.get_by_role("tab", name="Ask", exact=True).click()
        page.locator("#mmu-prompt textarea").fill("What color is it?")
        page.locator("#mmu-send").click()
        page.locator("#mmu-answer").get_by_role("alert").filter(has_text="There is no picture").wait_for()
        page.locator("input[type=file]").first.set_input_files(tmp_path / "shape.png")
        page.locator("img[src*='shape.png']").wait_for()
        page.locator("#mmu-send").click()
        page.locator("#mmu-answer").get_by_text("step 16 of 16").wait_for()
        said = talker.loaded.generate("What color is it?", images=row["image"])[0]
        assert page.locator("#mmu-answer .answer").text_content() == said

        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert faults == [] and OUTSIDE == []


def test_tokens_appear_where_they_are_written_and_the_keyboard_stops_them(served):
    url, talker = served
    talker.hold_at, talker.go = 5, threading.Event()
    with browser(url) as (page, faults):
        page.locator("#text-prompt textarea").focus()
        page.keyboard.type(SUM)
        page.keyboard.press("Enter")
        answer = page.locator("#text-answer")
        answer.get_by_text("step 5 of 16").wait_for()
        assert answer.locator(".hole").count() > 0
        colours = answer.locator(".token").evaluate_all(
            "own => own.map(piece => getComputedStyle(piece).backgroundColor)"
        )
        assert len(set(colours)) > 1
        other = page.context.browser.new_page()
        other.goto(url)
        other.locator("#text-prompt textarea").fill("Ann had 476 keys and found 3. Total?")
        other.locator("#text-send").click()
        other.locator("#text-answer").get_by_text("1 answer is before this one.").wait_for()
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "text-stop"
        with page.expect_response(lambda own: "/run/" in own.url or "queue/join" in own.url):
            page.keyboard.press("Enter")
        talker.hold_at = None
        talker.go.set()
        answer.get_by_role("status").filter(has_text="Stopped.").wait_for()
        assert answer.locator(".hole").count() > 0 and answer.locator(".token").count() == len(colours)
        other.locator("#text-answer").get_by_text("step 16 of 16").wait_for()
        assert faults == []

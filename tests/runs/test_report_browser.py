"""The page in a real browser: nothing complains, nothing is wider than a telephone, the slider works from the keyboard."""

from __future__ import annotations

import pytest

from unigrpo.runs.report.page import page
from unigrpo.runs.report.read import read_folder

from ..support.browser import opened
from ..support.run_folders import evaluation_folder, run_folder


pytestmark = pytest.mark.browser

LONG = "<script>console.error('obeyed')</script> " + "unbroken" * 40 + " שלום \u202egnp.exe"


@pytest.mark.parametrize("width,scheme", [(390, "dark"), (1280, "light")])
@pytest.mark.parametrize("make", [run_folder, evaluation_folder])
def test_no_page_complains_or_scrolls_sideways(make, width, scheme, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page(read_folder(make(tmp_path / "folder", text=LONG))), encoding="utf-8")
    with opened(file, width, scheme) as (shown, faults):
        for part in shown.locator("summary").all():
            part.click()
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        style = "getComputedStyle(document.body)"
        ink, paper = (
            int(own.split("(")[1].split(",")[0]) for own in shown.evaluate(f"[{style}.color, {style}.backgroundColor]")
        )
        assert (ink < paper) == (scheme == "light"), (ink, paper)
        assert faults == []


def test_the_slider_follows_the_keyboard(tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page(read_folder(run_folder(tmp_path / "run"))), encoding="utf-8")
    with opened(file) as (shown, faults):
        first = shown.locator(".denoised").first
        slider, output = first.locator("input"), first.locator("output")

        def unwritten() -> list[str]:
            return first.locator("[data-step].unwritten").evaluate_all("own => own.map(piece => piece.dataset.step)")

        assert unwritten() == [] and output.text_content() == "step 4 of 4"
        slider.focus()
        slider.press("ArrowLeft")
        assert unwritten() == ["3"] and output.text_content() == "step 3 of 4"
        slider.press("Home")
        assert sorted(unwritten()) == ["1", "2", "3"]
        first.locator("button").press("Enter")
        assert first.locator("button").text_content() == "Stop"
        first.locator("output", has_text="step 4 of 4").wait_for()
        assert unwritten() == [] and faults == []

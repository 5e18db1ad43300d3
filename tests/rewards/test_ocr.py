"""``ocr``: what is wanted, the distance, rows, and RapidOCR where it is installed."""

from __future__ import annotations

import importlib.util
import re
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from unigrpo.rewards import get_reward
from unigrpo.rewards._ocr import edit_distance, likeness, rapid_reader, wanted_text

from ..support.tiny_scorers import Broken, Log


PAPER = Image.new("RGB", (64, 32), "white")


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("wanted", "read", "score"),
    [
        ("OPEN", "open", 1.0),
        ("New York", "NewYork", 1.0),
        ("OPEN", "WE ARE OPEN TODAY", 1.0),
        ("OPEN", "OPAN", 0.75),
        ("OPEN", "PEN", 0.75),
        ("OPEN", "", 0.0),
        ("OPEN", "something else altogether", 0.0),
        ("kitten", "sitting", 0.5),
        ("Straße", "STRASSE", 1.0),
        ("24/7", "2417", 0.75),
    ],
)
def test_likeness(wanted, read, score):
    """Flow-GRPO's: 1 - min(d, n) / n without case and spaces, and 1 for what is contained."""
    assert likeness(wanted, read) == score


LETTERS = st.text("ab c", max_size=7)


@given(LETTERS, LETTERS, LETTERS)
def test_the_distance_is_one(one, two, three):
    """A metric: 0 for itself alone, symmetric, never longer over a third text; a shared end changes nothing."""
    distance = edit_distance(one, two)
    assert (distance == 0) == (one == two) and distance == edit_distance(two, one)
    assert distance <= edit_distance(one, three) + edit_distance(three, two)
    assert abs(len(one) - len(two)) <= distance <= max(len(one), len(two))
    assert edit_distance(one + three, two + three) == distance


@given(st.text(min_size=1), st.text())
def test_the_score_is_a_share(wanted, read):
    if wanted_text(wanted, None):
        assert 0 <= likeness(wanted, read) <= 1 and likeness(wanted, wanted) == 1


@pytest.mark.parametrize(
    ("column", "prompt", "wanted"),
    [
        ("Hello You", 'a "sign"', "helloyou"),
        (None, 'a sign that says "Hello You"', "helloyou"),
        (None, "a sign “Auf” over “Zu”", "aufzu"),
        (None, [{"role": "user", "content": 'draw "it"'}], "it"),
        (None, "a dog's life isn't \" told", None),
        (None, "a sign", None),
        ("  ", 'a "sign"', None),
        (None, None, None),
    ],
)
def test_what_a_picture_is_to_show(column, prompt, wanted):
    assert wanted_text(column, prompt) == wanted


def test_rows(monkeypatch):
    """``reward_prompt`` before the prompt; None for texts, broken pictures and rows that ask for nothing."""
    log, extra = Log(), {}
    reward = get_reward("ocr", reader=lambda picture: f"W{picture.width}")
    completions = [PAPER, PAPER.convert("1"), Broken(), PAPER, "W64", PAPER]
    scores = reward(
        ["a sign", 'a "x"', "p", "a sign", "p", 'p "W64"'],
        completions,
        text=["W64", None, "W8", None, "W64", None],
        reward_prompt=[None, 'a "W65"', None, None, None, None],
        log_metric=log,
        log_extra=extra.__setitem__,
    )
    assert scores == [1.0, pytest.approx(2 / 3), None, None, None, 1.0]
    assert log == {"ocr/failed": 1.0} and extra == {"ocr": ["W64", "W64", None, None, None, "W64"]}
    assert completions[1].mode == "1"


def test_faults_are_named(monkeypatch):
    with pytest.raises(ValueError, match=re.escape("ocr: column `text` has 5; give a text, or null")):
        get_reward("ocr", reader=str)(["p"], [PAPER], text=[5])
    with pytest.raises(ValueError, match="reader must be a function"):
        get_reward("ocr", reader=5)
    with pytest.raises(ValueError, match="no module 'nowhere'"):
        get_reward("ocr", reader="nowhere:reader")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=re.escape('not installed: `pip install "unigrpo[ocr]"`')):
        get_reward("ocr", reader=None)


@pytest.mark.parametrize(
    ("reason", "cure"),
    [
        (
            "libGL.so.1: cannot open shared object file",
            "pip uninstall -y opencv-python; pip install opencv-python-headless",
        ),
        ("No module named 'shapely'", 'pip install "unigrpo[ocr]"'),
    ],
)
def test_an_engine_that_does_not_start_names_the_cure(monkeypatch, reason, cure):
    def start():
        raise ImportError(reason)

    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", SimpleNamespace(RapidOCR=start))
    with pytest.raises(ImportError, match=re.escape(f"({reason}): `{cure}`")):
        rapid_reader()


def written(text, size=64):
    picture = Image.new("RGB", (320, 160), "white")
    ImageDraw.Draw(picture).text((20, 30), text, font=ImageFont.load_default(size), fill="black")
    return picture


def test_rapidocr_reads_what_is_painted():
    pytest.importorskip("rapidocr_onnxruntime", reason='needs `pip install "unigrpo[ocr]"`')
    reward = get_reward("ocr")
    texts = ["OPEN", "OPEN", "Good day", "OPEN"]
    scores = reward(texts, [written("OPEN"), written("OPAN"), written("Good\nday", 48), written("")], text=texts)
    assert scores == [1.0, 0.75, 1.0, 0.0]

"""Pictures from anywhere: only files of a few kinds are opened, and nothing is run, fetched or waited for."""

from __future__ import annotations

import io
import os
import subprocess
import threading

import pytest
from PIL import Image

from unigrpo.data.pictures import FORMATS, load_image


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n(x) (w) file closefile\nshowpage\n%%EOF\n"
)


@pytest.fixture
def no_programs(monkeypatch):
    def run(*arguments, **_):
        raise AssertionError(f"a program was started: {arguments}")

    for name in ("Popen", "call", "check_call", "check_output", "run"):
        monkeypatch.setattr(subprocess, name, run)
    monkeypatch.setattr(os, "system", run)
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)


def test_postscript_is_not_run_in_any_form(no_programs, tmp_path):
    (tmp_path / "a.png").write_bytes(POSTSCRIPT)
    lazy = Image.open(io.BytesIO(POSTSCRIPT))
    assert lazy.format == "EPS"
    for value in (POSTSCRIPT, str(tmp_path / "a.png"), {"bytes": POSTSCRIPT}, lazy):
        with pytest.raises(ValueError, match=r"not an image file|EPS files are not read"):
            load_image(value, "rows[0]")


@pytest.mark.smoke
def test_only_files_with_pictures_are_opened(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    waiting = threading.Thread(target=lambda: open(pipe, "wb").close(), daemon=True)
    waiting.start()
    for value in (pipe, tmp_path, "/dev/zero", "/dev/stdin", "http://localhost:1/a.png", "a\0.png", "x" * 5_000):
        with pytest.raises(ValueError, match=r"^rows\[0\]: no file"):
            load_image(value, "rows[0]")
    os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))


@pytest.mark.parametrize("kind", [name for name in FORMATS if name not in ("MPO", "DIB")])
def test_the_usual_kinds_are_read(kind):
    buffer = io.BytesIO()
    try:
        Image.new("RGB", (16, 16), (10, 20, 30)).save(buffer, kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {kind}")
    assert load_image(buffer.getvalue(), "rows[0]").size == (16, 16)


def test_a_kind_that_pillow_knows_and_we_do_not_is_refused():
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PCX")
    with pytest.raises(ValueError, match="not an image file"):
        load_image(buffer.getvalue(), "rows[0]")

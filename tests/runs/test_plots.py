"""matplotlib is an extra: with it pictures are drawn, without it a line says how to get it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from unigrpo.runs.plots import pyplot_for


def test_without_matplotlib_a_line_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert pyplot_for(Path("runs/curve.png")) is None
    assert capsys.readouterr().out == "curve.png was not drawn: pip install 'unigrpo[plots]'\n"


@pytest.mark.smoke
def test_with_matplotlib_nothing_needs_a_display():
    matplotlib = pytest.importorskip("matplotlib", reason="needs the extra: pip install 'unigrpo[plots]'")
    assert pyplot_for(Path("curve.png")) is sys.modules["matplotlib.pyplot"]
    assert matplotlib.get_backend().lower() == "agg"

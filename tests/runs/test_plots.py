"""matplotlib is an extra: with it pictures are drawn, without it a line says how to get it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from unigrpo.runs.plots import figure_for


@pytest.mark.smoke
def test_without_matplotlib_a_line_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert figure_for(Path("runs/curve.png")) is None
    assert capsys.readouterr().out == "curve.png was not drawn: pip install 'unigrpo[plots]'\n"

"""matplotlib is an extra: with it pictures are drawn, without it a line says how to get it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from unigrpo.runs.plots import RefreshedCurve, draw_curve, figure_for


@pytest.mark.smoke
def test_without_matplotlib_a_line_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert figure_for(Path("runs/curve.png")) is None
    assert capsys.readouterr().out == "curve.png was not drawn: pip install 'unigrpo[plots]'\n"


def test_a_curve_is_drawn_again_while_a_run_goes_on(tmp_path):
    """At log lines, not more often than it may, and never half."""
    metrics, picture = tmp_path / "metrics.jsonl", tmp_path / "curve.png"
    metrics.write_text("".join(json.dumps({"step": step, "reward": step / 10}) + "\n" for step in (1, 2)))
    state = SimpleNamespace(is_world_process_zero=True, global_step=2)
    patient, eager = (RefreshedCurve(metrics, picture, "a run", seconds=own) for own in (3600.0, 0.0))
    patient.on_log(None, state, None)
    assert not picture.exists()
    eager.on_log(None, SimpleNamespace(is_world_process_zero=False, global_step=2), None)
    assert not picture.exists(), "the first process draws"
    eager.on_log(None, state, None)
    first = picture.read_bytes()
    with metrics.open("a") as lines:
        lines.write(json.dumps({"step": 3, "reward": 0.9}) + "\n")
    eager.on_log(None, state, None)
    assert picture.read_bytes() != first and {own.name for own in tmp_path.iterdir()} == {"metrics.jsonl", "curve.png"}


def test_drawing_a_curve_leaves_the_plots_of_the_session_alone(tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    monkeypatch.setitem(matplotlib.rcParams, "backend", "svg")
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # An import of it would raise.
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "reward": 0.7}\n')
    draw_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png", "a run")
    assert matplotlib.rcParams["backend"] == "svg" and (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"

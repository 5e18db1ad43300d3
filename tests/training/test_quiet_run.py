"""A usual run says nothing that the user could not change: no warnings of packages about each other, no plots taken away."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest


def test_checkpointed_adapters_train_and_save_without_a_warning(make_trainer, tmp_path):
    """The base's name is not a folder, as ``builtin:NAME`` and hub ids are not; the hub cannot be asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.filterwarnings("error", message="Could not find a config file")
        trainer = make_trainer(lora=True, gradient_checkpointing=True, max_steps=1)
        trainer.model.peft_config["default"].base_model_name_or_path = "builtin:arithmetic"
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
    assert trainer.model.base_model.model.is_gradient_checkpointing
    assert (tmp_path / "saved" / "adapter_model.safetensors").exists()


def test_drawing_a_curve_leaves_the_plots_of_the_session_alone(tmp_path):
    pytest.importorskip("matplotlib")
    code = """
import matplotlib, pathlib, sys
matplotlib.use("svg")
from unigrpo.runs.plots import draw_curve
pathlib.Path("metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\\n{"step": 2, "reward": 0.7}\\n')
draw_curve(pathlib.Path("metrics.jsonl"), pathlib.Path("curve.png"), "a run")
assert matplotlib.get_backend() == "svg", matplotlib.get_backend()
assert "matplotlib.pyplot" not in sys.modules
assert pathlib.Path("curve.png").read_bytes()[:4] == b"\\x89PNG"
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)

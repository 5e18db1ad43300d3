"""Decoders with a tied and an untied head, and one with experts, on several processes are what they are on one, sharded too, and so are their files."""

from __future__ import annotations

from typing import Any

import pytest

from unigrpo import MaskedDenoisingConfig, MaskedDenoisingTrainer
from unigrpo.models import load_model

from ..support.divisions import distance
from ..support.engines import ENGINES, on_processors, weights
from ..support.given_runs import SMALL, TEXT, ShardedGiven
from ..support.processes import played
from ..support.tiny_decoders import tiny_decoder


pytestmark = pytest.mark.processes


def divided(rank: int, folder: str, name: str, batch: int, accumulation: int, engine: str) -> dict[str, Any]:
    """Weights and losses of a run, as one process of several sees them."""
    model, policy = tiny_decoder(name)
    settings = {**SMALL, "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    with on_processors(engine):
        args = MaskedDenoisingConfig(folder, **settings, objective="bd3lm" if policy.block_size else "mdlm")
        kind = ShardedGiven if engine == "fsdp2" else MaskedDenoisingTrainer
        trainer = kind(model, args, TEXT, processing_class=policy.processor)
        trainer.train()
        trainer.save_model()
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        return {"weights": weights(trainer), "losses": losses}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["a2d-qwen3", "dream", "blocks", "llada2"])
def test_processes_change_nothing(tmp_path, name, engine):
    alone = divided(0, str(tmp_path / "alone"), name, 8, 1, "ddp")
    scene = {"folder": str(tmp_path / "two"), "name": name, "batch": 2, "accumulation": 2, "engine": engine}
    (ranks,) = played(2, tmp_path / "scenes", __name__, ("divided", scene))
    saved = {run: load_model(tmp_path / run).state_dict() for run in ("alone", "two")}
    assert distance(saved["two"], saved["alone"]) < 1e-4
    for own in ranks:
        assert distance(own["weights"], alone["weights"]) < 1e-4
        assert own["losses"] == pytest.approx(alone["losses"], rel=1e-4)

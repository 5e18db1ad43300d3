"""Checkpoints of runs with pictures: resumed inside a rollout window they are the uninterrupted run."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset, Image

from unigrpo.training.checkpoints.window_checkpoints import window_file
from unigrpo.training.checkpoints.window_file import load_window

from ..support.images import GUIDED, image_rows, options
from ..support.runs import history
from ..support.tiny import IDS


STEPS = 4
"""One window of 4 micro-steps x 2 inner updates at accumulation 2, whose last checkpoint lies behind it."""


def stored(rows: list[dict]) -> Dataset:
    """The rows as a dataset whose pictures are encoded files."""
    columns = [{"prompt": row["prompt"], "task": row["task"], "image": row.get("image")} for row in rows]
    return Dataset.from_list(columns).cast_column("image", Image())


def run(make_trainer, lora: bool, checkpoint=None, **changes):
    arguments = options("mixed", 8, GUIDED, max_steps=2 * STEPS, save_strategy="steps", save_steps=1)
    arguments["rows"] = stored(image_rows("mixed", 8))
    trainer = make_trainer(lora=lora, **{**arguments, "shuffle_dataset": True, **changes})
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def metrics(trainer) -> dict[int, dict]:
    """Everything that is logged of a step but its times."""
    return {
        log["step"]: {name: value for name, value in log.items() if not name.startswith(("time/", "tokens_per"))}
        for log in trainer.state.log_history
        if "loss" in log
    }


@pytest.mark.parametrize("lora", [pytest.param(False, marks=pytest.mark.slow), True])
def test_resuming_a_mixed_run_changes_nothing(make_trainer, tmp_path, lora):
    whole = run(make_trainer, lora)
    expected, everything = history(whole), metrics(whole)
    assert len(set(expected.values())) == 2 * STEPS
    final = {name: value.clone() for name, value in whole.model.named_parameters()}
    for step in (1, 4):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        again = run(make_trainer, lora, str(folder), save_strategy="no", output_dir=str(tmp_path / "again"))
        own, other = history(again), metrics(again)
        for number in range(step + 1, 2 * STEPS + 1):
            assert own[number] == expected[number]
            assert other[number] == everything[number]
        for name, value in again.model.named_parameters():
            assert torch.equal(value, final[name]), name


@pytest.mark.smoke
def test_a_checkpoint_holds_every_tasks_rows(make_trainer, tmp_path):
    """Token spaces, noise and, where the reference is not the exact one, its scores survive; no picture is kept."""
    trainer = run(make_trainer, True, max_steps=1, shuffle_dataset=False)
    file = window_file(tmp_path / "run" / "checkpoint-1", 0)
    rows = load_window(file)[0]
    ids = IDS["tiny"]
    image = range(ids["n_tok"], ids["n_tok"] + ids["codebook"])
    assert [row.task for row in rows] == ["t2i"] * 4 + ["mmu"] * 4 + ["text"] * 4 + ["t2i"] * 4
    for row, before in zip(rows, trainer._window.experiences, strict=True):
        space = range(row.token_space.start, row.token_space.stop)
        assert row.token_space == before.token_space
        assert set(row.ids[row.completion_mask].tolist()) <= set(space)
        assert (space == image) == (row.task == "t2i")
        assert (row.ref_logps is None) == (row.task == "t2i")
        assert torch.equal(row.hidden, before.hidden) and torch.equal(row.old_logps, before.old_logps)
    assert sum(int(token in image) for token in rows[4].ids.tolist()) == 16
    assert file.stat().st_size < 200_000

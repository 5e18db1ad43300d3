"""What a run has logged, and models to start it from."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from unigrpo.rollout.generate import load_policy

from .images import assert_on_policy
from .laws import first_window
from .tiny import tiny_model


def logs_of(trainer) -> list[dict]:
    return [log for log in trainer.state.log_history if "loss" in log]


def adapted():
    """The tiny model with an adapter that already changes its answers."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules="all-linear"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.05)
    return model


def history(trainer) -> dict[int, tuple]:
    """Loss, gradient norm, learning rate, reward and KL by optimizer step."""
    return {
        log["step"]: (log["loss"], log["grad_norm"], log["learning_rate"], log.get("reward"), log["kl"])
        for log in trainer.state.log_history
        if "loss" in log
    }


def run_and_reopen(make_trainer, folder: Path, **options):
    """A run of two steps and what it saved, opened; a second trainer starts at ratio 1 and KL 0 and goes on from its first step."""
    options = {"processor": None, "max_steps": 2, "beta": 0.04, "steps": 3, **options}
    whole = make_trainer(save_strategy="steps", save_steps=1, **options)
    whole.train()
    again = make_trainer(output_dir=str(folder / "again"), **options)
    assert_on_policy(again, first_window(again))
    again.train(resume_from_checkpoint=str(folder / "run" / "checkpoint-1"))
    assert history(again)[2] == history(whole)[2]
    whole.save_model()
    return whole, load_policy(str(folder / "run"), device="cpu")


def diverging(trainer, after: int, what: str):
    """``trainer`` whose loss or gradient of the first row turns infinite at optimizer step ``after`` + 1."""
    real = trainer.compute_loss

    def compute_loss(model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = real(model, inputs, return_outputs=True)
        if trainer.state.global_step == after and what == "loss":
            outputs["terms"].losses.data[0] = torch.inf
        if trainer.state.global_step == after and what == "gradient":
            loss = loss * torch.inf
        return loss, outputs

    trainer.compute_loss = compute_loss
    return trainer

"""Fine-tuning runs of seconds: rows of all tasks, and trainers on the tiny model."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig

from unigrpo import MaskedDenoisingConfig, MaskedDenoisingTrainer
from unigrpo.training.engines import engine_of

from .engines import Sharding, deepspeed_config, on_processors, weights
from .images import picture, tiny_tokenizer
from .tiny import tiny_model, tiny_processor


TEXT = [
    {"prompt": f"w{i} w{i + 1}", "completion": " ".join(f"w{50 + i + j}" for j in range(1 + i % 3))} for i in range(12)
]
PICTURES = [
    {"prompt": f"w{i}", "completion": f"w{60 + i}", "image": picture(i)}
    if i % 2
    else {"prompt": f"w{i} w9", "image": picture(i), "task": "t2i"}
    for i in range(6)
]
THOUGHTS = [
    {"prompt": f"w{i}", "completion": f"w{70 + i} w{80 + i}", "image": picture(i), "task": "r2i"} for i in range(2)
]
MIXED = {"chats": TEXT, "pictures": PICTURES, "thoughts": THOUGHTS}

SMALL = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "max_length": 24,
    "max_steps": 3,
    "logging_steps": 1,
    "image_size": 64,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}


class ShardedGiven(Sharding, MaskedDenoisingTrainer):
    """A sharded run of fine-tuning."""


def given_trainer(
    folder: Any, rows: Any = TEXT, *, eval_rows=None, lora=False, model=None, callbacks=None, engine="ddp", **arguments
):
    """A trainer of ``rows`` (a list, or sources) that writes into ``folder``."""
    settings = {**SMALL, **({"image_tokenizer": tiny_tokenizer()} if isinstance(rows, dict) else {}), **arguments}
    if engine.startswith("zero"):
        settings.pop("use_cpu")
        settings["deepspeed"] = deepspeed_config(int(engine[-1]))
    return (ShardedGiven if engine == "fsdp2" else MaskedDenoisingTrainer)(
        tiny_model() if model is None else model,
        MaskedDenoisingConfig(str(folder), **settings),
        rows,
        eval_rows,
        processing_class=tiny_processor(),
        callbacks=callbacks,
        peft_config=LoraConfig(r=4) if lora else None,
    )


def divided_run(
    rank: int, folder: str, batch: int, accumulation: int, engine: str = "ddp", lora: bool = False
) -> dict[str, Any]:
    """Weights, losses and held-out numbers of a mixed run, as one process of several sees them."""
    with on_processors(engine):
        trainer = given_trainer(
            folder,
            MIXED,
            eval_rows=[*TEXT[:3], *PICTURES[:2]],
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            engine=engine,
            lora=lora,
        )
        trainer.train()
        end = trainer.evaluate()
        return {
            "engine": engine_of(trainer.accelerator, trainer.model_wrapped),
            "weights": weights(trainer),
            "losses": numbers(trainer).tolist(),
            "held_out": {name: value for name, value in end.items() if not name.endswith(("runtime", "epoch"))},
        }


def numbers(trainer: MaskedDenoisingTrainer) -> torch.Tensor:
    """The losses that were logged."""
    return torch.tensor([log["loss"] for log in trainer.state.log_history if "loss" in log])

"""Three tasks in one run: a policy draws captions, answers about pictures and adds. A row's columns say which."""

from unigrpo import UniGRPOConfig, UniGRPOTrainer
from unigrpo.toy import arithmetic, shapes
from unigrpo.toy.pixel_check import right_picture


def drawn(completions, solution, **_):
    """1.0 for a picture that shows the colour, shape and position asked for, else 0.0; None for a text."""
    pairs = zip(completions, solution, strict=True)
    return [None if isinstance(own, str) else float(right_picture(own, gold)) for own, gold in pairs]


def said(completions, solution, **_):
    """1.0 for the right word, or for the right number behind the thought, else 0.0; None for a picture."""
    golds = [gold.removeprefix("#### ") for gold in solution]
    pairs = zip(completions, golds, strict=True)
    return [float(own.split("</think>")[-1] == gold) if isinstance(own, str) else None for own, gold in pairs]


if __name__ == "__main__":
    # A task's share of the run is its share of the rows.
    rows = shapes.problems("train", 192) + shapes.questions("train", 384) + arithmetic.problems("train", 192)
    held_out = {"draw": shapes.problems("test"), "look": shapes.questions("test")}
    held_out["add"] = arithmetic.problems("test", 48)
    # What one task sets for itself; the checkpoint says how long its texts are.
    overrides = {"t2i": {"sampler": "emerge", "steps": 8, "guidance_scale": 0.0, "timesteps": "truncated"}}
    options = {"learning_rate": 2e-4, "max_steps": 64, "eval_temperature": 1.0, "save_strategy": "no"}
    args = UniGRPOConfig("runs/mixed", per_device_train_batch_size=96, task_overrides=overrides, **options)
    trainer = UniGRPOTrainer("builtin:shapes", [drawn, said], args, rows, held_out)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    for name in held_out:
        print(f"{name}: reward before {before[f'eval_{name}_reward']:.2f}, after {after[f'eval_{name}_reward']:.2f}")

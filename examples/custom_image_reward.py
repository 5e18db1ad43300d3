"""Text-to-image with a reward of your own: completions are PIL images."""

import numpy as np

from unigrpo import UniGRPOConfig, UniGRPOTrainer
from unigrpo.toy.shapes import problems


def bright(completions, **_):
    """Mean brightness of each picture, in [0, 1]."""
    return [np.asarray(picture).mean() / 255 for picture in completions]


if __name__ == "__main__":
    options = {"steps": 8, "guidance_scale": 0.0, "timesteps": "truncated", "num_iterations": 2, "save_strategy": "no"}
    args = UniGRPOConfig("runs/bright", per_device_train_batch_size=64, learning_rate=3e-4, max_steps=80, **options)
    trainer = UniGRPOTrainer("builtin:shapes", bright, args, problems("train"), problems("test"))
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    print(f"reward before {before:.2f}, after {trainer.evaluate()['eval_reward']:.2f}")

"""A reward of your own: answers are compared with a column of the dataset. The policy ships with the package."""

from unigrpo import UniGRPOConfig, UniGRPOTrainer
from unigrpo.toy.arithmetic import problems


def exact(completions, solution, **_):
    """1.0 when what follows </think> is the solution, '#### 131', to the letter, else 0.0."""
    return [float(text.split("</think>")[-1] == gold[5:]) for text, gold in zip(completions, solution, strict=True)]


if __name__ == "__main__":
    options = {"learning_rate": 2e-4, "max_steps": 96, "save_strategy": "no"}
    args = UniGRPOConfig("runs/exact", per_device_train_batch_size=64, **options)
    trainer = UniGRPOTrainer("builtin:arithmetic", exact, args, problems("train", 512), problems("test", 64))
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    print(f"reward before {before:.2f}, after {trainer.evaluate()['eval_reward']:.2f}")

"""A reward of your own, on the policy that ships with the package: prefer answers that count instead of adding."""

from unigrpo import UniGRPOConfig, UniGRPOTrainer
from unigrpo.generation import model_path
from unigrpo.toy.arithmetic import problems


def counts(completions, **_):
    """1.0 for an answer whose reasoning does not restate the sum, else 0.0."""
    return [float("</think>" in text and "+" not in text) for text in completions]


if __name__ == "__main__":
    sampling = {"max_completion_length": 16, "steps": 8, "block_length": 4}
    args = UniGRPOConfig("runs/mine", per_device_train_batch_size=64, learning_rate=3e-4, max_steps=48, **sampling)
    rows, held_out = problems("train", 512), problems("test", 64)
    trainer = UniGRPOTrainer(model_path("builtin:arithmetic"), counts, args, rows, held_out)
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    print(f"reward before {before:.2f}, after {trainer.evaluate()['eval_reward']:.2f}")

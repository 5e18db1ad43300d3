"""Fine-tuning on a few given answers, and then rewards for more problems, of which only the solutions are known."""

from unigrpo import MaskedDenoisingConfig, MaskedDenoisingTrainer, UniGRPOConfig, UniGRPOTrainer
from unigrpo.toy.arithmetic import lessons, problems


def tuned(model):
    """Fine-tunes on 64 right answers, a ``completion`` beside each ``prompt``; returns the folder of the result."""
    options = {"objective": "llada", "max_length": 36, "learning_rate": 2e-4, "max_steps": 16, "save_strategy": "no"}
    args = MaskedDenoisingConfig("runs/tuned", per_device_train_batch_size=16, overwrite=True, **options)
    trainer = MaskedDenoisingTrainer(model, args, lessons("train", 64))
    trainer.train()
    trainer.save_model()  # With its tokenizer: the folder is a model for every trainer and command.
    return args.output_dir


def rewarded(model):
    """The trainer of ``model`` with a reward for right answers."""
    options = {"learning_rate": 2e-4, "max_steps": 48, "save_strategy": "no"}
    args = UniGRPOConfig("runs/rewarded", per_device_train_batch_size=64, **options)
    return UniGRPOTrainer(model, "math_correctness", args, problems("train", 512, seed=1), problems("test", 64))


if __name__ == "__main__":
    before = rewarded("builtin:arithmetic").evaluate()["eval_reward"]
    trainer = rewarded(tuned("builtin:arithmetic"))
    between = trainer.evaluate()["eval_reward"]
    trainer.train()
    after = trainer.evaluate()["eval_reward"]
    print(f"reward before {before:.2f}, after fine-tuning {between:.2f}, after rewards {after:.2f}")

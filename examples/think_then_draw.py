"""Think, then draw: a policy thinks out what a riddle means and draws its thought. Only the picture is rewarded."""

from unigrpo import UniGRPOConfig, UniGRPOTrainer, load_policy
from unigrpo.toy.pixel_check import right_picture
from unigrpo.toy.riddles import problems


def right(completions, solution, **_):
    """1.0 for a picture of the colour, shape and position meant, else 0.0. ``thoughts`` could be read too."""
    return [float(right_picture(picture, gold)) for picture, gold in zip(completions, solution, strict=True)]


def show(policy, path):
    """Prints a held-out riddle and what the policy thinks, and leaves its picture at ``path``."""
    riddle = problems("test")[0]["prompt"]
    thought, picture = policy.generate(riddle, task="r2i")[0]
    picture.resize((256, 256)).save(path)
    print(f"{riddle}\n  {thought}  drawn in {path}")


if __name__ == "__main__":
    # A thought and its picture are sampled and scored each with settings of their own.
    overrides = {"picture": {"sampler": "emerge", "steps": 8, "guidance_scale": 0.0, "timesteps": "truncated"}}
    options = {"learning_rate": 3e-4, "max_steps": 24, "num_iterations": 2, "save_strategy": "no"}
    args = UniGRPOConfig("runs/riddles", per_device_train_batch_size=32, task_overrides=overrides, **options)
    trainer = UniGRPOTrainer("builtin:riddles", right, args, problems("train", 512), problems("test", 64))
    show(load_policy("builtin:riddles"), "runs/riddles/before.png")
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    show(trainer, "runs/riddles/after.png")
    print(f"reward before {before:.2f}, after {trainer.evaluate()['eval_reward']:.2f}")

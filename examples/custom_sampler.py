"""A sampler of your own: it looks a few holes ahead, and writes the surest of them."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from unigrpo import UniGRPOConfig, UniGRPOTrainer
from unigrpo.parts import check_keys, key
from unigrpo.samplers.base import Stepwise, scatter
from unigrpo.samplers.semi_autoregressive import most_confident
from unigrpo.testing import check_sampler
from unigrpo.toy.arithmetic import problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Window(Stepwise):
    """A token a step, the surest of the next ``window`` holes: with 1 from left to right, with all in any order."""

    tasks: ClassVar = ("text", "mmu")

    window: int = key(4, "holes that are looked at, from the left", at_least=1)
    temperature: float = key(1.0, "0 = argmax", at_least=0)

    def __post_init__(self):
        check_keys(self)

    def advance(self, model, writer, generators):
        total = int(writer.hidden.sum(dim=1).max())
        for step in range(total):
            near = writer.hidden & (writer.hidden.cumsum(1) <= self.window)
            (counts,) = writer.read(near.sum(dim=1))
            # Rows that have ended with a stop token have no holes, and are computed no more.
            rows = [row for row, count in enumerate(counts) if count]
            if not rows:
                break
            near, counts, streams = near[rows], [counts[row] for row in rows], [generators[row] for row in rows]
            active = torch.tensor(rows, device=near.device)
            drawn = writer.draw(model, active, near, counts, self.temperature, streams, truncation=self.truncation)
            surest = most_confident(-drawn.doubt, near, torch.ones_like(active))
            tokens, logps = scatter(near, drawn.tokens), scatter(near, drawn.sampling_logps)
            writer.write(active, surest, tokens, logps, step)
            yield step + 1, total


if __name__ == "__main__":
    check_sampler(Window())  # It says what is wrong with a sampler, in a sentence.
    options = {"learning_rate": 2e-4, "max_steps": 48, "save_strategy": "no"}
    args = UniGRPOConfig("runs/window", sampler=Window(window=4), per_device_train_batch_size=64, **options)
    rows, held_out = problems("train", 512), problems("test", 64)
    trainer = UniGRPOTrainer("builtin:arithmetic", "math_correctness", args, rows, held_out)
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    print(f"reward before {before:.2f}, after {trainer.evaluate()['eval_reward']:.2f}")

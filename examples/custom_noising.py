"""A noising of your own: neighbours are hidden together, so that they are not guessed from each other."""

from dataclasses import dataclass

import torch

from unigrpo import UniGRPOConfig, UniGRPOTrainer
from unigrpo.algorithm.noising import Draw, Noising
from unigrpo.parts import key
from unigrpo.toy.arithmetic import problems
from unigrpo.types import keyed_generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Span(Noising):
    """One stretch of the answer hidden and scored, each place of it equally likely (SpanBERT, arXiv 1907.10529)."""

    share: float = key(0.5, "share of the answer that is hidden", above=0, at_most=1)

    def draws(self, answer, k, num_iterations, num_samples, key):
        length = answer.length
        size = min(max(round(self.share * length), 1), length)
        starts = length - size + 1
        place = answer.completion.cumsum(0) - 1
        # Starts that hide a token: fewer at both ends. `weighting="inverse_probability"` divides by the chance.
        hiding = torch.minimum(place + 1, length - place).clamp(max=min(size, starts)).clamp(min=1)
        drawn = []
        for s in range(num_samples):
            # The row's key decides, so that neither other rows nor padding move its noise.
            start = int(torch.randint(starts, (), generator=keyed_generator("span", *key, k, s)))
            hidden = answer.completion & (place >= start) & (place < start + size)
            chance = {"probability": hiding / starts, "share": 1 / num_samples}
            drawn.append(Draw(hidden=hidden, target=hidden, ratio=self.share, **chance))
        return drawn


if __name__ == "__main__":
    options = {"learning_rate": 2e-4, "max_steps": 48, "save_strategy": "no"}
    args = UniGRPOConfig("runs/span", noising=Span(share=0.6), per_device_train_batch_size=64, **options)
    rows, held_out = problems("train", 512), problems("test", 64)
    trainer = UniGRPOTrainer("builtin:arithmetic", "math_correctness", args, rows, held_out)
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    print(f"reward before {before:.2f}, after {trainer.evaluate()['eval_reward']:.2f}")

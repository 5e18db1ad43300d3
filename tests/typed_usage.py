"""What a user's script looks like. Nothing runs it: a type checker reads it, so that the public surface is checked as seen from outside."""

from __future__ import annotations

from dataclasses import dataclass

from unigrpo import UniGRPOConfig, UniGRPOTrainer, load_policy
from unigrpo.algorithm.noising import Answer, Draw, Noising
from unigrpo.parts import key
from unigrpo.samplers import SemiAutoregressive
from unigrpo.testing import check_sampler


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail(Noising):
    """The end of the answer hidden."""

    share: float = key(0.5, "share of the answer that is hidden", above=0, at_most=1)

    def draws(
        self, answer: Answer, k: int, num_iterations: int, num_samples: int, key: tuple[int | str, ...]
    ) -> list[Draw]:
        """``num_samples`` times the same mask."""
        hidden = answer.completion & (answer.completion.cumsum(0) > answer.length * (1 - self.share))
        return [Draw(hidden=hidden, target=hidden, ratio=self.share) for _ in range(num_samples)]


def exact(completions: list[str], answer: list[str], **columns: object) -> list[float | None]:
    """1 for the right answer."""
    return [float(text == gold) for text, gold in zip(completions, answer, strict=True)]


args = UniGRPOConfig(
    "runs/mine",
    noising=Tail(share=0.25),
    sampler={"name": "semi_autoregressive", "block_length": 8},
    surrogate="ppo",
    scale_rewards=False,
    image_size=[256, 384],
    task_overrides={"t2i": {"steps": 12}},
    learning_rate=1e-5,
)
rows = [{"prompt": "1 + 1 =", "answer": "2"}]
trainer = UniGRPOTrainer("builtin:arithmetic", ["think_format", exact], args, rows, eval_dataset={"sums": rows})
trainer.train()
steps: int = args.for_task("text").steps
scores: dict[str, float] = trainer.evaluate()
check_sampler(SemiAutoregressive(steps=8, block_length=4))
answers: list[object] = load_policy("runs/mine").generate(["1 + 1 ="], temperature=0.0)
again: list[object] = trainer.generate("1 + 1 =", max_new_tokens=8)

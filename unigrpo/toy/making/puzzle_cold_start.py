"""Makes the shipped policy of running sums: ``python -m unigrpo.toy.making.puzzle_cold_start running_sums``."""

from __future__ import annotations

import importlib
import random
import sys
from typing import Any

import torch

from ...errors import check_choice
from ...models import MMaDAPolicy
from ...rollout.generate import LoadedPolicy
from ...types import Canvas
from .cold_start import arguments, encode_answers, report, save, train, untaught
from .figures import figures


PUZZLES = ("running_sums",)


def main() -> None:
    """The command line: the puzzle ``unigrpo.toy.NAME``, then the options of ``arguments``."""
    name, *rest = sys.argv[1:] or [""]
    check_choice("puzzle", name, PUZZLES)
    puzzle = importlib.import_module(f"..{name}", __package__)
    args = arguments(name, puzzle.__doc__, rest)
    loaded = teach(puzzle, args.seed)
    report(figures(name, loaded))
    save(loaded, args.output, half=True)


def teach(puzzle: Any, seed: int) -> LoadedPolicy:
    """A policy after the cold start.

    Args:
        puzzle: a module with ``WORDS``, ``SAMPLING``, ``STAGES`` and ``lesson(rng, errs)``.
        seed: decides weights, problems and mistakes.
    """
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    loaded = untaught(generator, puzzle.WORDS, sampling_defaults=puzzle.SAMPLING)
    for stage in puzzle.STAGES:
        settings = {key: value for key, value in stage.items() if key != "errs"}
        lessons = Lessons(loaded.policy, puzzle, rng, stage["errs"])
        train(loaded.policy, loaded.model, lessons, **settings, generator=generator)
    loaded.model.eval()
    return loaded


class Lessons:
    """Endless rows of a puzzle with its teacher's answers: ``lessons(n)`` gives ``encode_answers`` of the next n."""

    def __init__(self, policy: MMaDAPolicy, puzzle: Any, rng: random.Random, errs: bool) -> None:
        self.policy, self.puzzle, self.rng, self.errs = policy, puzzle, rng, errs

    def __call__(self, count: int) -> Canvas:
        rows, answers = zip(*(self.puzzle.lesson(self.rng, self.errs) for _ in range(count)), strict=True)
        return encode_answers(self.policy, list(rows), list(answers), self.puzzle.SAMPLING["max_completion_length"])


if __name__ == "__main__":
    main()

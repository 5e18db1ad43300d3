"""A rollout window: its rows dealt to micro-batches and cut into units."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config.arguments import UniGRPOConfig
from ..config.build import Algorithm
from ..rollout.pipeline import Pipeline
from ..types import TASKS, Experience, keyed_generator
from .batches import Mixing, Unit, bucket, count_scored, cut_units, moves_policy, pad_units


@dataclass(slots=True, kw_only=True)
class Window:
    """All rows of one rollout on this rank, cut into units by micro-batch.

    Attributes:
        rows: training data in sampling order.
        order: the shuffled row indices that micro-batches are cut from.
        micro_batches: ``steps_per_generation`` lists of units.
        local_tokens, step_tokens: ``[micro-steps, K, tasks, 2]`` fp32, scored tokens and rows of each task, rows without
            a reward included: of this rank's micro-batch, and of the whole optimizer step on all ranks.
        table: the window's answers as columns, for the completions table; empty after a resume.
    """

    rows: list[Experience]
    order: list[int]
    micro_batches: list[list[Unit]]
    local_tokens: Tensor
    step_tokens: Tensor
    table: dict[str, list] = field(default_factory=dict)

    def tokens_per_row(self, loss_type: str, step: int, k: int, task: str) -> float:
        """Mean scored tokens of a row of ``task`` in micro-step ``step``: of its optimizer step, for ``"bnpo"`` its own."""
        counted = self.local_tokens if loss_type == "bnpo" else self.step_tokens
        tokens, rows = counted[step, k, TASKS.index(task)].tolist()
        return max(tokens, 1.0) / max(rows, 1.0)


def cut_window(pipe: Pipeline, rows: list[Experience], window: int) -> Window:
    """Rows shuffled, dealt to micro-batches and cut into units; every rank gets the same number of units.

    Chance decides which optimizer step a row belongs to (``step_of_rows``); among the micro-batches of a step, rows of
    equal length stand together, and rows without a gradient before them, so that there are few units with many rows. The
    step's gradient is the same sum either way.
    """
    generator = keyed_generator("order", pipe.args.seed, window, pipe.rank)
    order = torch.randperm(len(rows), generator=generator).tolist()
    steps = step_of_rows(pipe.args, window)
    # "bnpo" divides by the tokens of a micro-batch: there it matters who stands with whom.
    alike = all(algorithm.loss.loss_type != "bnpo" for algorithm in pipe.algorithms.values())
    mixings = mixings_of(pipe)

    def place(index: int) -> tuple:
        row = rows[index]
        kind = (moves_policy(row, mixings), row.task, bucket(row, pipe.policy)) if alike else ()
        return steps[row.index], *kind

    order.sort(key=place)
    return rebuild_window(pipe, rows, order)


def step_of_rows(args: UniGRPOConfig, window: int) -> list[int]:
    """The optimizer step of an inner update, from 0, in which each row of the whole window stands.

    Of every run of neighbours as long as there are steps, each goes to another one. So the steps of a window hold the same
    rows however many processes share it: a process's rows are neighbours, and their number is divisible by the steps.
    """
    count = args.steps_per_generation // args.gradient_accumulation_steps
    generator = keyed_generator("steps", args.seed, window)
    return (
        torch.rand(args.generation_batch_size // count, count, generator=generator).argsort(dim=1).flatten().tolist()
    )


def rebuild_window(pipe: Pipeline, rows: list[Experience], order: list[int]) -> Window:
    """The window of ``rows`` in a known ``order``; a resume and a fresh window share this path."""
    steps = pipe.args.steps_per_generation
    size = len(order) // steps
    dealt = [order[step * size : (step + 1) * size] for step in range(steps)]
    units = cut_units(rows, dealt, pipe.policy, mixings_of(pipe))
    counts = torch.tensor([[len(unit) for unit in units]], device=pipe.device)
    everyone = pipe.gather(counts)
    if len(everyone) > 1:
        units = pad_units(units, everyone.amax(dim=0).clamp(min=1).tolist(), rows)
    local = count_tokens(pipe, rows, dealt)
    every = pipe.args.gradient_accumulation_steps
    step = local.view(-1, every, *local.shape[1:]).sum(dim=1)
    step = pipe.gather(step.to(pipe.device)[None]).cpu().sum(dim=0).repeat_interleave(every, dim=0)
    return Window(rows=rows, order=order, micro_batches=units, local_tokens=local, step_tokens=step)


def mixings_of(pipe: Pipeline) -> dict[str, Mixing]:
    """``mixing`` of each task's algorithm in this run."""
    moves = pipe.args.steps_per_generation * pipe.args.num_iterations > pipe.args.gradient_accumulation_steps
    return {task: mixing(own, moves) for task, own in pipe.algorithms.items()}


def mixing(algorithm: Algorithm, policy_moves: bool) -> Mixing:
    """What cutting has to know of ``algorithm``; ``policy_moves`` = a window has more than one optimizer step.

    k2 and k3 to the old policy and their gradients are 0 where the policy is still the old one.
    """
    settings = algorithm.settings
    felt = settings.needs_reference or policy_moves or settings.kl_estimator == "k1"
    return Mixing(
        beta=settings.beta if felt else 0.0, mixes_draws=algorithm.mixes_draws, tokenwise=algorithm.tokenwise
    )


def count_tokens(pipe: Pipeline, rows: list[Experience], dealt: list[list[int]]) -> Tensor:
    """``Window.local_tokens``: tokens by which ``"bnpo"`` and ``"dapo"`` divide."""
    counts = torch.zeros(len(dealt), pipe.args.num_iterations, len(TASKS), 2)
    for step, indices in enumerate(dealt):
        for row in (rows[index] for index in indices):
            algorithm, place = pipe.algorithms[row.task], TASKS.index(row.task)
            whole = algorithm.loss.length_normalization == "completion"
            for k in range(pipe.args.num_iterations):
                scored = float(row.completion_mask.sum()) if whole else count_scored(row, k, algorithm.mixes_draws)
                counts[step, k, place] += torch.tensor([scored, 1.0])
    return counts

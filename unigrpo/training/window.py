"""A rollout window: its experiences dealt to micro-batches and cut into units."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config.arguments import UniGRPOConfig
from ..config.build import Algorithm
from ..rollout.pipeline import Pipeline
from ..types import CANVAS_TASKS, Experience, keyed_generator
from .batches import Unit, bucket, count_scored, cut_units, pad_units, unit_draws
from .old_policy import kl_acts, moves_policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """All experiences of one rollout on this rank, cut into units by micro-batch.

    Attributes:
        experiences: training data in sampling order.
        order: the shuffled answers that micro-batches are cut from; their numbers count answers, not spans.
        micro_batches: ``steps_per_generation`` lists of units.
        local_tokens, step_tokens: ``[micro-steps, K, tasks, 2]`` fp32, scored tokens and experiences of each task, those without
            a reward included: of this rank's micro-batch, and of the whole optimizer step on all ranks.
        table: the window's answers as columns, for the completions table; empty after a resume.
        unscored: training prompts in a row without a score from any reward, this window's the last of them.
    """

    experiences: list[Experience]
    order: list[int]
    micro_batches: list[list[Unit]]
    local_tokens: Tensor
    step_tokens: Tensor
    table: dict[str, list] = field(default_factory=dict)
    unscored: int = 0

    def tokens_per_row(self, loss_type: str, step: int, k: int, task: str) -> float:
        """Mean scored tokens of an experience of ``task`` in micro-step ``step``: of its optimizer step, for ``"bnpo"`` its own."""
        counted = self.local_tokens if loss_type == "bnpo" else self.step_tokens
        tokens, count = counted[step, k, CANVAS_TASKS.index(task)].tolist()
        return max(tokens, 1.0) / max(count, 1.0)


def cut_window(pipe: Pipeline, experiences: list[Experience], window: int) -> Window:
    """Experiences shuffled, dealt to micro-batches and cut into units; every rank gets the same number of units.

    Chance decides which optimizer step one belongs to (``steps_by_index``); among the micro-batches of a step, those of
    equal length stand together, and those without a gradient before them, so that there are few, large units. The step's
    gradient is the same sum either way.
    """
    generator = keyed_generator("order", pipe.args.seed, window, pipe.rank)
    answers = spans_by_answer(experiences)
    order = torch.randperm(len(answers), generator=generator).tolist()
    steps = steps_by_index(pipe.args, window)
    # "bnpo" divides by the tokens of a micro-batch: there it matters who stands with whom.
    alike = all(algorithm.loss.loss_type != "bnpo" for algorithm in pipe.algorithms.values())
    acts = _kl_acts(pipe.args, pipe.algorithms)

    def place(answer: int) -> tuple:
        own = experiences[answers[answer][0]]
        kind = (moves_policy(own, acts[own.task]), own.task, bucket(own, pipe.policy)) if alike else ()
        return steps[own.index], *kind

    order.sort(key=place)
    return rebuild_window(pipe, experiences, order)


def spans_by_answer(experiences: list[Experience]) -> list[list[int]]:
    """The places of each answer's spans, which are neighbours, in the order of the answers."""
    return [
        [place for place, _ in own]
        for _, own in itertools.groupby(enumerate(experiences), key=lambda item: item[1].index)
    ]


def steps_by_index(args: UniGRPOConfig, window: int) -> list[int]:
    """The optimizer step of an inner update, from 0, in which each answer of the whole window stands, by its index.

    Of every run of neighbours as long as there are steps, each goes to another one. So the steps of a window hold the same
    answers however many processes share it: a process's are neighbours, and their number is divisible by the steps.
    """
    count = args.steps_per_generation // args.gradient_accumulation_steps
    generator = keyed_generator("steps", args.seed, window)
    return (
        torch.rand(args.generation_batch_size // count, count, generator=generator).argsort(dim=1).flatten().tolist()
    )


def rebuild_window(pipe: Pipeline, experiences: list[Experience], order: list[int]) -> Window:
    """The window of ``experiences`` in a known ``order``; a resume and a fresh window share this path."""
    steps, answers = pipe.args.steps_per_generation, spans_by_answer(experiences)
    size = len(order) // steps
    dealt = [
        [place for answer in order[step * size : (step + 1) * size] for place in answers[answer]]
        for step in range(steps)
    ]
    draws = _draws_to_cut(pipe.args, pipe.algorithms, experiences)
    units = cut_units(experiences, draws, dealt, pipe.policy)
    counts = torch.tensor([[len(unit) for unit in units]], device=pipe.device)
    everyone = pipe.gather(counts)
    if len(everyone) > 1:
        units = pad_units(units, everyone.amax(dim=0).clamp(min=1).tolist(), experiences)
    local = count_tokens(pipe.algorithms, pipe.args.num_iterations, experiences, dealt)
    every = pipe.args.gradient_accumulation_steps
    step = local.view(-1, every, *local.shape[1:]).sum(dim=1)
    step = pipe.gather(step.to(pipe.device)[None]).cpu().sum(dim=0).repeat_interleave(every, dim=0)
    return Window(experiences=experiences, order=order, micro_batches=units, local_tokens=local, step_tokens=step)


def _kl_acts(args: UniGRPOConfig, algorithms: dict[str, Algorithm]) -> dict[str, bool]:
    return {task: kl_acts(args, own.settings) for task, own in algorithms.items()}


def _draws_to_cut(
    args: UniGRPOConfig, algorithms: dict[str, Algorithm], experiences: list[Experience]
) -> list[list[int]]:
    """The draws of each experience that need a unit; none of one that cannot move the policy."""
    acts, draws = _kl_acts(args, algorithms), []
    for own in experiences:
        algorithm = algorithms[own.task]
        moves = moves_policy(own, acts[own.task])
        draws.append(unit_draws(own, algorithm.mixes_draws, algorithm.tokenwise) if moves else [])
    return draws


def count_tokens(
    algorithms: dict[str, Algorithm], num_iterations: int, experiences: list[Experience], dealt: list[list[int]]
) -> Tensor:
    """``Window.local_tokens``: tokens by which ``"bnpo"`` and ``"dapo"`` divide."""
    counts = torch.zeros(len(dealt), num_iterations, len(CANVAS_TASKS), 2)
    for step, indices in enumerate(dealt):
        for own in (experiences[index] for index in indices):
            algorithm, place = algorithms[own.task], CANVAS_TASKS.index(own.task)
            whole = algorithm.loss.length_normalization == "completion"
            for k in range(num_iterations):
                scored = float(own.completion_mask.sum()) if whole else count_scored(own, k, algorithm.mixes_draws)
                counts[step, k, place] += torch.tensor([scored, 1.0])
    return counts

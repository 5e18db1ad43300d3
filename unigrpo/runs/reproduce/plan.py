"""What a reproduction would do, spend and hold: nothing is loaded, and no network is asked."""

from __future__ import annotations

import warnings

from ...models.forward import used_scales
from ..build import build_config
from ..memory_report import memory_of_any
from ..recipe import Recipe
from ..report.headline import duration
from ..shapes import model_family, shapes_of
from .table import Budget, Expected, Reproduction


SPEED = 400e12
"""Floating-point operations a second and GPU that hours are counted with: two fifths of an H100's peak in bf16. Not measured."""


def stages(own: Reproduction, budget: Budget, recipe: Recipe) -> list[str]:
    """What is done in turn, a line each."""
    args, rows = build_config(recipe), held_out_rows(own, recipe)
    window = args.per_device_train_batch_size * args.steps_per_generation * budget.processes
    updates = args.steps_per_generation // args.gradient_accumulation_steps * args.num_iterations
    windows = -(-args.max_steps // updates)
    return [
        f"measure before: {rows:,} held-out rows",
        f"train: {args.max_steps:,} optimizer steps, {windows:,} windows of {window:,} answers",
        f"measure after: the same {rows:,} rows",
        "card: card.json, card.html, card.png",
    ]


def held_out_rows(own: Reproduction, recipe: Recipe) -> int:
    """Held-out rows after ``limit``."""
    limits = [spec.limit for spec in recipe.eval_datasets if spec.limit]
    return min(own.rows, *limits) if limits else own.rows


def plan(name: str, own: Reproduction, budget_name: str, budget: Budget, recipe: Recipe) -> list[str]:
    """The lines of ``--plan``: stages, hours, memory, and what is expected."""
    lines = [
        f"{name}, budget {budget_name}: {own.title}",
        f"  recipe: {' '.join([own.recipe, *recipe.overrides])}",
        f"  machine: {budget.machine}",
    ]
    lines += [f"  {number}. {text}" for number, text in enumerate(stages(own, budget, recipe), 1)]
    if budget.hours is not None:
        lines.append(f"  time: about {duration(3600 * budget.hours)}")
    else:
        spent = hours(own, budget, recipe)
        parts = ", ".join(f"{what} {value:.1f}" for what, value in spent.items())
        lines.append(
            f"  hours, by arithmetic at {SPEED / 1e12:.0f} TFLOP/s a GPU and not measured: {sum(spent.values()):.1f} ({parts})"
        )
    if budget.card:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            memory = memory_of_any(recipe)
        sums = ", ".join(f"{phase} {count / 1e9:.1f}" for phase, count in memory.phases.items())
        most = max(memory.phases.values()) / 1e9
        lines.append(
            f"  memory, in GB by arithmetic: {sums}: {'fits' if most <= budget.card else 'does not fit'} {budget.card:g}"
        )
    lines += [f"  expected: {expected_text(budget.expected)}", f"    from {budget.expected.source}"]
    others = [other for other in own.budgets if other != budget_name]
    return [*lines, f"  other budgets: {', '.join(others)}"] if others else lines


def expected_text(own: Expected) -> str:
    """The ranges in words."""
    unit = " points" if own.measure == "accuracy" else ""
    percent = " %" if own.measure == "accuracy" else ""
    return (
        f"held-out {short(own.measure)} between {own.before[0]:g} and {own.before[1]:g}{percent} before, and a gain of "
        f"{own.gain[0]:+g} to {own.gain[1]:+g}{unit}"
    )


def short(measure: str) -> str:
    """A measure's name for a reader."""
    return measure.removeprefix("rewards/").removesuffix("/mean")


def hours(own: Reproduction, budget: Budget, recipe: Recipe) -> dict[str, float]:
    """Hours of rollouts, updates and both measurements, shared by the processes: two operations a weight and token of a forward."""
    args = build_config(recipe)
    _, (shape,) = shapes_of(recipe, args, model_family(recipe, args)[1])
    settings = shape.settings
    answers = args.per_device_train_batch_size * args.steps_per_generation * budget.processes
    updates = args.steps_per_generation // args.gradient_accumulation_steps * args.num_iterations
    a_row = 2 * own.weights * shape.length / SPEED / 3600 / budget.processes
    guided = 1 + len(used_scales(settings.rollout_guidance))
    windows = -(-args.max_steps // updates)
    # A pass for the old log-probabilities and one for the reference, then the update: forward, forward again and twice backward.
    passes = args.num_iterations * (1 + 1 + 4)
    held_out = settings.eval_denoising_steps or settings.steps
    return {
        "rollouts": windows * answers * settings.steps * guided * a_row,
        "updates": windows * answers * passes * a_row,
        "measurements": 2 * held_out_rows(own, recipe) * held_out * guided * a_row,
    }

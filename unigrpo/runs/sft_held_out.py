"""Held-out numbers of a fine-tuning run before and after: losses, and answers judged as in ``unigrpo evaluate``."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback

from ..config.arguments import UniGRPOConfig
from ..config.build import build_algorithms, check_task_sampler
from ..data.given import given_of
from ..data.rows import task_of
from ..errors import RecipeError
from ..models.lockstep import forwards_meet
from ..rollout.pipeline import Pipeline
from ..rollout.rewards import RewardSet
from ..sft import MaskedDenoisingTrainer
from ..training.checkpoints.files import named, write_json
from ..training.evaluation import Accuracy, held_out_answers
from .build import build_accuracy
from .denoising import record_denoising
from .held_out import accuracies, points
from .recipe import Recipe, known


SAMPLING_KEYS = (
    *("max_completion_length", "max_prompt_length", "prompt_truncation"),
    *("sampler", "steps", "block_length", "remasking", "temperature", "guidance_scale"),
)
"""Keys of the recipe's section ``sampling``: those of an RL recipe that say how text is written."""


def build_sampling(recipe: Recipe, args: Any) -> UniGRPOConfig | None:
    """How held-out rows are answered; None where the recipe asks for no answers. ``args`` are the run's own.

    Raises:
        RecipeError: an unknown key, or a value that cannot work.
    """
    if recipe.sampling is None:
        return None
    for key in recipe.sampling:
        known(key, SAMPLING_KEYS, f"{recipe.source}: sampling")
    values = dict(recipe.sampling)
    values["eval_temperature"] = values.pop("temperature", 0.0)
    shared = ("seed", "use_cpu", "per_device_eval_batch_size", "image_size", "image_transform")
    try:
        return UniGRPOConfig(
            args.output_dir, report_to="none", **{key: getattr(args, key) for key in shared}, **values
        )
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{recipe.source}: sampling: {error}") from error


def questions(sets: dict[str, Any], args: UniGRPOConfig, source: str) -> list[dict[str, Any]]:
    """The rows of ``sets`` that ask, by a prompt or a chat, have a solution, and are answered with text.

    Raises:
        RecipeError: there are none, or the sampler cannot answer their task.
    """
    rows = ((rows[index], f"{name}[{index}]") for name, rows in sets.items() for index in range(len(rows)))
    judged = [given_of(row, where) for row, where in rows if row.get("solution") is not None]
    found = [given.row for given in judged if given.task in ("text", "mmu") and not given.plain]
    if not found:
        raise RecipeError(
            f"{source}: sampling asks for held-out answers, and no row of eval_datasets has a question and a 'solution' to "
            "judge them by; name one in column_map, or leave out sampling"
        )
    try:
        for task in sorted({task_of(row) for row in found}):
            check_task_sampler(args, task, f"{source}: sampling", held_out=True)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    return found


class HeldOutQuestions:
    """The held-out questions of a run, asked before and after it; made before weights are loaded, so that mistakes are early.

    Args:
        sets: the held-out rows by name.
        args: what ``build_sampling`` says.
    """

    def __init__(self, recipe: Recipe, sets: dict[str, Any], args: UniGRPOConfig) -> None:
        self.judges, self.args, self.algorithms = build_accuracy(recipe), args, build_algorithms(args)
        self.rows = questions(sets, args, recipe.source)

    def measure(self, trainer: MaskedDenoisingTrainer, label: str) -> dict[str, Any]:
        """``accuracy``, of all answers, and ``tasks``; every process calls it. See ``accuracies``.

        ``denoising_<label>.json`` is left as by ``held_out``.
        """
        accelerator = trainer.accelerator
        pipe = Pipeline(
            model=trainer.model_wrapped,
            policy=trainer.policy,
            args=self.args,
            rewards=RewardSet(functions=[no_reward]),
            algorithms=self.algorithms,
            gather=accelerator.gather,
            gather_objects=gather_object,
            rank=accelerator.process_index,
            ranks=accelerator.num_processes,
            device=accelerator.device,
            codec=trainer.writer.codec,
            forwards_meet=forwards_meet(trainer.model_wrapped),
        )
        samples = held_out_answers(pipe, self.rows, 1, self.args.per_device_eval_batch_size)
        if accelerator.is_main_process:
            record_denoising(samples, trainer.policy, Path(str(trainer.args.output_dir)), label)
        everything, tasks = accuracies(samples, self.judges)
        assert everything is not None, "every row has a solution, and its task a judge"
        return {"accuracy": asdict(everything), "tasks": {task: asdict(own) for task, own in tasks.items()}}


def no_reward(completions: list[Any], **columns: Any) -> list[None]:
    """Applies to no answer."""
    return [None] * len(completions)


def compared(before: dict[str, Any] | None, after: dict[str, Any]) -> dict[str, Any]:
    """The summary's entries on held-out rows; what was gained is in percentage points of accuracy."""
    found: dict[str, Any] = {}
    for label, own in (("before", before), ("after", after)):
        found[f"held_out_{label}"] = own and {
            key: value for key, value in own.items() if key not in ("accuracy", "tasks")
        }
        if own and "accuracy" in own:
            found[f"held_out_accuracy_{label}"] = own["accuracy"]
    if {"held_out_accuracy_before", "held_out_accuracy_after"} <= found.keys():
        found["gain_points"] = points(*(Accuracy(**own["accuracy"]) for own in (before or after, after)))
        if len(after["tasks"]) > 1:
            found["tasks"] = {
                task: {"before": (before or after)["tasks"][task], "after": own}
                for task, own in after["tasks"].items()
            }
    return found


def flat(measured: dict[str, Any]) -> dict[str, float]:
    """Losses and, where there is one, the accuracy, by name."""
    found = {key: value for key, value in measured.items() if key not in ("accuracy", "tasks")}
    return {**found, **({"accuracy": measured["accuracy"]["mean"]} if "accuracy" in measured else {})}


def said(summary: dict[str, Any]) -> Iterator[str]:
    """Held-out numbers before and after, a line each."""
    before, after = ({**(summary.get(f"held_out_{label}") or {})} for label in ("before", "after"))
    for name, value in after.items():
        yield f"held-out {name}: {before.get(name, math.nan):.4g} -> {value:.4g}"
    accuracy = {label: summary.get(f"held_out_accuracy_{label}") for label in ("before", "after")}
    if accuracy["after"]:
        shown = [str(Accuracy(**own)) if own else "not measured" for own in accuracy.values()]
        yield f"held-out accuracy: {' -> '.join(shown)}"


class MeasuredBefore(TrainerCallback):
    """Held-out numbers before the first step, by the model as its engine holds it.

    Args:
        questions: what is asked; None = losses alone are measured.
        before: what an interrupted run measured; it is not measured again.
    """

    def __init__(
        self, trainer: MaskedDenoisingTrainer, questions: HeldOutQuestions | None, before: dict[str, Any] | None
    ) -> None:
        self.trainer, self.questions, self.before, self.seconds = trainer, questions, before, 0.0

    def measure(self, label: str) -> dict[str, Any]:
        """Losses and, with questions, ``accuracy`` and ``tasks``; every process calls it."""
        found: dict[str, Any] = self.trainer.measure(self.trainer.eval_dataset)
        return found if self.questions is None else {**found, **self.questions.measure(self.trainer, label)}

    def on_train_begin(self, args, state, control, **kwargs: Any) -> None:
        """Measures, and leaves ``before.json``; not in the middle of a run, whose first weights are gone."""
        if self.before is not None or not self.trainer.eval_dataset or state.global_step:
            return
        started = time.perf_counter()
        self.before = self.measure("before")
        if state.is_world_process_zero:
            path = Path(args.output_dir) / "before.json"
            with named(path):
                write_json(path, self.before)
        self.seconds = time.perf_counter() - started

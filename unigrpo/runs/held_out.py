"""Held-out rows answered and measured, before and after training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ..rollout.pipeline import Pipeline
from ..terminal import console, middle_out, say
from ..trainer import UniGRPOTrainer
from ..training.evaluation import Accuracy, bootstrap, held_out_answers, reward_summary
from ..training.metrics import Metrics
from ..types import Sample
from .build import build_accuracy
from .denoising import record_denoising
from .plots import picture_sheet
from .recipe import Recipe


KEPT, SHOWN = 512, 3
"""Texts that are kept to be compared with the answers after training, and those of them that are shown."""


@dataclass(slots=True, kw_only=True)
class HeldOut:
    """A held-out measurement.

    Attributes:
        accuracy: over all answers that have a measure, None where none has.
        tasks: the same by task.
        rewards: means of the run's rewards, raw and weighted.
        shown: the first ``KEPT`` texts that were asked and answered, with their gold and weighted reward.
    """

    accuracy: Accuracy | None
    tasks: dict[str, Accuracy]
    rewards: dict[str, float]
    shown: list[dict[str, Any]]

    @property
    def numbers(self) -> dict[str, float]:
        """Accuracy, over all and by task, and rewards, by name."""
        found = {} if self.accuracy is None else {"accuracy": self.accuracy.mean}
        if len(self.tasks) > 1:
            found |= {f"accuracy of {task}": own.mean for task, own in self.tasks.items()}
        return {**found, **self.rewards}

    def __str__(self) -> str:
        if self.accuracy is None:
            return f"held-out reward {self.rewards.get('reward', math.nan):.3f}"
        parts = [f"{task} {own}" for task, own in self.tasks.items()] if len(self.tasks) > 1 else []
        return f"held-out accuracy {self.accuracy}" + (f" ({'; '.join(parts)})" if parts else "")


def held_out(trainer: UniGRPOTrainer, recipe: Recipe, label: str) -> HeldOut:
    """Answers to the held-out rows, measured.

    ``images_<label>.png`` has pictures, ``denoising_<label>.json`` how the first answers were written.
    """
    rows = [trainer.eval_dataset[index] for index in range(len(trainer.eval_dataset))]
    pipe = trainer.pipeline()
    metrics = Metrics()
    samples = held_out_answers(pipe, rows, 1, trainer.args.per_device_eval_batch_size, metrics=metrics)
    result = measure(pipe, samples, recipe, metrics)
    if trainer.is_world_process_zero():
        say(f"{label} training: {result}")
        out = Path(str(trainer.args.output_dir))
        record_denoising(samples, pipe.policy, out, label)
        sheet = picture_sheet(samples, f"{label} training")
        if sheet is not None:
            sheet.save(out / f"images_{label}.png")
    return result


def measure(pipe: Pipeline, samples: list[Sample], recipe: Recipe, metrics: Metrics | None = None) -> HeldOut:
    """``accuracy(completion, solution)`` of each task's samples with its interval, and the run's rewards."""
    everything, tasks = accuracies(samples, build_accuracy(recipe))
    texts = [sample for sample in samples if isinstance(sample.completion, str)]
    summary = reward_summary(pipe.rewards, pipe.policy.stop_token_ids, samples, "", metrics)
    return HeldOut(
        accuracy=everything,
        tasks=tasks,
        rewards={name[1:]: value for name, value in summary.items() if name.startswith("_reward") and value == value},
        shown=[_as_text(sample, pipe.rewards.weights) for sample in texts[:KEPT]],
    )


def accuracies(
    samples: list[Sample], judges: Mapping[str, Callable[[str, Any], bool]]
) -> tuple[Accuracy | None, dict[str, Accuracy]]:
    """How many answers are right by the ``judges`` of their tasks, over all that have a solution, and by task."""
    outcomes: dict[str, list[bool]] = {}
    for sample in samples:
        judge, solution = judges.get(sample.task), sample.row.get("solution")
        if judge is not None and solution is not None:
            right = bool(judge(sample.completion, solution))
            outcomes.setdefault(sample.task, []).append(right)
    tasks = {task: bootstrap(own) for task, own in sorted(outcomes.items())}
    everything = [right for own in outcomes.values() for right in own]
    return bootstrap(everything) if everything else None, tasks


def _as_text(sample: Sample, weights: Sequence[float]) -> dict[str, Any]:
    own = {"prompt": sample.row["prompt"], "completion": sample.completion, "gold": sample.row.get("solution")}
    said: dict[str, Any] = {name: str(value) for name, value in own.items() if value is not None}
    if sample.scores is not None and not bool(sample.scores.isnan().all()):
        said["reward"] = float((sample.scores * torch.tensor(weights)).nansum())
    return said


def compare_held_out(before: HeldOut | None, after: HeldOut | None) -> dict[str, Any]:
    """The summary's entries on held-out rows; gains are in percentage points."""
    if before is None or after is None:
        return {}
    out: dict[str, Any] = {"held_out_rewards_before": before.rewards, "held_out_rewards_after": after.rewards}
    if before.accuracy is None or after.accuracy is None:
        return out
    out["held_out_accuracy_before"], out["held_out_accuracy_after"] = asdict(before.accuracy), asdict(after.accuracy)
    out["gain_points"] = points(before.accuracy, after.accuracy)
    if len(before.tasks) > 1:
        out["tasks"] = {
            task: {
                "before": asdict(own),
                "after": asdict(after.tasks[task]),
                "gain_points": points(own, after.tasks[task]),
            }
            for task, own in before.tasks.items()
        }
    return out


def points(before: Accuracy, after: Accuracy) -> float:
    """What was gained, in percentage points."""
    return round(100 * (after.mean - before.mean), 2)


def load_before(out: Path) -> HeldOut | None:
    """The measurement of an interrupted run, so that a resumed one compares with the same start.

    None where there is none, or one that a crash cut short.
    """
    path = out / "before.json"
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text())
        accuracy = Accuracy(**data["accuracy"]) if data["accuracy"] else None
        tasks = {task: Accuracy(**own) for task, own in data["tasks"].items()}
        return HeldOut(accuracy=accuracy, tasks=tasks, rewards=data["rewards"], shown=data["shown"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def show_before_after(before: HeldOut, after: HeldOut) -> None:
    """What changed, then three held-out texts with their gold and the answers before and after, those that changed first."""
    say(f"{before}  →  {after}")
    # An interrupted run may have kept fewer texts.
    pairs = list(zip(before.shown, after.shown, strict=False))
    if not pairs:
        return
    view = Table(show_lines=True, expand=True)
    for name, share in (("prompt", 3), ("gold", 2), ("before", 4), ("after", 4)):
        view.add_column(name, ratio=share, overflow="fold")
    for old, new in sorted(pairs, key=lambda pair: pair[0]["completion"] == pair[1]["completion"])[:SHOWN]:
        view.add_row(old["prompt"], old.get("gold", ""), middle_out(old["completion"]), middle_out(new["completion"]))
    console().print(view)

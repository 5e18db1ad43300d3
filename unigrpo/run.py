"""A recipe from start to finish: measure, train, measure again, leave a summary and a picture."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from rewards import get_reward

from . import __version__
from .algorithms import build_algorithms
from .assembly import load_codec, load_trainable, reward_set
from .building import build_config, build_dataset, build_lora, build_quantization, build_rewards
from .callbacks import JsonLines
from .config import UniGRPOConfig
from .data import task_of
from .evaluation import Accuracy, bootstrap, held_out_answers, reward_summary
from .generation import load_policy, model_path
from .models import MMaDAProcessor
from .pictures import draw_curve, picture_sheet, side_by_side
from .recipe import Recipe
from .sampling import Pipeline, Sample
from .trainer import UniGRPOTrainer


PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "math-verify")
SHOWN = 3


def build_trainer(recipe: Recipe) -> UniGRPOTrainer:
    """The trainer that a recipe describes."""
    args = build_config(recipe)
    spec = recipe.model
    model = load_trainable(spec.path, recipe.policy, model_options(recipe, args), args, recipe.lora is not None)
    trainer = UniGRPOTrainer(
        model=model,
        reward_funcs=build_rewards(recipe),
        args=args,
        train_dataset=build_dataset(recipe.datasets),
        eval_dataset=build_dataset(recipe.eval_datasets),
        sft_dataset=build_dataset(recipe.sft_datasets),
        processing_class=build_processor(recipe),
        peft_config=build_lora(recipe),
        policy=recipe.policy,
    )
    if recipe.lora is not None:
        # The adapter names its base model as the recipe does, not by a path of this machine.
        for config in trainer.model.peft_config.values():
            config.base_model_name_or_path = spec.path
    return trainer


def model_options(recipe: Recipe, args: UniGRPOConfig) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that the recipe asks for, the same for training and evaluation."""
    spec = recipe.model
    options = {"dtype": spec.dtype, "revision": spec.revision, "device_map": spec.device_map}
    options["quantization_config"] = build_quantization(recipe)
    options = {key: value for key, value in options.items() if value is not None}
    if args.attn_mask_mode is not None:
        options["attn_mask_mode"] = args.attn_mask_mode
    return {**options, **(args.model_init_kwargs or {})}


def build_processor(recipe: Recipe) -> Any:
    """The processor with the recipe's think prompt; None when the saved one will do."""
    if recipe.model.think_prompt is None:
        return None
    return MMaDAProcessor.from_pretrained(model_path(recipe.model.path), think_prompt=recipe.model.think_prompt)


def evaluate_recipe(recipe: Recipe, model: str | None = None) -> HeldOut:
    """Held-out accuracy and rewards of the recipe's model, or of ``model`` (weights or adapter), on its held-out rows.

    Pictures that were drawn are left as ``images_evaluated.png`` in the recipe's output folder.

    Raises:
        ValueError: the recipe has no ``eval_datasets``.
    """
    rows = held_out_rows(recipe)
    pipe = held_out_pipeline(recipe, rows, model)
    args, path = pipe.args, model or recipe.model.path
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("answering", total=len(rows))
        samples = held_out_answers(
            pipe, rows, 1, args.per_device_eval_batch_size, lambda done, _: bar.update(task, completed=done)
        )
    result = measure(pipe, samples, recipe)
    Console().print(f"{path}: {result}")
    sheet = picture_sheet(samples, path)
    if sheet is not None:
        out = Path(args.output_dir)
        out.mkdir(parents=True, exist_ok=True)
        sheet.save(out / "images_evaluated.png")
        Console().print(f"wrote {out / 'images_evaluated.png'}")
    return result


def held_out_rows(recipe: Recipe) -> list[dict[str, Any]]:
    """The rows of the recipe's ``eval_datasets``.

    Raises:
        ValueError: there are none.
    """
    data = build_dataset(recipe.eval_datasets)
    if data is None:
        raise ValueError(f"{recipe.source} has no eval_datasets to evaluate on")
    return [data[index] for index in range(len(data))]


def held_out_pipeline(recipe: Recipe, rows: list[dict[str, Any]], model: str | None = None) -> Pipeline:
    """What answers ``rows``: the recipe's model, or ``model`` (weights or adapter), with the recipe's settings."""
    args = build_config(recipe)
    options = model_options(recipe, args)
    if model is not None:
        options.pop("revision", None)
    device = "cpu" if args.use_cpu else None
    processor = build_processor(recipe) if model is None else None
    path = model or recipe.model.path
    loaded = load_policy(path, policy=recipe.policy, device=device, processing_class=processor, **options)
    codec = None
    if any(task_of(row) != "text" for row in rows):
        codec = load_codec(args.image_tokenizer, loaded.policy).to(loaded.model.device)
    return Pipeline(
        model=loaded.model,
        policy=loaded.policy,
        args=args,
        rewards=reward_set(build_rewards(recipe), None, args.reward_weights),
        algorithms=build_algorithms(args),
        device=loaded.model.device,
        codec=codec,
    )


def run_recipe(recipe: Recipe) -> dict[str, Any]:
    """Train and leave ``metrics.jsonl``, ``summary.json``, pictures and the model in ``output_dir``.

    The pictures are ``reward_curve.png`` and, of runs that draw, ``images.png`` with held-out prompts before and after.
    """
    started = time.perf_counter()
    trainer = build_trainer(recipe)
    out = Path(trainer.args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    trainer.add_callback(JsonLines(out / "metrics.jsonl"))
    resume = trainer.args.resume_from_checkpoint
    before = load_before(out) if resume else None
    if before is None and trainer.eval_dataset is not None:
        before = held_out(trainer, recipe, "before")
        save_json(out / "before.json", asdict(before))
    train_started = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    train_seconds = time.perf_counter() - train_started
    trainer.save_model()
    after = held_out(trainer, recipe, "after") if trainer.eval_dataset is not None else None
    summary = {
        "recipe": recipe.source,
        "model": recipe.model.path,
        "lora": recipe.lora is not None,
        "seed": trainer.args.seed,
        "optimizer_steps": trainer.state.global_step,
        "train_seconds": round(train_seconds, 1),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "versions": versions(),
        **compare_held_out(before, after),
    }
    if not trainer.is_world_process_zero():
        return summary
    save_json(out / "summary.json", summary)
    if before is not None and after is not None:
        show_before_after(before, after)
    side_by_side(out / "images_before.png", out / "images_after.png", out / "images.png")
    draw_curve(out / "metrics.jsonl", out / "reward_curve.png", curve_title(summary))
    Console().print(f"wrote {out / 'summary.json'}, {out / 'metrics.jsonl'} and the trained weights in {out}")
    return summary


@dataclass(slots=True, kw_only=True)
class HeldOut:
    """A held-out measurement.

    Attributes:
        accuracy: over all answers that have a measure, None where none has.
        tasks: the same by task.
        rewards: means of the run's rewards, raw and weighted.
        shown: the first texts that were asked and answered.
    """

    accuracy: Accuracy | None
    tasks: dict[str, Accuracy]
    rewards: dict[str, float]
    shown: list[dict[str, str]]

    def __str__(self) -> str:
        if self.accuracy is None:
            return f"held-out reward {self.rewards['reward']:.3f}"
        parts = [f"{task} {own}" for task, own in self.tasks.items()] if len(self.tasks) > 1 else []
        return f"held-out accuracy {self.accuracy}" + (f" ({'; '.join(parts)})" if parts else "")


def held_out(trainer: UniGRPOTrainer, recipe: Recipe, label: str) -> HeldOut:
    """Answers to the held-out rows, measured; pictures are left as ``images_<label>.png``."""
    rows = [trainer.eval_dataset[index] for index in range(len(trainer.eval_dataset))]
    pipe = trainer.pipeline()
    samples = held_out_answers(pipe, rows, 1, trainer.args.per_device_eval_batch_size)
    result = measure(pipe, samples, recipe)
    if trainer.is_world_process_zero():
        Console().print(f"{label} training: {result}")
        sheet = picture_sheet(samples, f"{label} training")
        if sheet is not None:
            sheet.save(Path(trainer.args.output_dir) / f"images_{label}.png")
    return result


def measure(pipe: Pipeline, samples: list[Sample], recipe: Recipe) -> HeldOut:
    """``accuracy(completion, solution)`` of each task's samples with its interval, and the run's rewards."""
    outcomes: dict[str, list[bool]] = {}
    for sample in samples:
        judge, solution = recipe.accuracy.get(sample.answer.task), sample.row.get("solution")
        if judge is not None and solution is not None:
            right = bool(get_reward(judge)(sample.answer.completion, solution))
            outcomes.setdefault(sample.answer.task, []).append(right)
    tasks = {task: bootstrap(own) for task, own in sorted(outcomes.items())}
    everything = [right for own in outcomes.values() for right in own]
    texts = [sample for sample in samples if isinstance(sample.answer.completion, str)]
    summary = reward_summary(pipe, samples, "")
    return HeldOut(
        accuracy=bootstrap(everything) if everything else None,
        tasks=tasks,
        rewards={name[1:]: value for name, value in summary.items() if name.startswith("_reward")},
        shown=[{"prompt": str(s.row["prompt"]), "completion": str(s.answer.completion)} for s in texts[:SHOWN]],
    )


def compare_held_out(before: HeldOut | None, after: HeldOut | None) -> dict[str, Any]:
    """The summary's entries on held-out rows; gains are in percentage points."""
    if before is None or after is None:
        return {}
    out: dict[str, Any] = {"held_out_rewards_before": before.rewards, "held_out_rewards_after": after.rewards}
    if before.accuracy is None or after.accuracy is None:
        return out
    out["held_out_accuracy_before"], out["held_out_accuracy_after"] = asdict(before.accuracy), asdict(after.accuracy)
    out["gain_points"] = _points(before.accuracy, after.accuracy)
    if len(before.tasks) > 1:
        out["tasks"] = {
            task: {
                "before": asdict(own),
                "after": asdict(after.tasks[task]),
                "gain_points": _points(own, after.tasks[task]),
            }
            for task, own in before.tasks.items()
        }
    return out


def _points(before: Accuracy, after: Accuracy) -> float:
    return round(100 * (after.mean - before.mean), 2)


def load_before(out: Path) -> HeldOut | None:
    """The measurement of an interrupted run, so that a resumed one compares with the same start."""
    path = out / "before.json"
    if not path.exists():
        return None
    data = json.loads(path.read_text())
    accuracy = Accuracy(**data["accuracy"]) if data["accuracy"] else None
    tasks = {task: Accuracy(**own) for task, own in data["tasks"].items()}
    return HeldOut(accuracy=accuracy, tasks=tasks, rewards=data["rewards"], shown=data["shown"])


def versions() -> dict[str, str]:
    """Versions of Python, this package and the ones it stands on."""
    return {"python": platform.python_version(), "unigrpo": __version__} | {
        name: importlib.metadata.version(name) for name in PACKAGES
    }


def save_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")


def show_before_after(before: HeldOut, after: HeldOut) -> None:
    """Three held-out texts with the answers before and after training; without texts, one line."""
    title = f"{before}  →  {after}"
    if not before.shown:
        Console().print(title)
        return
    view = Table(title=title, show_lines=True)
    for name in ("prompt", "before", "after"):
        view.add_column(name)
    for old, new in zip(before.shown, after.shown, strict=True):
        view.add_row(Text(old["prompt"]), Text(old["completion"]), Text(new["completion"]))
    Console().print(view)


def curve_title(summary: dict[str, Any]) -> str:
    """Recipe, seed and what was gained."""
    title = f"{Path(summary['recipe']).stem}, seed {summary['seed']}"
    if "tasks" in summary:
        gains = (f"{task} {own['gain_points']:+.0f}" for task, own in summary["tasks"].items())
        return f"{title}: held-out points {', '.join(gains)}"
    if "gain_points" in summary:
        old, new = summary["held_out_accuracy_before"]["mean"], summary["held_out_accuracy_after"]["mean"]
        return f"{title}: held-out accuracy {100 * old:.0f} % → {100 * new:.0f} %"
    return title

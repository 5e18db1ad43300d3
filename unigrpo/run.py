"""A recipe from start to finish: measure, train, measure again, leave a summary and a picture."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from rewards import get_reward

from . import __version__
from .algorithms import build_algorithms
from .assembly import load_trainable
from .callbacks import JsonLines
from .config import UniGRPOConfig
from .evaluation import Accuracy, bootstrap, held_out_answers
from .experience import Pipeline, Sample
from .generation import load_policy, model_path
from .models import MMaDAProcessor
from .recipe import Recipe, build_config, build_dataset, build_lora, build_rewards
from .rewarding import RewardSet
from .trainer import UniGRPOTrainer


PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "math-verify")
SHOWN = 3


def build_trainer(recipe: Recipe) -> UniGRPOTrainer:
    """The trainer that a recipe describes."""
    args = build_config(recipe)
    spec = recipe.model
    model = load_trainable(spec.path, recipe.policy, model_options(recipe, args))
    trainer = UniGRPOTrainer(
        model=model,
        reward_funcs=build_rewards(recipe),
        args=args,
        train_dataset=build_dataset(recipe.datasets),
        eval_dataset=build_dataset(recipe.eval_datasets),
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
    options = {key: value for key, value in options.items() if value is not None}
    if args.attn_mask_mode is not None:
        options["attn_mask_mode"] = args.attn_mask_mode
    return {**options, **(args.model_init_kwargs or {})}


def build_processor(recipe: Recipe) -> Any:
    """The processor with the recipe's think prompt; None when the saved one will do."""
    if recipe.model.think_prompt is None:
        return None
    return MMaDAProcessor.from_pretrained(model_path(recipe.model.path), think_prompt=recipe.model.think_prompt)


def evaluate_recipe(recipe: Recipe, model: str | None = None) -> Accuracy:
    """Held-out accuracy of the recipe's model, or of ``model`` (weights or adapter), on the recipe's held-out rows.

    Raises:
        ValueError: the recipe has no ``eval_datasets``.
    """
    args = build_config(recipe)
    data = build_dataset(recipe.eval_datasets)
    if data is None:
        raise ValueError(f"{recipe.source} has no eval_datasets to evaluate on")
    path = model or recipe.model.path
    options = model_options(recipe, args)
    if model is not None:
        options.pop("revision", None)
    device = "cpu" if args.use_cpu else None
    processor = build_processor(recipe) if model is None else None
    loaded = load_policy(path, policy=recipe.policy, device=device, processing_class=processor, **options)
    pipe = Pipeline(
        model=loaded.model,
        policy=loaded.policy,
        args=args,
        rewards=RewardSet(functions=[lambda **_: []]),
        algorithms=build_algorithms(args),
        device=loaded.model.device,
    )
    rows = [data[index] for index in range(len(data))]
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("answering", total=len(rows))
        samples = held_out_answers(
            pipe, rows, 1, args.per_device_eval_batch_size, lambda done, _: bar.update(task, completed=done)
        )
    result = measure(samples, recipe.accuracy)
    Console().print(f"{path}: held-out accuracy {result}")
    return result


def run_recipe(recipe: Recipe) -> dict[str, Any]:
    """Train and leave ``metrics.jsonl``, ``summary.json``, ``reward_curve.png`` and the model in ``output_dir``."""
    started = time.perf_counter()
    trainer = build_trainer(recipe)
    out = Path(trainer.args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    trainer.add_callback(JsonLines(out / "metrics.jsonl"))
    resume = trainer.args.resume_from_checkpoint
    before = load_before(out) if resume else None
    if before is None and trainer.eval_dataset is not None:
        before = held_out(trainer, recipe, "before training")
        save_json(out / "before.json", {"accuracy": asdict(before[0]), "shown": before[1]})
    train_started = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    train_seconds = time.perf_counter() - train_started
    trainer.save_model()
    after = held_out(trainer, recipe, "after training") if trainer.eval_dataset is not None else None
    summary = {
        "recipe": recipe.source,
        "model": recipe.model.path,
        "lora": recipe.lora is not None,
        "seed": trainer.args.seed,
        "optimizer_steps": trainer.state.global_step,
        "train_seconds": round(train_seconds, 1),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "versions": versions(),
    }
    if before is not None and after is not None:
        summary["held_out_accuracy_before"] = asdict(before[0])
        summary["held_out_accuracy_after"] = asdict(after[0])
        summary["gain_points"] = round(100 * (after[0].mean - before[0].mean), 2)
    if not trainer.is_world_process_zero():
        return summary
    save_json(out / "summary.json", summary)
    if before is not None and after is not None:
        show_before_after(before, after)
    draw_curve(out / "metrics.jsonl", out / "reward_curve.png", summary)
    Console().print(f"wrote {out / 'summary.json'}, {out / 'metrics.jsonl'} and the trained weights in {out}")
    return summary


Measured = tuple[Accuracy, list[dict[str, str]]]


def held_out(trainer: UniGRPOTrainer, recipe: Recipe, label: str) -> Measured:
    """Accuracy of answers to the held-out rows at ``eval_temperature``, and the first three of them."""
    rows = [trainer.eval_dataset[index] for index in range(len(trainer.eval_dataset))]
    samples = held_out_answers(trainer.pipeline(), rows, 1, trainer.args.per_device_eval_batch_size)
    result = measure(samples, recipe.accuracy)
    shown = [{"prompt": str(s.row["prompt"]), "completion": str(s.answer.completion)} for s in samples[:SHOWN]]
    if trainer.is_world_process_zero():
        Console().print(f"held-out accuracy {label}: {result}")
    return result, shown


def measure(samples: list[Sample], accuracy: str) -> Accuracy:
    """``accuracy(completion, solution)`` over samples, with its interval."""
    judge = get_reward(accuracy)
    return bootstrap([bool(judge(sample.answer.completion, sample.row["solution"])) for sample in samples])


def load_before(out: Path) -> Measured | None:
    """The measurement of an interrupted run, so that a resumed one compares with the same start."""
    path = out / "before.json"
    if not path.exists():
        return None
    data = json.loads(path.read_text())
    return Accuracy(**data["accuracy"]), data["shown"]


def versions() -> dict[str, str]:
    """Versions of Python, this package and the ones it stands on."""
    return {"python": platform.python_version(), "unigrpo": __version__} | {
        name: importlib.metadata.version(name) for name in PACKAGES
    }


def save_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")


def show_before_after(before: Measured, after: Measured) -> None:
    """Three held-out problems with the answers before and after training."""
    view = Table(title=f"held-out accuracy {before[0]}  →  {after[0]}", show_lines=True)
    for name in ("prompt", "before", "after"):
        view.add_column(name)
    for old, new in zip(before[1], after[1], strict=True):
        view.add_row(Text(old["prompt"]), Text(old["completion"]), Text(new["completion"]))
    Console().print(view)


def draw_curve(metrics: Path, picture: Path, summary: dict[str, Any]) -> None:
    """Reward over optimizer steps as PNG; without matplotlib, a line that says how to get it."""
    try:
        import matplotlib
    except ImportError:
        Console().print("reward_curve.png was not drawn: pip install 'unigrpo[plots]'")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    points = [(record["step"], record["reward"]) for record in records if record.get("reward") is not None]
    if not points:
        return
    steps, rewards = zip(*points, strict=True)
    window = max(len(rewards) // 15, 1)
    smooth = [
        sum(rewards[max(0, i - window) : i + 1]) / len(rewards[max(0, i - window) : i + 1])
        for i in range(len(rewards))
    ]
    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axis.plot(steps, rewards, color="tab:blue", alpha=0.3, label="mean reward of a rollout")
    axis.plot(steps, smooth, color="tab:blue", label=f"running mean of {window + 1}")
    axis.set_xlabel("optimizer step")
    axis.set_ylabel("reward")
    title = f"{Path(summary['recipe']).stem}, seed {summary['seed']}"
    if "gain_points" in summary:
        old, new = summary["held_out_accuracy_before"]["mean"], summary["held_out_accuracy_after"]["mean"]
        title += f": held-out accuracy {100 * old:.0f} % → {100 * new:.0f} %"
    axis.set_title(title)
    axis.legend(loc="lower right")
    axis.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)

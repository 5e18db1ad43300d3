"""A recipe from start to finish: measure, train, measure again, leave a summary and a picture."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from rich.progress import Progress
from transformers import TrainerCallback

from .. import __version__
from ..config.arguments import UniGRPOConfig
from ..config.build import build_algorithms
from ..data.rows import task_of
from ..errors import CheckpointError
from ..models import resolve_policy
from ..models.loading import check_dtype, load_config
from ..models.nearest import family_of
from ..models.opening import lineage
from ..models.processing import settle_template
from ..models.reference import is_peft
from ..rollout.generate import load_policy
from ..rollout.pipeline import Pipeline
from ..rollout.rewards import RewardSet
from ..terminal import console, say
from ..trainer import UniGRPOTrainer
from ..training.callbacks import JsonLines
from ..training.checkpoints.files import check_writable, named, write_json
from ..training.checkpoints.identity import arguments_digest
from ..training.checkpoints.lock import locked
from ..training.checkpoints.used_folder import take_free_folder
from ..training.engines import engine_of
from ..training.evaluation import held_out_answers
from ..training.setup import load_codec, load_trainable, reward_set
from .again import command_again, shown_words
from .build import (
    build_accuracy,
    build_config,
    build_dataset,
    build_lora,
    build_policy,
    build_quantization,
    build_rewards,
    dataset_names,
    resolve_names,
)
from .held_out import HeldOut, compare_held_out, held_out, load_before, measure, show_before_after
from .plots import RefreshedCurve, draw_curve, picture_sheet, side_by_side
from .recipe import Recipe


PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "math-verify")


def build_trainer(recipe: Recipe, args: UniGRPOConfig | None = None) -> UniGRPOTrainer:
    """The trainer that a recipe describes; ``args`` are the recipe's own, where they are made already."""
    args = build_config(recipe) if args is None else args
    if args.should_save:
        check_writable(args.output_dir)
    # Names first: a misspelt one is found before weights are loaded, or answers made.
    spec, policy, rewards, _ = recipe.model, build_policy(recipe), build_rewards(recipe), build_accuracy(recipe)
    model = load_trainable(spec.path, policy, model_options(recipe, args), args, recipe.lora is not None)
    trainer = UniGRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=args,
        train_dataset=build_dataset(recipe.datasets),
        eval_dataset=build_dataset(recipe.eval_datasets),
        sft_dataset=build_dataset(recipe.sft_datasets, given=True),
        processing_class=build_processor(recipe),
        peft_config=build_lora(recipe),
        policy=policy,
    )
    trainer.about = about(recipe)
    trainer.reward_args = [arguments_digest(reward.args) for reward in recipe.rewards]
    return trainer


def about(recipe: Recipe, command: str = "train") -> dict[str, Any]:
    """What a run's record says of how it was started, for a reader and for ``unigrpo report``."""
    names = {"recipe": recipe.source, "model": recipe.model.path, "datasets": dataset_names(recipe)}
    return {**names, "command": command, "overrides": shown_words(recipe.overrides)}


def model_options(recipe: Recipe, args: UniGRPOConfig) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that the recipe asks for, the same for training and evaluation."""
    spec = recipe.model
    options = {"dtype": spec.dtype, "revision": spec.revision, "device_map": spec.device_map}
    options["quantization_config"] = build_quantization(recipe)
    check_dtype(spec.dtype)
    options["from_scratch"] = spec.from_scratch or None
    options = {key: value for key, value in options.items() if value is not None}
    if args.attn_mask_mode is not None:
        options["attn_mask_mode"] = args.attn_mask_mode
    return {**options, **(args.model_init_kwargs or {})}


def build_processor(recipe: Recipe) -> Any:
    """The processor with the recipe's think prompt; None when the saved one will do."""
    if recipe.model.think_prompt is None:
        return None
    path = lineage(recipe.model.path)[-1]
    family = build_policy(recipe) or resolve_policy(family_of(path) or load_config(path).model_type)
    return family.processor_class.from_pretrained(path, think_prompt=recipe.model.think_prompt)


def evaluate_recipe(recipe: Recipe, model: str | None = None) -> HeldOut:
    """Held-out accuracy and rewards of the recipe's model, or of ``model`` (weights or adapter), on its held-out rows.

    Pictures that were drawn are left as ``images_evaluated.png`` in the recipe's output folder.

    Raises:
        ValueError: the recipe has no ``eval_datasets``, or names what is not there.
    """
    resolve_names(recipe)
    rows = held_out_rows(recipe)
    pipe = held_out_pipeline(recipe, rows, model)
    args, path = pipe.args, model or recipe.model.path
    with Progress(console=console(error=True), transient=True) as bar:
        task = bar.add_task("answering", total=len(rows))
        samples = held_out_answers(
            pipe, rows, 1, args.per_device_eval_batch_size, lambda done, _: bar.update(task, completed=done)
        )
    result = measure(pipe, samples, recipe)
    say(f"{path}: {result}")
    sheet = picture_sheet(samples, path)
    if sheet is not None:
        out = Path(args.output_dir)
        out.mkdir(parents=True, exist_ok=True)
        sheet.save(out / "images_evaluated.png")
        say(f"wrote {out / 'images_evaluated.png'}")
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
        options = {key: value for key, value in options.items() if key not in ("revision", "from_scratch")}
    device = "cpu" if args.use_cpu else None
    processor = build_processor(recipe) if model is None else None
    path = model or recipe.model.path
    options |= {"policy": build_policy(recipe), "device": device, "processing_class": processor, "seed": args.seed}
    loaded = load_policy(path, **options)
    settle_template(loaded.policy, args.chat_template_kwargs)
    codec = None
    if any(task_of(row) != "text" for row in rows):
        codec = load_codec(args.image_tokenizer, loaded.policy, args.offload_image_tokenizer).to(loaded.model.device)
    of_rewards = (args.reward_error, args.reward_timeout, args.offload_reward_models, args.reward_terms)
    return Pipeline(
        model=loaded.model,
        policy=loaded.policy,
        args=args,
        rewards=reward_set(build_rewards(recipe), None, args.reward_weights, *of_rewards),
        algorithms=build_algorithms(args),
        device=loaded.model.device,
        codec=codec,
    )


def run_recipe(recipe: Recipe, go_on: str | None = None) -> dict[str, Any]:
    """Train and leave ``metrics.jsonl``, ``summary.json``, pictures and the model in ``output_dir``.

    Where another run used or uses that folder, they go to the next free name (``runs/quickstart-2``), as one line says; not
    with ``resume_from_checkpoint`` or ``overwrite``, which are meant for that folder.

    The pictures are ``reward_curve.png`` and, of runs that draw, ``images.png`` with held-out prompts before and after.

    With ``resume_from_checkpoint: true`` the same command can be started again after a crash, as often as it takes: it
    goes on from the newest checkpoint that is whole, from the beginning before there is one, and compares with the
    measurement before training that the first start made. A run that is stopped names ``go_on`` as the command to type, its own
    where that is None.

    Raises:
        CheckpointError: ``output_dir`` does not take what is written, another process is at work in it, or the run is not the
            one to go on from.
        Interrupted: Ctrl-C while it trains, after its state was saved.
    """
    args = build_config(recipe)
    with ExitStack() as lock:
        args.output_dir = settle_folder(args, lock)
        return _run(build_trainer(recipe, args), recipe, go_on)


def settle_folder(args: UniGRPOConfig, lock: ExitStack) -> str:
    """The ``output_dir`` of this run, the same on all processes; ``lock`` holds it on the one that chose.

    Raises:
        CheckpointError: another process is at work in the folder that was asked for, or nothing can be written there.
    """
    settled: list[str | None] = [args.output_dir, None]
    if args.process_index == 0:
        try:
            settled[0] = str(_take_folder(args, lock))
        except CheckpointError as error:
            settled[1] = str(error)
    folder, wrong = broadcast_object_list(settled)
    if wrong is not None:
        raise CheckpointError(wrong)
    return folder


def _take_folder(args: UniGRPOConfig, lock: ExitStack) -> Path:
    asked = Path(args.output_dir)
    check_writable(asked)
    if args.resume_from_checkpoint or args.overwrite:
        lock.enter_context(locked(asked))
        return asked
    folder, reason = take_free_folder(asked, lock)
    if reason is not None:
        choices = "resume_from_checkpoint=true goes on with the other one, overwrite=true replaces it"
        line = f"{reason}: this run goes to {folder} ({choices})"
        say(line)
    return folder


def _run(trainer: UniGRPOTrainer, recipe: Recipe, go_on: str | None) -> dict[str, Any]:
    started = time.perf_counter()
    out = Path(trainer.args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    trainer.go_on = go_on or command_again(recipe, str(out), trainer.accelerator.num_processes)
    trainer.add_callback(JsonLines(out / "metrics.jsonl"))
    trainer.add_callback(RefreshedCurve(out / "metrics.jsonl", out / "reward_curve.png", Path(recipe.source).stem))
    resume = trainer.args.resume_from_checkpoint
    # Measuring is for all ranks or none.
    start = StartMeasured(trainer, recipe, broadcast_object_list([load_before(out) if resume else None])[0])
    trainer.add_callback(start)
    train_started = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    train_seconds = time.perf_counter() - train_started - start.seconds
    with named(out):
        trainer.save_model()
    after = held_out(trainer, recipe, "after") if trainer.eval_dataset is not None else None
    run = trainer.run.identity if trainer.run is not None else {}
    summary = {
        **run,
        "recipe": recipe.source,
        "model": recipe.model.path,
        "lora": is_peft(trainer.model),
        "seed": trainer.args.seed,
        "optimizer_steps": trainer.state.global_step,
        "train_seconds": round(train_seconds, 1),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "versions": versions(),
        "reward_models": reward_models(trainer.rewards),
        "engine": engine_of(trainer.accelerator, trainer.model_wrapped),
        **compare_held_out(start.before, after),
    }
    if not trainer.is_world_process_zero():
        return summary
    if after is not None:
        with named(out / "after.json"):
            write_json(out / "after.json", asdict(after))
    with named(out / "summary.json"):
        write_json(out / "summary.json", summary)
    trainer.held_out = {
        when: own.numbers for when, own in (("before", start.before), ("after", after)) if own is not None
    }
    if start.before is not None and after is not None:
        show_before_after(start.before, after)
    side_by_side(out / "images_before.png", out / "images_after.png", out / "images.png")
    draw_curve(out / "metrics.jsonl", out / "reward_curve.png", curve_title(summary))
    trainer.create_model_card()
    say(f"wrote {out / 'summary.json'}, {out / 'metrics.jsonl'} and the trained weights in {out}")
    return summary


class StartMeasured(TrainerCallback):
    """Held-out answers before the first step, by the model as its engine holds it: its weights may be sharded.

    Args:
        before: what an interrupted run measured; it is not measured again.
    """

    def __init__(self, trainer: UniGRPOTrainer, recipe: Recipe, before: HeldOut | None) -> None:
        self.trainer, self.recipe, self.before, self.seconds = trainer, recipe, before, 0.0

    def on_train_begin(self, args, state, control, **kwargs: Any) -> None:
        """Measures, and leaves ``before.json``; not in the middle of a run, whose first weights are gone."""
        if self.before is not None or self.trainer.eval_dataset is None:
            return
        if state.global_step > 0:
            if state.is_world_process_zero:
                say(f"there is no before.json in {args.output_dir}: the summary will compare with nothing")
            return
        started = time.perf_counter()
        self.before = held_out(self.trainer, self.recipe, "before")
        if state.is_world_process_zero:
            path = Path(args.output_dir) / "before.json"
            with named(path):
                write_json(path, asdict(self.before))
        self.seconds = time.perf_counter() - started


def versions() -> dict[str, str]:
    """Versions of Python, this package and the ones it stands on; ``"not installed"`` for one that is missing."""
    found = {"python": platform.python_version(), "unigrpo": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def reward_models(rewards: RewardSet) -> dict[str, str]:
    """Name of a reward -> ``id@commit`` or path of its model, for those that know theirs."""
    pairs = ((name, getattr(own, "reward", own)) for name, own in zip(rewards.names, rewards.functions, strict=True))
    return {name: own.source for name, own in pairs if isinstance(getattr(own, "source", None), str)}


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

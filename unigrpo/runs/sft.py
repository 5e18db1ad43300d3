"""``unigrpo sft``: a recipe of given answers from start to finish."""

from __future__ import annotations

import difflib
import json
import time
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from ..config.denoising_arguments import MaskedDenoisingConfig
from ..config.trl_keys import OF_SFT
from ..errors import RecipeError
from ..models.reference import is_peft
from ..sft import MaskedDenoisingTrainer
from ..terminal import say
from ..training.callbacks import JsonLines
from ..training.checkpoints.files import check_writable, named, write_json
from ..training.engines import engine_of
from ..training.setup import load_trainable
from .again import command_again
from .bounded_yaml import quoted
from .build import build_lora, build_policy, import_parts
from .dataset_spec import DatasetSpec, check_given_columns, load_rows
from .kinds import key_of_other, kind_of, refuse_other
from .recipe import ModelSpec, Recipe, known, parse_accuracy, parse_lora, parse_policy, parse_recipe, section, sections
from .recipe_file import read_recipe
from .sft_held_out import HeldOutQuestions, MeasuredBefore, build_sampling, compared, flat, said
from .train import about, build_processor, model_options, settle_folder, versions


@dataclass(slots=True, kw_only=True)
class GivenSpec(DatasetSpec):
    """A dataset with given answers; ``weight`` is how often its rows come (``sampling_weights``), of all datasets or of none."""

    weight: float | None = None


SECTIONS = ("model", "policy", "datasets", "eval_datasets", "accuracy", "sampling", "lora")
CONFIG_KEYS = tuple(item.name for item in fields(MaskedDenoisingConfig) if item.init)


def load_sft_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """A recipe of ``unigrpo sft`` with ``key=value`` overrides; ``path`` as in ``load_recipe``.

    Raises:
        RecipeError: a file that is missing, no text or not YAML, an unknown key, a wrong type.
    """
    data, source, folder = read_recipe(path, overrides)
    return replace(parse_sft_recipe(data, source, folder), overrides=tuple(overrides or ()))


def load_any_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """A recipe of ``unigrpo train`` or of ``unigrpo sft``, as its keys say; see ``load_recipe``."""
    data, source, folder = read_recipe(path, overrides)
    parse = parse_recipe if kind_of(data) == "train" else parse_sft_recipe
    return replace(parse(data, source, folder), overrides=tuple(overrides or ()))


def parse_sft_recipe(data: dict[str, Any], source: str, folder: Path | None = None) -> Recipe:
    """A recipe of ``unigrpo sft`` from its mapping; it has no rewards."""
    refuse_other(data, "sft", source)
    for key in data:
        # Keys of TRL's scripts for RL have no cure here, those of its fine-tuning have.
        near = difflib.get_close_matches(str(key)[:100], (*SECTIONS, *CONFIG_KEYS), n=1)
        cure = f"did you mean {near[0]!r}?" if near else "`unigrpo keys` lists those there are"
        known(key, (*SECTIONS, *CONFIG_KEYS), source, key_of_other(key, "sft") or OF_SFT.get(str(key)) or cure)
    for key in ("model", "datasets"):
        if not data.get(key):
            raise RecipeError(f"{source}: '{key}' is missing; every recipe of `unigrpo sft` needs model and datasets")
    recipe = Recipe(
        source=source,
        model=section(ModelSpec, data["model"], f"{source}: model"),
        policy=parse_policy(data.get("policy"), source),
        datasets=sections(GivenSpec, data["datasets"], f"{source}: datasets"),
        eval_datasets=sections(GivenSpec, data.get("eval_datasets") or [], f"{source}: eval_datasets"),
        rewards=[],
        accuracy=parse_accuracy(data.get("accuracy"), source),
        lora=parse_lora(data, source),
        sampling=data.get("sampling"),
        config={key: value for key, value in data.items() if key not in SECTIONS},
        folder=folder or Path(),
    )
    if not isinstance(recipe.sampling, dict | None):
        raise RecipeError(f"{source}: sampling must be a mapping of keys, got {quoted(recipe.sampling)}")
    weights = [spec.weight for spec in recipe.datasets if isinstance(spec, GivenSpec)]
    if len({weight is None for weight in weights}) > 1 or (weights[0] is not None and "sampling_weights" in data):
        raise RecipeError(
            f"{source}: datasets have weights {weights}: give one to every dataset or to none, and not sampling_weights too"
        )
    return recipe


def build_sft_config(recipe: Recipe) -> MaskedDenoisingConfig:
    """The run's arguments; sampling weights come from the datasets.

    Raises:
        RecipeError: what ``MaskedDenoisingConfig`` refuses, with the recipe's name.
    """
    values = {"report_to": "none", "output_dir": "unigrpo-output", **recipe.config}
    weights = {f"datasets[{number}]": getattr(spec, "weight", None) for number, spec in enumerate(recipe.datasets)}
    if all(weight is not None for weight in weights.values()):
        values["sampling_weights"] = weights
    try:
        import_parts(recipe)
        return MaskedDenoisingConfig(**values)
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"{recipe.source}: {str(error).strip()}") from error


def config_to_check(recipe: Recipe) -> MaskedDenoisingConfig:
    """``build_sft_config`` on whatever machine: a check computes nothing, so that a recipe for a GPU need not meet one."""
    return build_sft_config(replace(recipe, config={"use_cpu": True, **recipe.config}))


def given_rows(spec: DatasetSpec) -> Any:
    """The rows of a dataset, with their answers."""
    rows = load_rows(spec, given=True)
    check_given_columns(spec, rows)
    return rows


def held_out_sets(recipe: Recipe) -> dict[str, Any]:
    """The recipe's held-out rows by the names of their sets; one alone is called ``eval_dataset``."""
    found = {f"eval_datasets[{number}]": given_rows(own) for number, own in enumerate(recipe.eval_datasets)}
    return {"eval_dataset": found["eval_datasets[0]"]} if len(found) == 1 else found


def build_sft_trainer(
    recipe: Recipe, args: MaskedDenoisingConfig | None = None, held_out: dict[str, Any] | None = None
) -> MaskedDenoisingTrainer:
    """The trainer that a recipe describes; ``args`` and ``held_out`` are the recipe's own, where they are made already."""
    args = build_sft_config(recipe) if args is None else args
    if args.should_save:
        check_writable(args.output_dir)
    spec, policy, shared = recipe.model, build_policy(recipe), _as_any(args)
    data = {f"datasets[{number}]": given_rows(own) for number, own in enumerate(recipe.datasets)}
    held_out = held_out_sets(recipe) if held_out is None else held_out
    model = load_trainable(spec.path, policy, model_options(recipe, shared), shared, recipe.lora is not None)
    trainer = MaskedDenoisingTrainer(
        model=model,
        args=args,
        train_dataset=data,
        eval_dataset=held_out or None,
        processing_class=build_processor(recipe),
        peft_config=build_lora(recipe),
        policy=policy,
    )
    trainer.about = about(recipe, "sft")
    return trainer


def _as_any(args: Any) -> Any:
    """What both kinds of arguments have is all that is read of them."""
    return args


def run_sft_recipe(recipe: Recipe) -> dict[str, Any]:
    """Train and leave ``metrics.jsonl``, ``summary.json`` and the model in ``output_dir``, which ``unigrpo train`` can start from.

    Folders, resuming and signals as in ``run_recipe``. With ``eval_datasets`` the summary has the held-out numbers before and
    after, with ``sampling`` the held-out accuracy too.

    Raises:
        CheckpointError, Interrupted: as in ``run_recipe``.
    """
    args = build_sft_config(recipe)
    with ExitStack() as lock:
        args.output_dir = settle_folder(_as_any(args), lock)
        # Before weights are loaded: a mistake in them is found at once.
        held_out, sampling = held_out_sets(recipe), build_sampling(recipe, args)
        questions = None if sampling is None else HeldOutQuestions(recipe, held_out, sampling)
        return _run(build_sft_trainer(recipe, args, held_out), recipe, questions)


def _run(trainer: MaskedDenoisingTrainer, recipe: Recipe, questions: HeldOutQuestions | None) -> dict[str, Any]:
    started = time.perf_counter()
    out = Path(str(trainer.args.output_dir))
    out.mkdir(parents=True, exist_ok=True)
    trainer.go_on = command_again(recipe, str(out), trainer.accelerator.num_processes, "sft")
    trainer.add_callback(JsonLines(out / "metrics.jsonl"))
    resume = trainer.args.resume_from_checkpoint
    start = MeasuredBefore(trainer, questions, broadcast_object_list([_stored(out) if resume else None])[0])
    trainer.add_callback(start)
    train_started = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    train_seconds = time.perf_counter() - train_started - start.seconds
    with named(out):
        trainer.save_model()
    after = start.measure("after") if trainer.eval_dataset else None
    summary = {
        **(trainer.run.identity if trainer.run is not None else {}),
        "recipe": recipe.source,
        "model": recipe.model.path,
        "lora": is_peft(trainer.model),
        "seed": trainer.args.seed,
        "optimizer_steps": trainer.state.global_step,
        "train_seconds": round(train_seconds, 1),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "versions": versions(),
        "engine": engine_of(trainer.accelerator, trainer.model_wrapped),
        **({} if after is None else compared(start.before, after)),
    }
    trainer.held_out = {
        when: flat(own) for when, own in (("before", start.before), ("after", after)) if own is not None
    }
    if trainer.is_world_process_zero():
        with named(out / "summary.json"):
            write_json(out / "summary.json", summary)
        trainer.create_model_card()
        for line in said(summary):
            say(line)
        say(f"wrote {out / 'summary.json'}, {out / 'metrics.jsonl'} and the trained weights in {out}")
    return summary


def _stored(out: Path) -> dict[str, float] | None:
    """What an interrupted run measured before its first step."""
    try:
        return json.loads((out / "before.json").read_text())
    except (OSError, ValueError):
        return None

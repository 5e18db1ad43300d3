"""``unigrpo check``: what can go wrong with a recipe before any GPU time is spent."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from transformers.utils import is_bitsandbytes_available

from ..config.arguments import UniGRPOConfig
from ..config.build import build_algorithms, check_task_sampler
from ..data.image_codes import PictureSizes, TokenizerConfig, sides, tokenizer_config
from ..data.rows import check_dataset, task_of
from ..errors import NotReachableError, RecipeError
from ..models import DiffusionPolicy, MagvitV2Config, resolve_policy
from ..models.builtin import model_path
from ..models.checkpoint_files import hub_file
from ..models.hub import asking_once, fetched, hub_answers
from ..models.loading import check_dtype, check_family, load_processor
from ..models.nearest import config_of
from ..models.opening import finding_base, lineage
from ..models.processing import settle_template
from ..models.quantization import check_quantization
from ..rewards._published import pinned
from ..rollout.reward_arguments import columns_read
from ..rollout.sample import check_prompt
from ..samplers.kv_cache import check_cache
from ..training.checkpoints.files import check_writable
from ..training.demonstrations import check_given
from ..training.setup import check_policy_keys
from ..types import spans_of
from .build import (
    build_config,
    build_lora,
    build_policy,
    build_quantization,
    build_rewards,
    resolve_names,
)
from .dataset_spec import DatasetSpec, prompt_rows
from .golds import check_golds
from .reach import code_of
from .recipe import Recipe
from .train import build_processor


SCORERS = {
    "aesthetic": ("trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth"),
    "clip_score": ("openai/clip-vit-large-patch14", "config.json"),
    "hps_v2": ("xswu/HPSv2", "README.md"),
    "image_reward": ("THUDM/ImageReward", "med_config.json"),
    "pick_score": ("yuvalkirstain/PickScore_v1", "config.json"),
    "siglip_score": ("google/siglip2-so400m-patch14-384", "config.json"),
}
"""Rewards with a model: its default, and a file that is there when it is."""


def check_recipe(recipe: Recipe, offline: bool = False) -> list[str]:
    """Findings, one a line, for a recipe that is fit to run.

    The code that the recipe names is imported: read ``code_of`` first where the recipe is somebody else's.

    The hub is asked once, for some seconds, whether it is there; if it is not, the cache alone is asked for its ids.

    Args:
        offline: ask the cache alone, accept hub ids that it does not hold, and a missing bitsandbytes; what depends on them
            is reported as not checked.

    Raises:
        ValueError: anything that would fail later: a bad value, an unknown name, gold answers that do not score 1.0, a
            hub id that cannot be reached without ``offline``.
    """
    with asking_once(offline):
        return _findings(recipe, offline)


def _findings(recipe: Recipe, offline: bool) -> list[str]:
    args = build_config(recipe)
    build_algorithms(args)
    build_lora(recipe)
    missing = check_quantised(recipe, args, offline)
    check_output(Path(args.output_dir))
    resolve_names(recipe)
    notes = code_of(recipe) + missing
    policy, said = weightless_policy(recipe, args, offline)
    notes += said
    if policy is None:
        if (family := build_policy(recipe)) is not None:
            for task in ("text", "mmu", "thought"):
                check_cache(args.for_task(task).kv_cache, family, f"{recipe.source}: ")
        notes.append("prompts: their lengths are not checked, as the model's tokenizer is not there")
    else:
        args.take_lengths(getattr(policy.config, "sampling_defaults", None))  # type: ignore[attr-defined]
        check_policy_keys(build_algorithms(args), policy)
    if bool(recipe.sft_datasets) != (args.sft_weight > 0):
        raise RecipeError(
            f"{recipe.source}: sft_weight={args.sft_weight} with {len(recipe.sft_datasets)} sft_datasets: the auxiliary "
            "denoising loss needs both"
        )
    every = (*recipe.datasets, *recipe.eval_datasets, *recipe.sft_datasets)

    @cache
    def codec() -> CodeCount | None:
        """Made for the first picture that a dataset's key or a row itself names."""
        if policy is not None and policy.codebook_size is None:
            return None
        pictures = {task: args.for_task(task).image_size for task in ("mmu", "t2i", "picture", "i2i")}
        config, said = check_image_tokenizer(recipe, args, pictures, offline)
        notes.extend(said)
        return CodeCount((config or MagvitV2Config()).factor)

    if any(spec.task not in (None, "text") for spec in every) or args.image_tokenizer is not None:
        codec()
    notes += _check_reward_models(recipe, offline)
    canvas, columns = (policy, args, codec), []
    for spec in (*recipe.datasets, *recipe.eval_datasets):
        found, said = _check_data(recipe, spec, canvas, offline, gold=spec in recipe.datasets)
        notes += said
        columns.append((spec, found))
    for spec in recipe.sft_datasets:
        notes += _check_data(recipe, spec, canvas, offline, gold=False, given=True)[1]
    return notes + _check_columns(recipe, columns)


def _check_columns(recipe: Recipe, columns: list[tuple[DatasetSpec, list[str] | None]]) -> list[str]:
    """A line for each reward and dataset that lacks a column which the reward names.

    Args:
        columns: of each dataset; None where it was not reached.

    Raises:
        RecipeError: no dataset has the column.
    """
    notes = []
    for spec, reward in zip(recipe.rewards, build_rewards(recipe), strict=True):
        for name in [] if isinstance(reward, str) else columns_read(reward):
            lacking = [data for data, found in columns if found is not None and name not in found]
            if len(lacking) == len(columns):
                have = sorted({own for _, found in columns for own in found or ()})
                near = difflib.get_close_matches(name, have, n=1)
                raise RecipeError(
                    f"{recipe.source}: reward {spec.name!r} reads {name!r}, which is no column of any dataset ({have}): rename a "
                    f"column, as in column_map: {{{name}: {near[0] if near else 'YOURS'}}}, or give the argument a default"
                )
            for data in lacking:
                if spec.task in (None, data.task or "text"):
                    where = "eval_datasets" if data in recipe.eval_datasets else "datasets"
                    notes.append(f"reward {spec.name} gets None for {name!r}, which {where} {data.path} does not have")
    return notes


def check_quantised(recipe: Recipe, args: Any, offline: bool) -> list[str]:
    """What bitsandbytes would refuse, as far as it is known here."""
    adapters = recipe.lora is not None or len(lineage(recipe.model.path)) > 1
    try:
        options = {"quantization_config": build_quantization(recipe), **(args.model_init_kwargs or {})}
        check_quantization(options, adapters)
    except ValueError as error:
        if not offline or is_bitsandbytes_available() or "need bitsandbytes" not in str(error):
            raise
        # Whether there is an adapter is known all the same.
        check_quantization({"quantization_config": {}}, adapters)
        return ["bitsandbytes: not installed, not checked"]
    return []


def check_output(output: Path) -> None:
    """Raises ``CheckpointError`` where a run could not write; the folder itself is not made."""
    folder = output
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    check_writable(folder, name=output)


def reached(what: str, fetch: Any, offline: bool) -> tuple[Any, list[str]]:
    """What ``fetch`` brings from the hub, or with ``offline`` None and a note.

    Raises:
        SourceError: it is not there, or not reachable without ``offline``.
        RecipeError: what else went wrong, on a full disk for one.
    """
    hub_answers()
    try:
        return fetch(), []
    except OSError as error:
        if offline:
            return None, [f"{what}: not reachable, not checked"]
        if isinstance(error, NotReachableError):
            raise NotReachableError(f"{error}, or pass --offline") from error
        if isinstance(error, ValueError):
            raise
        raise RecipeError(f"{what} cannot be fetched ({type(error).__name__}: {error})") from error


def check_model(recipe: Recipe, args: Any, offline: bool) -> tuple[Any, list[str]]:
    """The configuration of the recipe's model, None where it is not reachable, and what is said of it."""
    *adapters, path = lineage(recipe.model.path)
    check_dtype((args.model_init_kwargs or {}).get("dtype", recipe.model.dtype))
    load = partial(config_of, path, build_policy(recipe), **(args.model_init_kwargs or {}))
    with finding_base(adapters):
        config, notes = (load(), []) if is_local(path) else reached(f"model {path}", load, offline)
    return config, notes or [f"model {recipe.model.path}: {config.model_type}"]


def weightless_policy(recipe: Recipe, args: Any, offline: bool) -> tuple[DiffusionPolicy | None, list[str]]:
    """The policy without its weights, None where it is not reachable."""
    config, notes = check_model(recipe, args, offline)
    if config is None:
        return None, notes
    kind, path = build_policy(recipe) or resolve_policy(config.model_type), lineage(recipe.model.path)[-1]
    own, file = getattr(kind.model_class, "config_class", None), hub_file(path, "config.json")
    if own is not None and file is not None:
        check_family(file, own, f"model {path!r}")
    if args.attn_mask_mode is not None:
        config.attn_mask_mode = args.attn_mask_mode
    load = lambda: build_processor(recipe) or load_processor(kind.processor_class, path)  # noqa: E731
    processor, said = (load(), []) if is_local(path) else reached(f"tokenizer of {path}", load, offline)
    if processor is None:
        return None, notes + said
    return settle_template(kind(config, processor), args.chat_template_kwargs), notes + said  # type: ignore[call-arg]


@dataclass(frozen=True, slots=True)
class CodeCount(PictureSizes):
    """How many codes a picture has: what of a codec is asked where pictures stay uncoded."""

    factor: int

    def grid(self, image_size: int | list[int]) -> tuple[int, int]:
        """As ``ImageCodec.grid``."""
        height, width = sides(image_size)
        return height // self.factor, width // self.factor


def check_image_tokenizer(
    recipe: Recipe, args: Any, pictures: Mapping[str, Any], offline: bool
) -> tuple[TokenizerConfig | None, list[str]]:
    """The configuration of a recipe's image tokenizer, given or named by the model, and what is said of it.

    Args:
        pictures: the image size of each task, or None.

    Raises:
        ValueError: it is not there, or cannot do one of the sizes.
    """
    path, model = args.image_tokenizer, lineage(recipe.model.path)[-1]
    if path is None:
        if not is_local(model):
            return None, ["image tokenizer: the one that the model names, not checked"]
        path = getattr(config_of(model, build_policy(recipe)), "image_tokenizer", None)
        if path is None:
            raise RecipeError(f"{recipe.source}: pictures need image_tokenizer, and {recipe.model.path} names none")
    named, path, notes = path, model_path(path), []
    if is_local(path, "image_tokenizer"):
        config = tokenizer_config(path)
    else:
        config, notes = reached(f"image tokenizer {path}", lambda: tokenizer_config(path), offline)
    if config is None:
        return None, notes
    for task, size in pictures.items():
        if size is not None and any(side % config.factor for side in sides(size)):
            raise RecipeError(
                f"{recipe.source}: image_size={size} of task {task!r} must be a multiple of {config.factor} pixels, the side "
                "of a code"
            )
    return config, [f"image tokenizer {named}: {config.codebook_size} codes of {config.factor} pixels"]


def _check_reward_models(recipe: Recipe, offline: bool) -> list[str]:
    """The models of image rewards: folders must exist, hub ids must be reachable."""
    notes = []
    for reward in recipe.rewards:
        if reward.name not in SCORERS or reward.args.get("backend") == "open_clip":
            continue
        default, file = SCORERS[reward.name]
        path = model_path(str(reward.args.get("model") or default))
        if not is_local(path, f"model of {reward.name}"):
            what = f"model {path} of {reward.name}"
            revision = pinned(path, reward.args.get("revision"))
            _, missed = reached(what, partial(fetched, path, file, what, revision), offline)
            notes += missed or [f"{what}: reachable"]
    return notes


def is_local(path: str, what: str = "model path") -> bool:
    """A path is local when it looks like one, so that a typing error is not taken for a hub id."""
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1 or os.path.exists(path)
    if looks_local and not os.path.exists(path):
        raise RecipeError(f"{what} {path!r} does not exist")
    return looks_local


def reached_rows(spec: DatasetSpec, load: Callable[[DatasetSpec], Any], offline: bool) -> tuple[Any, list[str]]:
    """The rows of a dataset; for an id of the hub as ``reached``."""
    if spec.on_hub:
        return reached(f"dataset {spec.path}", lambda: load(spec), offline)
    return load(spec), []


def _check_data(
    recipe: Recipe,
    spec: DatasetSpec,
    canvas: tuple[DiffusionPolicy | None, UniGRPOConfig, Callable[[], Any]],
    offline: bool,
    gold: bool,
    given: bool = False,
) -> tuple[list[str] | None, list[str]]:
    """The columns of one dataset, None where it is not reached, and what is said of its rows.

    Args:
        canvas: what their prompts are written by; without a policy they are not.
        gold: they are trained on.
        given: they have given answers.
    """
    rows, notes = reached_rows(spec, partial(prompt_rows, given=given), offline)
    if rows is None:
        return None, notes
    policy, args, codec = canvas
    held_out, checked = not gold and not given, {}

    def check_row(row: dict[str, Any], where: str) -> None:
        if policy is not None:
            shown = None if task_of(row) == "text" else codec()
            check_prompt(policy, args, shown, row, where, held_out, checked)
        else:
            for span in spans_of(task_of(row)):
                check_task_sampler(args, span, where, held_out)
        if given:
            check_given(row, where)

    check_dataset(rows, f"dataset {spec.path}", check_row)
    notes = [f"dataset {spec.path}: {len(rows)} rows, columns {rows.column_names}"]
    if gold and "solution" in rows.column_names:
        notes += check_golds(recipe, rows, spec)
    return rows.column_names, notes

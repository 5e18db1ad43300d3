"""``unigrpo check``: what can go wrong with a recipe before any GPU time is spent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import is_bitsandbytes_available

from ..config.arguments import UniGRPOConfig
from ..config.build import build_algorithms, check_task_sampler
from ..config.task import TaskSettings
from ..data.image_codes import sides, tokenizer_config
from ..data.rows import check_dataset, task_of
from ..errors import NotReachableError, RecipeError
from ..models import POLICIES, MagvitV2Config, resolve_policy
from ..models.builtin import model_path
from ..models.hub import asking_once, fetched, hub_answers
from ..models.loading import load_config
from ..models.mmada.policy import TEXT_SLOTS
from ..models.opening import lineage
from ..models.quantization import check_quantization
from ..samplers.kv_cache import check_cache
from ..training.checkpoints.files import check_writable
from ..training.demonstrations import check_given
from ..types import spans_of
from .build import (
    build_config,
    build_lora,
    build_policy,
    build_quantization,
    resolve_names,
)
from .dataset_spec import DatasetSpec, prompt_rows
from .golds import check_golds
from .reach import code_of
from .recipe import Recipe


SCORERS = {
    "clip_score": ("openai/clip-vit-large-patch14", "config.json"),
    "image_reward": ("THUDM/ImageReward", "med_config.json"),
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
    missing = _check_quantised(recipe, args, offline)
    _check_output(Path(args.output_dir))
    resolve_names(recipe)
    notes = code_of(recipe) + missing
    notes += _check_model(recipe, offline)
    if bool(recipe.sft_datasets) != (args.sft_weight > 0):
        raise RecipeError(
            f"{recipe.source}: sft_weight={args.sft_weight} with {len(recipe.sft_datasets)} sft_datasets: the auxiliary "
            "denoising loss needs both"
        )
    every = (*recipe.datasets, *recipe.eval_datasets, *recipe.sft_datasets)
    with_pictures = any(spec.task not in (None, "text") for spec in every)
    if with_pictures or args.image_tokenizer is not None:
        notes += _check_image_tokenizer(recipe, offline)
    notes += _check_reward_models(recipe, offline)
    for spec in recipe.datasets:
        notes += _check_data(recipe, spec, offline, gold=True)
    for spec in recipe.eval_datasets:
        notes += _check_data(recipe, spec, offline, gold=False)
    for spec in recipe.sft_datasets:
        notes += _check_data(recipe, spec, offline, gold=False, given=True)
    return notes


def _check_quantised(recipe: Recipe, args: UniGRPOConfig, offline: bool) -> list[str]:
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


def _check_output(output: Path) -> None:
    """Raises ``CheckpointError`` where a run could not write; the folder itself is not made."""
    folder = output
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    check_writable(folder, name=output)


def _reach(what: str, fetch: Any, offline: bool) -> tuple[Any, list[str]]:
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


def _check_model(recipe: Recipe, offline: bool) -> list[str]:
    path = lineage(recipe.model.path)[-1]
    trusted = bool((build_config(recipe).model_init_kwargs or {}).get("trust_remote_code"))
    if _is_local(path):
        config, notes = load_config(path, trust_remote_code=trusted), []
    else:
        config, notes = _reach(f"model {path}", lambda: load_config(path, trust_remote_code=trusted), offline)
    family = build_policy(recipe) or (config and config.model_type)
    if family is not None:
        args = build_config(recipe)
        for task in ("text", "mmu"):
            check_cache(args.for_task(task).kv_cache, resolve_policy(family), f"{recipe.source}: ")
    return notes or [f"model {recipe.model.path}: {config.model_type}"]


def _check_image_tokenizer(recipe: Recipe, offline: bool) -> list[str]:
    """The tokenizer of a recipe with pictures, given or named by the model, and the image sizes that it can do."""
    args = build_config(recipe)
    path, model = args.image_tokenizer, lineage(recipe.model.path)[-1]
    if path is None:
        if not _is_local(model):
            return ["image tokenizer: the one that the model names, not checked"]
        path = getattr(load_config(model), "image_tokenizer", None)
        if path is None:
            raise RecipeError(f"{recipe.source}: pictures need image_tokenizer, and {recipe.model.path} names none")
    named, path, notes = path, model_path(path), []
    if _is_local(path, "image_tokenizer"):
        config = tokenizer_config(path)
    else:
        config, notes = _reach(f"image tokenizer {path}", lambda: tokenizer_config(path), offline)
    if config is None:
        return notes
    for task in ("mmu", "t2i", "picture"):
        size = args.for_task(task).image_size
        if size is not None and any(side % config.factor for side in sides(size)):
            raise RecipeError(
                f"{recipe.source}: image_size={size} of task {task!r} must be a multiple of {config.factor} pixels, the side "
                "of a code"
            )
    return [f"image tokenizer {named}: {config.codebook_size} codes of {config.factor} pixels"]


def _check_reward_models(recipe: Recipe, offline: bool) -> list[str]:
    """The models of image rewards: folders must exist, hub ids must be reachable."""
    notes = []
    for reward in recipe.rewards:
        if reward.name not in SCORERS or reward.args.get("backend") == "open_clip":
            continue
        default, file = SCORERS[reward.name]
        path = model_path(str(reward.args.get("model") or default))
        if not _is_local(path, f"model of {reward.name}"):
            what = f"model {path} of {reward.name}"
            _, missed = _reach(what, partial(fetched, path, file, what), offline)
            notes += missed or [f"{what}: reachable"]
    return notes


def _is_local(path: str, what: str = "model path") -> bool:
    """A path is local when it looks like one, so that a typing error is not taken for a hub id."""
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path).exists()
    if looks_local and not Path(path).exists():
        raise RecipeError(f"{what} {path!r} does not exist")
    return looks_local


def _check_data(recipe: Recipe, spec: DatasetSpec, offline: bool, gold: bool, given: bool = False) -> list[str]:
    """The rows of one dataset; ``gold`` for those trained on, ``given`` for those with given answers."""
    notes: list[str] = []
    if spec.on_hub:
        rows, notes = _reach(f"dataset {spec.path}", lambda: prompt_rows(spec, given), offline)
    else:
        rows = prompt_rows(spec, given)
    if rows is None:
        return notes
    args = build_config(recipe)

    def check_row(row: dict[str, Any], where: str) -> None:
        for span in spans_of(task_of(row)):
            check_task_sampler(args, span, where, held_out=not gold and not given)
        if given:
            check_given(row, where)

    check_dataset(rows, f"dataset {spec.path}", check_row)
    notes = [f"dataset {spec.path}: {len(rows)} rows, columns {rows.column_names}"]
    if gold and "solution" in rows.column_names:
        notes += check_golds(recipe, rows, spec)
    return notes


# ---- what a recipe trains, known without its weights ----


PROMPT = {"text": 160, "mmu": 160, "t2i": 50}
"""Tokens of a question or of a caption, where no ``max_prompt_length`` bounds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A task's canvas: its positions, those that an answer fills, and how many tokens it is chosen among.

    ``pixels`` are height and width of its pictures; ``assumed`` says what no key bounds.
    """

    settings: TaskSettings
    length: int
    answer: int
    width: int
    pixels: tuple[int, int] = (0, 0)
    assumed: str = ""


def model_family(recipe: Recipe) -> tuple[Any, Any, torch.dtype, str]:
    """The class, the configuration and the dtype of a recipe's model, and a note where these are the published ones.

    Raises:
        RecipeError: the model is not reachable, and is none whose published sizes are known.
    """
    policy, note, options = build_policy(recipe), "", build_config(recipe).model_init_kwargs or {}
    try:
        path = lineage(recipe.model.path)[-1]
        config = load_config(path, trust_remote_code=bool(options.get("trust_remote_code")))
    except OSError as error:
        if policy not in POLICIES.values():
            raise RecipeError(
                f"{recipe.source}: model {recipe.model.path} is not reachable, so its memory cannot be counted; set policy "
                f"to one of {sorted(POLICIES)} to count with the published sizes"
            ) from error
        config = policy.model_class.config_class(dtype="bfloat16")
        note = f"model {recipe.model.path}: not reachable, counted by the published 8B sizes"
    policy = policy or resolve_policy(config.model_type)
    if not isinstance(policy.model_class, type) or not issubclass(policy.model_class, PreTrainedModel):
        raise RecipeError(
            f"{recipe.source}: the model_class of policy {policy.__name__} is no PreTrainedModel, so its memory cannot be "
            "counted"
        )
    dtype = options.get("dtype", recipe.model.dtype)
    dtype = config.dtype or torch.float32 if dtype == "auto" else dtype
    return policy.model_class, config, getattr(torch, dtype) if isinstance(dtype, str) else dtype, note


def shapes_of(recipe: Recipe, args: UniGRPOConfig, config: Any) -> tuple[MagvitV2Config | None, list[Shape]]:
    """The image tokenizer, where one is needed, and the canvas of each task, of a model of the configuration ``config``.

    A tokenizer that is not reachable is counted as showlab/magvitv2.
    """
    tasks, tokenizer = sorted({spec.task or "text" for spec in (*recipe.datasets, *recipe.sft_datasets)}), None
    if tasks != ["text"]:
        path = args.image_tokenizer or getattr(config, "image_tokenizer", None)
        try:
            tokenizer = MagvitV2Config() if path is None else tokenizer_config(model_path(path))
        except OSError:
            tokenizer = MagvitV2Config()
    return tokenizer, [shape_of(args, config, tokenizer, task) for task in tasks]


def shape_of(args: UniGRPOConfig, config: Any, tokenizer: MagvitV2Config | None, task: str) -> Shape:
    """The canvas of ``task`` with a prompt as long as a run takes, or a usual one where it takes any."""
    own, text = args.for_task(task), getattr(config, "image_token_offset", config.vocab_size)
    assumed = f"prompts of task {task!r} are counted with {PROMPT[task]} tokens, as max_prompt_length is not set"
    assumed = assumed if own.max_prompt_length is None else ""
    if task == "text":
        answer = own.max_completion_length
        length = (own.max_prompt_length or PROMPT[task]) + answer
        return Shape(settings=own, length=length, answer=answer, width=text, assumed=assumed)
    usual = (getattr(config, "sampling_defaults", None) or {}).get("image_size", 512)
    pixels = sides(own.image_size or usual)
    codes = pixels[0] // tokenizer.factor * (pixels[1] // tokenizer.factor)
    if task == "mmu":
        answer, width = own.max_completion_length, text
        length = (own.max_prompt_length or codes + 3 + PROMPT[task]) + answer
    else:
        answer, width = codes, tokenizer.codebook_size
        slots = own.max_prompt_length or (PROMPT[task] + 2 if args.trim_padding else TEXT_SLOTS)
        # Beside the text slots and the codes: the caption's end, and a mark on either side of the picture.
        length = slots + codes + 3
    return Shape(settings=own, length=length, answer=answer, width=width, pixels=pixels, assumed=assumed)

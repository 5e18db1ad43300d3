"""What a recipe trains, known without its weights: the model's class and configuration, the canvas of each task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..config.arguments import UniGRPOConfig
from ..config.denoising_arguments import MaskedDenoisingConfig
from ..data.image_codes import TokenizerConfig, sides, tokenizer_config
from ..errors import RecipeError
from ..models import POLICIES, MagvitV2Config, resolve_policy
from ..models.builtin import model_path
from ..models.loading import check_dtype
from ..models.mmada.policy import TEXT_SLOTS
from ..models.nearest import config_of
from ..models.opening import lineage
from ..types import SPANS, canvas_tasks
from .build import build_policy
from .recipe import Recipe


PROMPT = {"text": 160, "mmu": 160, "t2i": 50, "thought": 160, "picture": 160, "i2i": 50}
"""Tokens of a question or of a caption, where no ``max_prompt_length`` bounds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A task's canvas: its positions, those that an answer fills, and how many tokens it is chosen among. ``settings`` are those of
    an RL run.

    ``pixels`` are height and width of its pictures; ``assumed`` says what no key bounds. ``shared`` are the logits of a row that spans
    which share a forward keep.
    """

    settings: Any
    length: int
    answer: int
    width: int
    pixels: tuple[int, int] = (0, 0)
    assumed: str = ""
    shared: int = 0


def model_family(recipe: Recipe, args: UniGRPOConfig | MaskedDenoisingConfig) -> tuple[Any, Any, torch.dtype, str]:
    """The class, the configuration and the dtype of a recipe's model, and a note where these are the published ones.

    Raises:
        RecipeError: the model is not reachable, and is none whose published sizes are known.
    """
    policy, note, options = build_policy(recipe), "", args.model_init_kwargs or {}
    assert isinstance(options, dict), "a mapping since the config was made"
    try:
        path = lineage(recipe.model.path)[-1]
        config = config_of(path, policy, **options)
    except OSError as error:
        if policy not in POLICIES.values():
            raise RecipeError(
                f"{recipe.source}: model {recipe.model.path} is not reachable, so its memory cannot be counted; set policy "
                f"to one of {sorted(POLICIES)} to count with the published sizes"
            ) from error
        config = policy.model_class.config_class(dtype="bfloat16")
        note = f"model {recipe.model.path}: not reachable, counted by the sizes of {config.model_type} as it was published"
    policy = policy or resolve_policy(config.model_type)
    if not isinstance(policy.model_class, type) or not issubclass(policy.model_class, PreTrainedModel):
        raise RecipeError(
            f"{recipe.source}: the model_class of policy {policy.__name__} is no PreTrainedModel, so its memory cannot be "
            "counted"
        )
    dtype = options.get("dtype", recipe.model.dtype)
    check_dtype(dtype)
    dtype = config.dtype or torch.float32 if dtype == "auto" else dtype
    return policy.model_class, config, getattr(torch, dtype) if isinstance(dtype, str) else dtype, note


def shapes_of(recipe: Recipe, args: UniGRPOConfig, config: Any) -> tuple[TokenizerConfig | None, list[Shape]]:
    """The image tokenizer, where one is needed, and the canvas of each task, of a model of the configuration ``config``.

    A tokenizer that is not reachable is counted as the one that the family was published with.
    """
    tasks = canvas_tasks({spec.task or "text" for spec in (*recipe.datasets, *recipe.sft_datasets)})
    tokenizer = tokenizer_of(args, config, tasks)
    return tokenizer, [shape_of(args, config, tokenizer, task) for task in tasks]


def tokenizer_of(args: Any, config: Any, tasks: list[str]) -> TokenizerConfig | None:
    """The image tokenizer's configuration, where one of ``tasks`` needs it."""
    if tasks == ["text"]:
        return None
    path = args.image_tokenizer or getattr(config, "image_tokenizer", None)
    published = getattr(config, "image_tokenizer_config", MagvitV2Config)
    try:
        return published() if path is None else tokenizer_config(model_path(path))
    except OSError:
        return published()


def line_ends(config: Any, tokenizer: TokenizerConfig, pixels: tuple[int, int]) -> int:
    """Tokens beside the codes of a picture that end its rows."""
    return pixels[0] // tokenizer.factor if getattr(config, "newlines_in_pictures", False) else 0


def picture_of(config: Any, tokenizer: TokenizerConfig, size: Any) -> tuple[tuple[int, int], int]:
    """Height and width of a picture of that size, or None for the checkpoint's, and its codes."""
    usual = (getattr(config, "sampling_defaults", None) or {}).get("image_size", 512)
    pixels = sides(size or usual)
    return pixels, pixels[0] // tokenizer.factor * (pixels[1] // tokenizer.factor)


def shape_of(args: UniGRPOConfig, config: Any, tokenizer: TokenizerConfig | None, task: str) -> Shape:
    """The canvas of ``task`` with a prompt as long as a run takes, or a usual one where it takes any."""
    own, text = args.for_task(task), getattr(config, "image_token_offset", config.get_text_config().vocab_size)
    # Both spans of r2i have the thought's prompt.
    asked = args.for_task("thought" if task in SPANS["r2i"] else task)
    limit, padded = asked.max_prompt_length, task in SPANS["r2i"] and getattr(config, "pads_instructions", False)
    usual = asked.max_completion_length + 1 if padded else PROMPT[task]
    assumed = f"prompts of task {task!r} are counted with {usual} tokens, as max_prompt_length is not set"
    assumed = assumed if limit is None else ""
    if task == "text":
        answer = own.max_completion_length
        length = (own.max_prompt_length or PROMPT[task]) + answer
        return Shape(settings=own, length=length, answer=answer, width=text, assumed=assumed)
    assert tokenizer is not None, "a task with pictures has one"
    pixels, codes = picture_of(config, tokenizer, own.image_size)
    if task in SPANS["r2i"]:
        thought = args.for_task("thought")
        pixels, codes = picture_of(config, tokenizer, args.for_task("picture").image_size)
        # Beside prompt, thought and codes: the task's mark, and one on either side of the picture.
        lines, written = line_ends(config, tokenizer, pixels), thought.max_completion_length
        length = (thought.max_prompt_length or usual) + written + codes + lines + 3
        length += codes + lines + 2 if getattr(config, "edits_with_thoughts", False) else 0
        answer, width = (codes, tokenizer.codebook_size) if task == "picture" else (written, text)
        shared = written * text + codes * tokenizer.codebook_size if args.r2i_decoding == "parallel" else 0
        known = {"pixels": pixels, "assumed": assumed, "shared": shared}
        return Shape(settings=own, length=length, answer=answer, width=width, **known)
    lines = line_ends(config, tokenizer, pixels)
    if task == "mmu":
        answer, width = own.max_completion_length, text
        length = (own.max_prompt_length or codes + lines + 3 + PROMPT[task]) + answer
    else:
        answer, width = codes, tokenizer.codebook_size
        shown = codes + lines + 2 if task == "i2i" else 0
        slots = own.max_prompt_length or (shown + PROMPT[task] + 2 if args.trim_padding else shown + TEXT_SLOTS)
        # Beside the text slots and the codes: the caption's end, and a mark on either side of the picture.
        length = slots + codes + lines + 3
    return Shape(settings=own, length=length, answer=answer, width=width, pixels=pixels, assumed=assumed)

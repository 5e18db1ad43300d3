"""What a run on given answers holds on one card, by arithmetic."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from ..config.denoising_arguments import MaskedDenoisingConfig
from ..data.image_codes import TokenizerConfig
from ..models.mmada.policy import TEXT_SLOTS
from .counting import Model
from .memory import (
    Memory,
    add_activations,
    add_largest,
    add_pictures,
    add_update_head,
    add_weights,
    logits_of,
    model_of,
)
from .recipe import Recipe
from .sft import config_to_check
from .shapes import PROMPT, Shape, line_ends, picture_of, tokenizer_of


PHASES = ("pictures", "update", "evaluation")
"""What a run on given answers does in turn."""


def memory_of_sft(recipe: Recipe) -> Memory:
    """The parts of a run of one process, which shares no weights with others.

    Rows are counted as long as ``max_length`` lets them be, and all of a micro-batch as rows of one task.

    Raises:
        RecipeError: the model is not reachable, and is none whose published sizes are known.
    """
    args, memory = config_to_check(recipe), Memory(every=PHASES)
    model, config, published = model_of(recipe, args)
    tasks = sorted({spec.task or "text" for spec in recipe.datasets})
    tokenizer = tokenizer_of(args, config, tasks)
    shapes = [_shape(args, config, tokenizer, task) for task in tasks]
    memory.notes += [note for note in (published, *(shape.assumed for shape in shapes)) if note]
    base = model.base()
    add_weights(memory, recipe, args, model, base)
    if tokenizer is not None:
        add_pictures(memory, args, tokenizer, max(shape.pixels for shape in shapes), draws=False)
    for parts_of in (_update, *([_held_out] if recipe.eval_datasets else [])):
        add_largest(
            memory, [partial(parts_of, recipe, args, model, base.get_output_embeddings(), own) for own in shapes]
        )
    return memory


def _shape(args: MaskedDenoisingConfig, config: Any, tokenizer: TokenizerConfig | None, task: str) -> Shape:
    """The longest row of ``task``; what it trains is normalised over the whole vocabulary."""
    width, room = config.get_text_config().vocab_size, args.max_length
    if task == "text":
        return Shape(settings=None, length=room, answer=room, width=width)
    assert tokenizer is not None, "a task with pictures has one"
    pixels, codes = picture_of(config, tokenizer, args.image_size)
    lines = line_ends(config, tokenizer, pixels)
    if task == "mmu":
        return Shape(settings=None, length=room + codes, answer=room, width=width, pixels=pixels)
    if task == "r2i":
        pictures = (codes + lines + 3) * (2 if getattr(config, "edits_with_thoughts", False) else 1)
        # An instruction that is padded has as many places as the thought with its bos, which may fill the room.
        text = 2 * (args.thought_length or room) + 1 if getattr(config, "pads_instructions", False) else room
        return Shape(settings=None, length=text + pictures, answer=room + codes, width=width, pixels=pixels)
    padded = (args.attn_mask_mode or getattr(config, "attn_mask_mode", None)) == "none"
    slots = (TEXT_SLOTS if padded else PROMPT[task] + 2) + (codes + lines + 2 if task == "i2i" else 0)
    note = "" if padded else f"captions are counted with {PROMPT[task]} tokens"
    return Shape(
        settings=None, length=slots + codes + lines + 3, answer=codes + 2, width=width, pixels=pixels, assumed=note
    )


def _update(recipe: Recipe, args: MaskedDenoisingConfig, model: Model, head: nn.Module, shape: Shape) -> Memory:
    memory, rows = Memory(every=PHASES), args.per_device_train_batch_size
    add_activations(memory, "update", "update", model, shape, rows)
    add_update_head(memory, head, rows * shape.answer, shape, recipe.lora is not None)
    return memory


def _held_out(recipe: Recipe, args: MaskedDenoisingConfig, model: Model, head: nn.Module, shape: Shape) -> Memory:
    """Each row stands ``num_eval_draws`` times under its own noise, and as often under that of the bound."""
    memory, rows = Memory(every=PHASES), args.per_device_eval_batch_size * 2 * args.num_eval_draws
    add_activations(memory, "evaluation", "rollout", model, shape, rows, phase="evaluation")
    memory.add("evaluation head", *logits_of(head, rows * shape.answer, shape, "scored", False), "evaluation")
    return memory

"""What a run holds on one card, by arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ..config.arguments import UniGRPOConfig
from ..data.image_codes import tokenizer_without_weights
from ..models.checkpoint_files import first_line
from ..models.forward import used_scales
from ..models.head import ROWS_PER_GPU_CHUNK, VOCAB_PER_CHUNK, VocabularyHead
from ..rollout.rewards import without_weights
from ..types import CANVAS_TASKS
from .build import build_config, build_rewards
from .counting import Model, bytes_of, counted, growth, trained_by
from .recipe import Recipe
from .shapes import Shape, model_family, shapes_of


PHASES = ("rollout", "pictures", "rewards", "update")
"""What a run with rewards does in turn; its peak is the largest of them."""

MODEL_AT_WORK = ("rollout", "update", "evaluation")
"""Phases of any run in which the model computes."""

SCALED_TOGETHER = 64
"""Weights with one scale in 4 bits: an fp32 number, or nested a byte, and an fp32 number for 256 of them."""

COPIES = {"drawn": 3, "scored": 3, "compared": 6}
"""How often a head holds the fp32 logits of a chunk at once: drawn from, scored, or scored beside a reference."""


class Part(NamedTuple):
    """Bytes that are held in ``phases``."""

    name: str
    bytes: int
    how: str
    phases: tuple[str, ...]


UNCOUNTED = "activations are not counted"


@dataclass(slots=True, kw_only=True)
class Memory:
    """The parts of a run, and what was assumed or could not be counted. ``every`` are its phases."""

    every: tuple[str, ...] = PHASES
    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, count: float, how: str, *phases: str) -> None:
        """A part of ``count`` bytes, if it has any, and of all phases where none is named."""
        if count:
            self.parts.append(Part(name, int(count), how, phases or self.every))

    @property
    def whole(self) -> bool:
        """Whether activations are counted too."""
        return not any(note.startswith(UNCOUNTED) for note in self.notes)

    @property
    def phases(self) -> dict[str, int]:
        """Bytes of each phase that has parts of its own, the largest first."""
        own = {phase for part in self.parts for phase in part.phases if part.phases != self.every}
        sums = {phase: sum(part.bytes for part in self.parts if phase in part.phases) for phase in own}
        return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))


def memory_of(recipe: Recipe) -> Memory:
    """The parts of a run of one process, which shares no weights with others.

    Raises:
        RecipeError: the model is not reachable, and is none whose published sizes are known.
    """
    args, memory = build_config(recipe), Memory()
    model, config, published = model_of(recipe, args)
    args.take_lengths(getattr(config, "sampling_defaults", None))
    tokenizer, shapes = shapes_of(recipe, args, config)
    memory.notes += [note for note in (published, *(shape.assumed for shape in shapes)) if note]
    base = model.base()
    add_weights(memory, recipe, args, model, base)
    if recipe.lora is None and any(args.for_task(task).needs_reference for task in CANVAS_TASKS):
        memory.add("reference", bytes_of(base), "a frozen copy of the model")
    if tokenizer is not None:
        add_pictures(memory, args, tokenizer, max(shape.pixels for shape in shapes))
    _rewards(memory, recipe, args)
    for parts_of in (_rollout, _update):
        add_largest(
            memory, [partial(parts_of, recipe, args, model, base.get_output_embeddings(), own) for own in shapes]
        )
    return memory


def model_of(recipe: Recipe, args: Any) -> tuple[Model, Any, str]:
    """The model that a run with ``args`` trains, its configuration, and a note where its published sizes are taken."""
    kind, config, dtype, published = model_family(recipe, args)
    lora = None if recipe.lora is None else json.dumps(recipe.lora, sort_keys=True)
    autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    kept = (args.gradient_checkpointing, not args.disable_dropout)
    return Model(kind, config.to_json_string(use_diff=False), dtype, lora, autocast, *kept), config, published


def add_largest(memory: Memory, counts: list[Callable[[], Memory]]) -> None:
    """The parts of the task that holds most: all rows of a step may be of one task."""
    try:
        each = [count() for count in counts]
    except Exception as error:  # The model's own code, here without weights: these are known all the same.
        memory.notes.append(f"{UNCOUNTED} ({type(error).__name__}: {first_line(error)})")
        return
    memory.parts += max(each, key=lambda own: max(own.phases.values())).parts


def add_weights(memory: Memory, recipe: Recipe, args: Any, model: Model, base: nn.Module) -> None:
    """Weights, gradients and the optimizer's numbers."""
    layers = [own for own in base.modules() if type(own) is nn.Linear and own is not base.get_output_embeddings()]
    count, size, whole = sum(own.numel() for own in base.parameters()), model.dtype.itemsize, bytes_of(base)
    asked = (args.model_init_kwargs or {}).get("quantization_config") or {}
    asked = asked if isinstance(asked, dict) else vars(asked)
    linear = sum(own.weight.numel() for own in layers)
    if recipe.model.load_in_4bit or asked.get("load_in_4bit"):
        nested = recipe.model.use_bnb_nested_quant or asked.get("bnb_4bit_use_double_quant")
        taken, bits = linear / 2 + linear / SCALED_TOGETHER * (1 + 4 / 256 if nested else 4), 4
    elif recipe.model.load_in_8bit or asked.get("load_in_8bit"):
        taken, bits = linear + 4 * sum(own.out_features for own in layers), 8
    else:
        taken, bits, linear = 0, 0, 0
    few = f"{linear:,} in {bits} bits with scales, " if bits else ""
    memory.add("base weights", whole - linear * size + taken, f"{few}{count - linear:,} x {size} bytes")
    largest = max(own.weight.numel() for own in layers) if bits else 0
    working = [own for own in memory.every if own in MODEL_AT_WORK]
    memory.add("a layer unpacked", largest * size, f"{largest:,} x {size} bytes", *working)
    number, moved = trained_by(model)
    if recipe.lora is not None:
        memory.add("adapters", moved, f"{number:,} weights, r = {recipe.lora.get('r', 8)}")
    memory.add("gradients", moved, "one of each trained weight", "update")
    memory.add("AdamW", 2 * moved, "two moments of each trained weight")


def add_activations(
    memory: Memory,
    name: str,
    mode: str,
    model: Model,
    shape: Shape,
    rows: int,
    twins: int = 0,
    phase: str = "rollout",
) -> None:
    """Those of a forward in ``phase``, or of an update, of ``rows``; guided ones have ``twins``."""
    # A row of a model in blocks stands in an update twice, but for its prompt: noisy and clean.
    length = shape.length + (shape.answer if mode == "update" and model.in_blocks else 0)
    tokens = rows * length * (1 + twins)
    if mode != "update":  # Of no gradient nothing is checkpointed, or dropped out.
        model = replace(model, checkpointing=False, dropout=False)
    fixed, slope = growth(model, mode)
    how = f"{f'{1 + twins} x ' if twins else ''}{rows} x {length:,} tokens x {slope / 1e3:.0f} kB"
    memory.add(name, fixed + slope * tokens, how, "update" if mode == "update" else phase)


def _rollout(recipe: Recipe, args: UniGRPOConfig, model: Model, head: nn.Module, shape: Shape) -> Memory:
    own, memory = shape.settings, Memory()
    rows = args.per_device_train_batch_size * args.steps_per_generation
    if recipe.eval_datasets:
        rows = max(rows, args.per_device_eval_batch_size)
    rows, twins = min(rows, args.rollout_batch_size or rows), len(used_scales(own.rollout_guidance))
    add_activations(memory, "rollout", "rollout", model, shape, rows, twins)
    if own.kv_cache != "none" and own.choice("sampler").name in ("semi_autoregressive", "block"):
        add_activations(memory, "keys and values", "cache", model, shape, rows, twins)
    memory.add("rollout head", *logits_of(head, rows * shape.answer, shape, "drawn", bool(twins)), "rollout")
    if shape.shared:
        # Once more while they are put together.
        memory.add(
            "shared logits", 2 * rows * shape.shared * 4, f"{rows} x {shape.shared:,} x 4 bytes, twice", "rollout"
        )
    return memory


def _update(recipe: Recipe, args: UniGRPOConfig, model: Model, head: nn.Module, shape: Shape) -> Memory:
    own, twins, memory = shape.settings, len(used_scales(shape.settings.likelihood_guidance)), Memory()
    rows = max(args.per_device_train_batch_size, args.sft_batch_size if args.sft_weight else 0)
    if own.choice("reduce").part.mixes:  # The draws of a row stay together; coupled ones are a full row and pairs.
        coupled = own.choice("noising").name == "coupled"
        rows = max(rows, 1 + 2 * own.num_noise_samples if coupled else own.num_noise_samples)
    add_activations(memory, "update", "update", model, shape, rows, twins)
    add_update_head(memory, head, rows * shape.answer, shape, recipe.lora is not None, own.exact_kl, twins)
    return memory


def add_update_head(
    memory: Memory,
    head: nn.Module,
    scored: int,
    shape: Shape,
    adapters: bool,
    exact_kl: bool = False,
    twins: int = 0,
) -> None:
    """What the head of an update holds that scores so many tokens."""
    weight, size = head.weight.numel(), head.weight.element_size()
    logits, how = logits_of(head, scored, shape, "compared" if exact_kl else "scored", bool(twins))
    if not adapters:
        # The gradient of its weight is summed in fp32, and then cast.
        logits, how = weight * 4 + max(logits, weight * size if size < 4 else 0), f"{how}, {weight:,} x 4 bytes"
    else:
        # d logp / d hidden, and d KL / d hidden, in chunks and joined.
        slopes = (2 if exact_kl else 1) * scored * head.weight.shape[1] * size
        logits, how = logits + 2 * slopes, f"{how}, slopes"
    if exact_kl:
        logits, how = logits + scored * shape.width * 4, f"{how}, reference {scored:,} x {shape.width:,} x 4"
    memory.add("update head", logits, how, "update")


def logits_of(head: nn.Module, rows: int, shape: Shape, kind: str, guided: bool) -> tuple[int, str]:
    """fp32 logits of a chunk of ``rows``; guided rows are fp32, and a half-precision head is upcast piece by piece for them."""
    chunk = min(rows, ROWS_PER_GPU_CHUNK) if isinstance(head, VocabularyHead) else rows
    width, columns = head.weight.shape[1], min(VOCAB_PER_CHUNK, shape.width)
    logits, copies = chunk * shape.width * 4, COPIES[kind]
    upcast = 2 * logits + columns * width * 4 if guided and head.weight.element_size() < 4 else 0
    if copies * logits >= upcast:
        return copies * logits, f"{chunk:,} rows x {shape.width:,} x 4 bytes x {copies}"
    return upcast, f"({chunk:,} rows x {shape.width:,} x 2 + {columns:,} x {width:,}) x 4 bytes"


def add_pictures(memory: Memory, args: Any, config: Any, size: tuple[int, int], draws: bool = True) -> None:
    """The image tokenizer, and what it holds while it reads some pictures, or ``draws`` them too."""
    build = partial(tokenizer_without_weights, config, *size, draws)
    weights, most = counted((config.to_json_string(), size, draws), build)
    memory.add("image tokenizer", weights, "fp32", *(("pictures",) if args.offload_image_tokenizer else ()))
    memory.add("pictures", most, f"some of {size[0]} x {size[1]} pixels at once", "pictures")


def _rewards(memory: Memory, recipe: Recipe, args: UniGRPOConfig) -> None:
    """Reward models, and what the largest one holds while it scores; offloaded, one is there at a time."""
    weights, most = {}, 0
    for spec, reward in zip(recipe.rewards, build_rewards(recipe), strict=True):
        key, own = (spec.name, json.dumps(spec.args, default=str)), getattr(reward, "reward", reward)
        try:
            found = counted(key, partial(without_weights, own))
        except (OSError, ValueError) as error:
            memory.notes.append(f"the model of {spec.name} is not counted ({first_line(error)})")
            continue
        if any(found):
            weights[spec.name], most = found[0], max(most, found[1])
    if weights:
        where = ("rewards",) if args.offload_reward_models else ()
        each = ", ".join(f"{name} {count / 1e9:.1f}" for name, count in weights.items())
        taken = max(weights.values()) if where else sum(weights.values())
        memory.add("reward models", taken, f"{each}{', one at a time' if where else ''}", *where)
    memory.add("rewards", most, "the largest batch of scores", "rewards")

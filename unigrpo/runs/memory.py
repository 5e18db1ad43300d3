"""What a run holds on one card, by arithmetic.

Weights are counted on the meta device. Activations are counted by running the model's own code on fake tensors, which have
shapes and no memory: on few layers and rows, because what is held grows in a straight line with both.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..config.arguments import UniGRPOConfig
from ..data.image_codes import tokenizer_without_weights
from ..models.adapters import add_adapter
from ..models.cache import KeyValueCache
from ..models.checkpoint_files import first_line
from ..models.head import ROWS_PER_GPU_CHUNK, VOCAB_PER_CHUNK, VocabularyHead
from ..rollout.rewards import without_weights
from ..types import CANVAS_TASKS
from .build import build_config, build_rewards
from .check import Shape, model_family, shapes_of
from .recipe import Recipe


PHASES = ("rollout", "pictures", "rewards", "update")
"""What a run does in turn; its peak is the largest of them."""

SCALED_TOGETHER = 64
"""Weights with one scale in 4 bits: an fp32 number, or nested a byte, and an fp32 number for 256 of them."""

COPIES = {"drawn": 3, "scored": 3, "compared": 6}
"""How often a head holds the fp32 logits of a chunk at once: drawn from, scored, or scored beside a reference."""

LAYERS, ROWS, LENGTH = (2, 3), 64, 512
"""Activations are counted on models of so few layers, with so many rows and twice as many, of so many tokens."""


class Live(TorchDispatchMode):
    """Bytes that operations have made and that are still held, now and at most, beside those of ``module``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        weights = (*module.parameters(), *module.buffers())
        self._sizes = dict.fromkeys((own.untyped_storage()._cdata for own in weights), 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata)
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def bytes_of(module: nn.Module) -> int:
    """Its weights and buffers."""
    return sum(own.nbytes for own in (*module.parameters(), *module.buffers()))


def faked(module: nn.Module) -> nn.Module:
    """A module of the meta device, in place, with fake tensors of the CPU: autocast knows no meta device."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, own in [(name, own) for name, own in held.items() if own is not None]:
                fake = torch.zeros(own.shape, dtype=own.dtype)
                held[name] = nn.Parameter(fake, own.requires_grad) if held is part._parameters else fake
    return module


_COUNTED: dict[tuple, tuple[int, int]] = {}


def counted(key: tuple, build: Callable[[], tuple[nn.Module, Callable[[], Any]] | None]) -> tuple[int, int]:
    """Bytes of a module of the meta device, and the most that a call of it holds beside them; once for each ``key``."""
    if key not in _COUNTED:
        module, call = build() or (nn.Module(), lambda: None)
        weights = bytes_of(module)
        with FakeTensorMode(), torch.no_grad():
            faked(module.eval())
            with Live(module) as live:
                call()
        _COUNTED[key] = weights, live.peak
    return _COUNTED[key]


class _AtHead(Exception):
    """A forward has come to its head."""


@dataclass(frozen=True, slots=True)
class Model:
    """A run's model as text, so that equal models are counted once."""

    kind: Any
    config: str
    dtype: torch.dtype
    lora: str | None
    autocast: torch.dtype | None
    checkpointing: bool
    dropout: bool

    def base(self, layers: int | None = None) -> nn.Module:
        """On the meta device, with ``layers`` or all of them."""
        config = self.kind.config_class.from_dict(json.loads(self.config))
        if layers is not None:
            config.num_hidden_layers = layers
        with torch.device("meta"):
            return self.kind(config).to(self.dtype)

    def trained(self, base: nn.Module) -> nn.Module:
        """``base`` with its adapter."""
        # Some ways to begin compute with the base's weights; how many an adapter has is the same.
        lora = None if self.lora is None else LoraConfig(**{**json.loads(self.lora), "init_lora_weights": True})
        model = add_adapter(base, lora)
        if self.checkpointing:
            base.gradient_checkpointing_enable()
            if lora is not None:
                model.enable_input_require_grads()
        for part in model.modules():
            if isinstance(part, nn.Dropout) and not self.dropout:
                part.p = 0.0
        return model

    def peak(self, layers: int | None, rows: int, mode: str) -> int:
        """The most bytes of a forward up to its head, and of its backward (``"update"``), or what it keeps (``"cache"``)."""
        base = self.base(layers)
        model = self.trained(base)
        cast = nullcontext() if self.autocast is None else torch.autocast("cpu", dtype=self.autocast)
        arrived: list[Tensor] = []

        def stop(_: nn.Module, inputs: tuple) -> None:
            arrived.append(inputs[0])
            raise _AtHead

        with FakeTensorMode():
            faked(model).train(mode == "update")
            base.get_output_embeddings().register_forward_pre_hook(stop)
            ids, cache = torch.zeros(rows, LENGTH, dtype=torch.int64), {"cache": KeyValueCache()}
            with Live(model) as live, torch.set_grad_enabled(mode == "update"):
                with suppress(_AtHead), cast:
                    model(input_ids=ids, **(cache if mode == "cache" else {}))
                if mode == "update":
                    arrived[0].backward(torch.ones_like(arrived[0]))
                arrived.clear()
            return live.now if mode == "cache" else live.peak


@lru_cache
def trained_by(model: Model) -> tuple[int, int]:
    """How many weights an optimizer moves, and their bytes."""
    trained = [own for own in model.trained(model.base()).parameters() if own.requires_grad]
    return sum(own.numel() for own in trained), sum(own.nbytes for own in trained)


@lru_cache
def growth(model: Model, mode: str) -> tuple[float, float]:
    """Bytes of the whole model's activations: fixed, and a token more."""
    layers = getattr(model.base().config, "num_hidden_layers", None)
    few = LAYERS if layers is not None and layers > max(LAYERS) else (None,)
    peaks = [[model.peak(count, rows, mode) for rows in (ROWS, 2 * ROWS)] for count in few]
    lines = [(2 * one - two, (two - one) / (ROWS * LENGTH)) for one, two in peaks]
    more = layers - LAYERS[0] if len(lines) > 1 else 0
    return tuple(least + (last - least) * more for least, last in zip(lines[0], lines[-1], strict=True))


class Part(NamedTuple):
    """Bytes that are held in ``phases``."""

    name: str
    bytes: int
    how: str
    phases: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Memory:
    """The parts of a run, and what was assumed or could not be counted."""

    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, count: float, how: str, *phases: str) -> None:
        """A part of ``count`` bytes, if it has any, and of all phases where none is named."""
        if count:
            self.parts.append(Part(name, int(count), how, phases or PHASES))

    @property
    def phases(self) -> dict[str, int]:
        """Bytes of each phase that has parts of its own, the largest first."""
        own = {phase for part in self.parts for phase in part.phases if len(part.phases) < len(PHASES)}
        sums = {phase: sum(part.bytes for part in self.parts if phase in part.phases) for phase in own}
        return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))


def memory_of(recipe: Recipe) -> Memory:
    """The parts of a run of one process, which shares no weights with others.

    Raises:
        RecipeError: the model is not reachable, and is none whose published sizes are known.
    """
    args, memory = build_config(recipe), Memory()
    kind, config, dtype, published = model_family(recipe)
    lora = None if recipe.lora is None else json.dumps(recipe.lora, sort_keys=True)
    autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    kept = (args.gradient_checkpointing, not args.disable_dropout)
    model = Model(kind, config.to_json_string(use_diff=False), dtype, lora, autocast, *kept)
    tokenizer, shapes = shapes_of(recipe, args, config)
    memory.notes += [note for note in (published, *(shape.assumed for shape in shapes)) if note]
    base = model.base()
    _weights(memory, recipe, args, model, base)
    if tokenizer is not None:
        _pictures(memory, args, tokenizer, max(shape.pixels for shape in shapes))
    _rewards(memory, recipe, args)
    for parts_of in (_rollout, _update):
        try:
            each = [parts_of(recipe, args, model, base.get_output_embeddings(), shape) for shape in shapes]
        except Exception as error:  # The model's own code, here without weights: these are known all the same.
            memory.notes.append(f"activations are not counted ({type(error).__name__}: {first_line(error)})")
            continue
        # A window may hold one task alone: the largest one counts.
        memory.parts += max(each, key=lambda own: max(own.phases.values())).parts
    return memory


def _weights(memory: Memory, recipe: Recipe, args: UniGRPOConfig, model: Model, base: nn.Module) -> None:
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
    memory.add("a layer unpacked", largest * size, f"{largest:,} x {size} bytes", "rollout", "update")
    number, moved = trained_by(model)
    if recipe.lora is not None:
        memory.add("adapters", moved, f"{number:,} weights, r = {recipe.lora.get('r', 8)}")
    memory.add("gradients", moved, "one of each trained weight", "update")
    memory.add("AdamW", 2 * moved, "two moments of each trained weight")
    if recipe.lora is None and any(args.for_task(task).needs_reference for task in CANVAS_TASKS):
        memory.add("reference", whole, "a frozen copy of the model")


def _activations(memory: Memory, name: str, mode: str, model: Model, shape: Shape, rows: int, guided: bool) -> None:
    """Those of a forward, or an update, of ``rows``; ``guided`` ones have a twin."""
    tokens = rows * shape.length * (2 if guided else 1)
    fixed, slope = growth(model, mode)
    how = f"{'2 x ' if guided else ''}{rows} x {shape.length:,} tokens x {slope / 1e3:.0f} kB"
    memory.add(name, fixed + slope * tokens, how, "update" if mode == "update" else "rollout")


def _rollout(recipe: Recipe, args: UniGRPOConfig, model: Model, head: nn.Module, shape: Shape) -> Memory:
    own, memory = shape.settings, Memory()
    rows = args.per_device_train_batch_size * args.steps_per_generation
    if recipe.eval_datasets:
        rows = max(rows, args.per_device_eval_batch_size)
    rows = min(rows, args.rollout_batch_size or rows)
    _activations(memory, "rollout", "rollout", model, shape, rows, bool(own.guidance_scale))
    if own.kv_cache != "none" and own.choice("sampler").name == "semi_autoregressive":
        _activations(memory, "keys and values", "cache", model, shape, rows, bool(own.guidance_scale))
    memory.add(
        "rollout head", *logits_of(head, rows * shape.answer, shape, "drawn", bool(own.guidance_scale)), "rollout"
    )
    return memory


def _update(recipe: Recipe, args: UniGRPOConfig, model: Model, head: nn.Module, shape: Shape) -> Memory:
    own, guided, memory = shape.settings, shape.settings.likelihood_guidance is not None, Memory()
    rows = max(args.per_device_train_batch_size, args.sft_batch_size if args.sft_weight else 0)
    if own.choice("reduce").part.mixes:  # The draws of a row stay together; coupled ones are a full row and pairs.
        coupled = own.choice("noising").name == "coupled"
        rows = max(rows, 1 + 2 * own.num_noise_samples if coupled else own.num_noise_samples)
    _activations(memory, "update", "update", model, shape, rows, guided)
    scored, weight, size = rows * shape.answer, head.weight.numel(), head.weight.element_size()
    logits, how = logits_of(head, scored, shape, "compared" if own.exact_kl else "scored", guided)
    if recipe.lora is None:
        # The gradient of its weight is summed in fp32, and then cast.
        logits, how = weight * 4 + max(logits, weight * size if size < 4 else 0), f"{how}, {weight:,} x 4 bytes"
    else:
        # d logp / d hidden, and d KL / d hidden, in chunks and joined.
        slopes = (2 if own.exact_kl else 1) * scored * head.weight.shape[1] * size
        logits, how = logits + 2 * slopes, f"{how}, slopes"
    if own.exact_kl:
        logits, how = logits + scored * shape.width * 4, f"{how}, reference {scored:,} x {shape.width:,} x 4"
    memory.add("update head", logits, how, "update")
    return memory


def logits_of(head: nn.Module, rows: int, shape: Shape, kind: str, guided: bool) -> tuple[int, str]:
    """fp32 logits of a chunk of ``rows``; guided rows are fp32, and a half-precision head is upcast piece by piece for them."""
    chunk = min(rows, ROWS_PER_GPU_CHUNK) if isinstance(head, VocabularyHead) else rows
    width, columns = head.weight.shape[1], min(VOCAB_PER_CHUNK, shape.width)
    logits, copies = chunk * shape.width * 4, COPIES[kind]
    upcast = 2 * logits + columns * width * 4 if guided and head.weight.element_size() < 4 else 0
    if copies * logits >= upcast:
        return copies * logits, f"{chunk:,} rows x {shape.width:,} x 4 bytes x {copies}"
    return upcast, f"({chunk:,} rows x {shape.width:,} x 2 + {columns:,} x {width:,}) x 4 bytes"


def _pictures(memory: Memory, args: UniGRPOConfig, config: Any, size: tuple[int, int]) -> None:
    """The image tokenizer, and what it holds while it reads or draws some pictures."""
    weights, most = counted((config.to_json_string(), size), partial(tokenizer_without_weights, config, *size))
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

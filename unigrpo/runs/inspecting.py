"""What the library understands of a checkpoint, without its weights."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import CheckpointError
from ..models import DiffusionPolicy, resolve_policy
from ..models.checkpoint_files import MANY_LAYERS, check_complete, check_numbers, published
from ..models.hub import asking_once
from ..models.loading import load_processor
from ..models.nearest import config_of, tensors_of
from ..models.opening import finding_base, lineage


@asking_once()
def understood(path: str, policy: str | None = None) -> tuple[list[tuple[str, str]], list[str]]:
    """Lines of what is understood of the model at ``path``, by name, and what is missing.

    Args:
        path: a hub id, a folder of a model or an adapter, or ``builtin:NAME``.
        policy: a name in ``POLICIES`` or ``pkg.mod:attr``.

    Raises:
        CheckpointError: no family fits; the message names the nearest one and what differs.
        ValueError: files that cannot be read.
        SourceError: there is nothing at ``path``.
    """
    *adapters, base = lineage(path)
    with finding_base(adapters):
        config = config_of(base, policy)
    family = resolve_policy(policy or config.model_type)
    check_numbers(config.to_dict(), f"model {base!r}", MANY_LAYERS)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = family.model_class(config)
    lines = [("adapter on", f"{base} ({len(adapters)} of them)")] if adapters else []
    lines += [("family", f"{config.model_type}: {family.__name__}, {family.model_class.__name__}")]
    described, missing = _described(family, config, base)
    lines += [*_ids(described, config), ("logits", _logits(described, config)), ("attention", _attention(config))]
    lines += [*_spaces(described), ("head", _head(model)), ("parameters", _parameters(model))]
    said, lost = _weights(model, base)
    return [*lines, ("weights", said)], missing + lost


def _described(family: type[DiffusionPolicy], config: Any, base: str) -> tuple[DiffusionPolicy | None, list[str]]:
    """The policy, None where it cannot be made, and why."""
    try:
        processor = load_processor(family.processor_class, base)
    except (OSError, ValueError):
        return None, ["a tokenizer that can be read"]
    try:
        return family(config, processor), []  # type: ignore[call-arg]
    except ValueError as error:
        return None, [str(error)]


def _ids(policy: DiffusionPolicy | None, config: Any) -> list[tuple[str, str]]:
    source = config.get_text_config() if policy is None else policy
    stops = getattr(source, "stop_token_ids", None) or getattr(config, "eos_token_id", None)
    by = "config.json alone" if policy is None else "config.json and the tokenizer"
    return [
        (
            "ids",
            f"mask {getattr(source, 'mask_token_id', None)}, padding {source.pad_token_id}, stops {stops}; by {by}",
        )
    ]


def _logits(policy: DiffusionPolicy | None, config: Any) -> str:
    shift = getattr(config, "logit_shift", 0) if policy is None else policy.logit_shift
    return f"those at position i are of token {'i + 1' if shift else 'i'} (shift {shift})"


def _attention(config: Any) -> str:
    if length := getattr(config, "canvas_length", None):
        return f"causal before a canvas of {length} tokens, both ways inside it; no mask id: noise is random tokens"
    if getattr(config, "attention", "full") == "block_causal":
        anchor = {"start": "the start of a row", "prompt_end": "the end of the prompt"}[config.block_anchor]
        return f"block-causal, blocks of {config.block_size} from {anchor}"
    padding = "attended like text" if getattr(config, "attn_mask_mode", "bool") == "none" else "never attended"
    return f"full, padding is {padding}"


def _spaces(policy: DiffusionPolicy | None) -> list[tuple[str, str]]:
    if policy is None:
        return []
    tasks = ("text", "t2i") if policy.codebook_size else ("text",)
    spaces = {task: policy.token_space(task) for task in tasks}
    return [
        (f"{task} tokens", f"{own.start} to {own.stop - 1}" + (f" but {list(own.exclude)}" if own.exclude else ""))
        for task, own in spaces.items()
    ]


def _head(model: Any) -> str:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    rows, columns = head.weight.shape
    return f"{rows} x {columns}, {'tied to the embedding' if head.weight is embedding.weight else 'of its own'}"


def _parameters(model: Any) -> str:
    return f"{sum(own.numel() for own in model.parameters()):,}"


def _weights(model: Any, base: str) -> tuple[str, list[str]]:
    """What is said of the weights, and which of them are missing, or have no place."""
    found = tensors_of(base)
    if not found:
        return "none that can be looked into without loading them", ["weights as .safetensors"]
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    same = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    wanted = {name: tuple(own.shape) for name, own in published(model).items() if not (same and name in tied)}
    shapes = [
        f"{name} is {found[name]} and must be {shape}"
        for name, shape in wanted.items()
        if found.get(name) is not None and found[name] != shape
    ]
    try:
        check_complete(f"model {base!r}", wanted.keys() - found.keys(), found.keys() - wanted.keys(), shapes)
    except CheckpointError as error:
        return f"{len(found)} tensors", [str(error)]
    return f"{len(found)} tensors, all of them in their place", []

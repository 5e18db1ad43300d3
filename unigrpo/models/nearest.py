"""Which family a checkpoint is of, by its configuration; of one that is of none, the nearest by the names of its tensors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from . import CONVERTED, POLICIES, PUBLISHED_AS, DiffusionPolicy, resolve_policy
from .checkpoint_files import FULL_WEIGHTS, hub_file, published, reading, shapes, weight_files
from .hub import finding
from .loading import IMPLEMENTATIONS, load_config


SMALL = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 8, "num_attention_heads": 1}
SMALL |= {"num_key_value_heads": 1, "mask_token_id": 0, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 0}
"""Sizes of a model whose tensors are only named; fields by transformers' names."""

SHOWN = 2
"""Names of one kind that a message lists."""


def family_of(path: str, policy: str | type[DiffusionPolicy] | None = None) -> str | type[DiffusionPolicy] | None:
    """``policy`` if given, else what ``config.json`` says, by its ``model_type``, or by an architecture in ``PUBLISHED_AS``; None
    where that is not there to be read.

    Raises:
        CheckpointError: a ``model_type`` of no family; the message names the nearest one and what differs.
        ValueError: ``config.json`` cannot be read.
    """
    if policy is not None or (file := hub_file(path, "config.json")) is None:
        return policy
    with reading(f"config.json of {path!r}"):
        fields = json.loads(file.read_text(encoding="utf-8"))
        named = [own for own in fields.get("architectures") or () if own in PUBLISHED_AS]
        found = PUBLISHED_AS[named[0]] if named else fields.get("model_type")
    if found is None or (isinstance(found, str) and found in {*POLICIES, *CONVERTED}):
        return found
    raise CheckpointError(
        f"model {path!r}: model_type={found!r} is no family of this library; {nearest(path)}; set policy to the 'pkg.mod:attr' of a "
        f"policy for it, or choose one of {sorted(POLICIES)}"
    )


NOT_FIELDS = {
    "dtype",
    "torch_dtype",
    "device_map",
    "quantization_config",
    "allow_missing",
    "from_scratch",
    *IMPLEMENTATIONS,
}
"""Options of loading that are no fields of a configuration."""


def config_of(path: str, policy: str | type[DiffusionPolicy] | None = None, **options: Any) -> Any:
    """The configuration at ``path`` as its family reads it, with those of the ``options`` that are its fields.

    Raises:
        CheckpointError, SourceError, ValueError: as ``family_of`` and ``load_config``.
    """
    fields = {name: value for name, value in options.items() if name not in NOT_FIELDS}
    found = family_of(path, policy)
    # Files of theirs say another family's type.
    ways = ("published_architectures", "published_types")
    published = {
        name: own
        for name, own in POLICIES.items()
        if any(getattr(own.model_class.config_class, way, ()) for way in ways)
    }
    if found not in {*CONVERTED, *published, *published.values()}:
        return load_config(path, **fields)
    with reading(f"config.json of {path!r}"), finding(path, f"model {str(path)!r}"):
        return resolve_policy(found).model_class.config_class.from_pretrained(path, **fields)


def nearest(path: str) -> str:
    """Which family has the most tensors in common with the files at ``path``, and what differs, in words."""
    own = {_pattern(name) for name in tensors_of(path)}
    if not own:
        return "there are no weights beside it by which to name the nearest"
    # One of several networks has a configuration for each, and tensors of no other's names.
    plain = {name: own for name, own in POLICIES.items() if not own.model_class.config_class.sub_configs}
    known = {name: _patterns(policy) for name, policy in plain.items()}
    name = max(known, key=lambda name: len(own & known[name]) / len(own | known[name]))
    # The file of a tied head does not hold it.
    tied = getattr(POLICIES[name].model_class, "_tied_weights_keys", None) or {}
    lacking, further = sorted(known[name] - own - tied.keys()), sorted(own - known[name])
    if not lacking and not further:
        return f"its tensors are named as those of {name!r}, and what differs is the configuration"
    said = [f"lacks {_listed(lacking)}"] if lacking else []
    said += [f"has {_listed(further)} besides"] if further else []
    return f"the nearest is {name!r}, of whose tensors it {' and '.join(said)}"


def tensors_of(path: str) -> dict[str, tuple[int, ...] | None]:
    """Name -> shape of the tensors of a folder; of an id the names that its index lists. Empty where neither says."""
    if not Path(path).is_dir():
        index = hub_file(path, "model.safetensors.index.json")
        return {} if index is None else dict.fromkeys(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    files = [
        own for own in weight_files(None, path) if FULL_WEIGHTS.fullmatch(own.name) and own.suffix == ".safetensors"
    ]
    return {name: shape for file in files for name, shape in shapes(file).items()}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _pattern(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)


def _patterns(policy: Any) -> set[str]:
    """Names of a family's tensors, layers as ``*``."""
    kind = policy.model_class.config_class
    config = kind(**_small(kind))
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = policy.model_class(config)
    return {_pattern(name) for name in published(model)}


def _small(kind: Any) -> dict[str, Any]:
    """``SMALL`` under the names of a configuration's class; ``head_dim`` follows."""
    names = {**SMALL, **({"head_dim": 8} if "head_dim" in vars(kind()) else {})}
    return {kind.attribute_map.get(name, name): value for name, value in names.items()}

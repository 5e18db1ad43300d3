"""Model families. ``POLICIES`` is the one place to add a new one; names are the ``model_type`` of their config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoProcessor

from ..errors import import_named
from .base import DiffusionPolicy
from .decoder import (
    A2DLlamaPolicy,
    A2DQwen2Policy,
    A2DQwen3Policy,
    DreamConfig,
    DreamForMaskedDiffusion,
    DreamPolicy,
    MaskedDecoder,
    SDARConfig,
    SDARForMaskedDiffusion,
    SDARPolicy,
)
from .forward import MaskedDiffusionMixin, MaskedDiffusionOutput
from .gemma import DiffusionGemmaPolicy
from .llada import LLaDAConfig, LLaDAForMaskedDiffusion, LLaDAPolicy
from .llada2 import LLaDA2MoeConfig, LLaDA2MoeForMaskedDiffusion, LLaDA2MoePolicy
from .lumina import (
    LuminaConfig,
    LuminaForMaskedDiffusion,
    LuminaPolicy,
    LuminaProcessor,
    MMaDAParallelAConfig,
    MMaDAParallelAForMaskedDiffusion,
    MMaDAParallelAPolicy,
)
from .magvit import MagvitV2, MagvitV2Config
from .mmada import (
    MMaDAConfig,
    MMaDAForMaskedDiffusion,
    MMaDAParallelMConfig,
    MMaDAParallelMForMaskedDiffusion,
    MMaDAParallelMPolicy,
    MMaDAPolicy,
    MMaDAProcessor,
)


POLICIES: dict[str, type[DiffusionPolicy]] = {
    "mmada": MMaDAPolicy,
    "mmada_parallel_m": MMaDAParallelMPolicy,
    "llada": LLaDAPolicy,
    "lumina_dimoo": LuminaPolicy,
    "mmada_parallel_a": MMaDAParallelAPolicy,
    "Dream": DreamPolicy,
    "a2d-qwen2": A2DQwen2Policy,
    "a2d-qwen3": A2DQwen3Policy,
    "a2d-llama": A2DLlamaPolicy,
    "sdar": SDARPolicy,
    "llada2_moe": LLaDA2MoePolicy,
    "diffusion_gemma": DiffusionGemmaPolicy,
}
"""A family is one line here: its policy names the network, and the network its configuration."""

CONVERTED = {
    own: name for name, policy in POLICIES.items() for own in getattr(policy.model_class.config_class, "converts", ())
}
"""Types of autoregressive checkpoints, and the family that they are opened as."""

PUBLISHED_AS = {
    own: name
    for name, policy in reversed(POLICIES.items())
    for own in getattr(policy.model_class.config_class, "published_architectures", ())
}
"""Architectures of published files that say another family's ``model_type``, and the first family that they are of."""

_NETWORKS = (*(policy.model_class for policy in POLICIES.values()), MagvitV2)
_OURS = [model for model in _NETWORKS if model.config_class.__module__.startswith("unigrpo.")]
"""What transformers knows itself is opened by its AutoModel as ever."""

for _model in _OURS:
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModel.register(_model.config_class, _model, exist_ok=True)
for _policy in POLICIES.values():
    AutoModelForMaskedLM.register(_policy.model_class.config_class, _policy.model_class, exist_ok=True)
    if _policy.model_class in _OURS:
        AutoProcessor.register(_policy.model_class.config_class, _policy.processor_class, exist_ok=True)


def resolve_policy(name: str | type[DiffusionPolicy], folders: Sequence[str | Path] = ()) -> type[DiffusionPolicy]:
    """The policy class of a name in ``POLICIES`` or an import path ``pkg.mod:attr``; a class is returned as it is.

    ``folders`` are where the module of a path is looked for first.

    Raises:
        ValueError: the name is unknown, or the path does not import.
    """
    if not isinstance(name, str):
        return name
    if (known := CONVERTED.get(name, name)) in POLICIES:
        return POLICIES[known]
    if ":" not in name:
        raise ValueError(f"policy={name!r} is unknown: choose one of {sorted(POLICIES)} or give 'pkg.mod:attr'")
    try:
        found = import_named(name, folders)
    except (ImportError, ValueError) as error:
        raise ValueError(f"policy={name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and hasattr(found, "load_model")):
        raise ValueError(
            f"policy={name!r} is a {type(found).__name__}: it must be a class derived from DiffusionPolicy"
        )
    return found


def policy_class_of(model: Any, name: str | type[DiffusionPolicy] | None = None) -> type[DiffusionPolicy]:
    """``name`` if given, else the ``policy_class`` of the model's class, else the entry of its ``model_type``."""
    if name is not None:
        return resolve_policy(name)
    own = getattr(model, "policy_class", None)
    if own is not None:
        return own
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in {*POLICIES, *CONVERTED}:
        raise ValueError(
            f"no policy is known for {type(model).__name__} (model_type={model_type!r}): choose one of "
            f"{sorted(POLICIES)}, or set `policy` to 'pkg.mod:attr'"
        )
    return resolve_policy(model_type)


def load_model(
    path: str | Path, *, dtype: Any = "auto", policy: str | type[DiffusionPolicy] | None = None, **options: Any
) -> Any:
    """The network at a hub id or a folder, of any family, in eval mode; no tokenizer is read.

    ``model(input_ids=..., attention_mask=...)`` attends as the family does: both ways, or in blocks, never causally.

    Args:
        path: a whole model, or an adapter, whose base is then loaded too; ``builtin:NAME``.
        dtype: of the weights; ``"auto"`` = as they are stored.
        policy: a name in ``POLICIES`` or ``pkg.mod:attr``; None = by the configuration.
        options: of ``from_pretrained``, such as ``device_map``, and fields of the configuration, such as ``block_size``.

    Returns:
        a ``PreTrainedModel``, whose output has fp32 ``logits [B, L, V]``; a ``PeftModel`` for an adapter.

    Raises:
        CheckpointError: a checkpoint of no family, whose nearest one is named, or parameters that the files lack.
        ValueError: damaged files, or files that need code without ``trust_remote_code=True``.
        SourceError: there is nothing at ``path``, or no way to it.
    """
    from .opening import open_model

    return open_model(str(path), policy, dtype=dtype, **options).model.eval()


__all__ = [
    "CONVERTED",
    "POLICIES",
    "PUBLISHED_AS",
    "DiffusionPolicy",
    "DreamConfig",
    "DreamForMaskedDiffusion",
    "LLaDA2MoeConfig",
    "LLaDA2MoeForMaskedDiffusion",
    "LLaDAConfig",
    "LLaDAForMaskedDiffusion",
    "LLaDAPolicy",
    "LuminaConfig",
    "LuminaForMaskedDiffusion",
    "LuminaPolicy",
    "LuminaProcessor",
    "MMaDAConfig",
    "MMaDAForMaskedDiffusion",
    "MMaDAParallelMConfig",
    "MMaDAParallelMForMaskedDiffusion",
    "MMaDAParallelMPolicy",
    "MMaDAParallelAConfig",
    "MMaDAParallelAForMaskedDiffusion",
    "MMaDAParallelAPolicy",
    "MMaDAPolicy",
    "MMaDAProcessor",
    "MagvitV2",
    "MagvitV2Config",
    "MaskedDecoder",
    "MaskedDiffusionMixin",
    "MaskedDiffusionOutput",
    "SDARConfig",
    "SDARForMaskedDiffusion",
    "load_model",
    "policy_class_of",
    "resolve_policy",
]

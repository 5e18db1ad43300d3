"""Reinforcement-learning post-training for multimodal masked-diffusion language models.

UniGRPO here is MMaDA's (arXiv 2505.15809), not the algorithm of the same name in arXiv 2603.23500.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .auto_classes import register_families


if TYPE_CHECKING:
    from .config.arguments import UniGRPOConfig
    from .config.denoising_arguments import MaskedDenoisingConfig
    from .rollout.generate import load_policy
    from .sft import MaskedDenoisingTrainer
    from .trainer import UniGRPOTrainer
    from .training.collator import MaskedDenoisingCollator


__version__ = "0.1.0"

_EXPORTS = {
    "MaskedDenoisingCollator": "unigrpo.training.collator",
    "MaskedDenoisingConfig": "unigrpo.config.denoising_arguments",
    "MaskedDenoisingTrainer": "unigrpo.sft",
    "UniGRPOConfig": "unigrpo.config.arguments",
    "UniGRPOTrainer": "unigrpo.trainer",
    "load_policy": "unigrpo.rollout.generate",
}

__all__ = [
    "MaskedDenoisingCollator",
    "MaskedDenoisingConfig",
    "MaskedDenoisingTrainer",
    "UniGRPOConfig",
    "UniGRPOTrainer",
    "__version__",
    "load_policy",
]


def __getattr__(name: str) -> Any:
    """Names are loaded on first use, so that ``import unigrpo`` stays instant."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'unigrpo' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    """With the names that are not loaded yet, so that a prompt can complete them."""
    return sorted({*globals(), *__all__})


register_families()

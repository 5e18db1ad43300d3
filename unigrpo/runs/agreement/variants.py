"""The ways of decoding that are compared with the exact one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...config.task import TaskSettings
from ...models.base import DiffusionPolicy
from ...samplers import SemiAutoregressive
from ...samplers.semi_autoregressive import EXACT_DECODING


THRESHOLDS = (0.95, 0.9)
ENTROPIES = (0.1,)
"""Confidence thresholds, and exit entropies in nats, that are measured unless others are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A sampler and what to call it; ``of_recipe`` marks the recipe's own choice."""

    sampler: SemiAutoregressive
    of_recipe: bool = False

    @property
    def name(self) -> str:
        """Its shortcuts, such as ``dual + threshold 0.9``; ``exact`` without any."""
        parts = [] if self.sampler.kv_cache == "none" else [self.sampler.kv_cache]
        if self.sampler.confidence_threshold is not None:
            parts.append(f"threshold {self.sampler.confidence_threshold:g}")
        if self.sampler.exit_entropy is not None:
            parts.append(f"exit entropy {self.sampler.exit_entropy:g}")
        return " + ".join(parts) or "exact"


def variants_of(
    settings: TaskSettings,
    *,
    temperature: float = 0.0,
    thresholds: Sequence[float] = THRESHOLDS,
    entropies: Sequence[float] = ENTROPIES,
) -> list[Variant]:
    """Exact decoding with a task's settings, then each shortcut alone, dual caches with the lowest threshold, and the
    recipe's own choice where that is something else.

    Raises:
        ValueError: a task that another sampler answers, or a threshold or entropy out of its range.
    """
    if settings.choice("sampler").part is not SemiAutoregressive:
        raise ValueError(
            f"sampler={settings.sampler!r} has no approximate decoding to measure; set sampler=semi_autoregressive"
        )
    own = replace(settings.choice("sampler").build(settings.shared()), temperature=temperature)
    # Random remasking does not look at confidence: thresholds mean nothing there, and the sampler refuses them.
    limits = thresholds if own.remasking == "low_confidence" else ()
    chosen: list[dict[str, Any]] = [{}, {"kv_cache": "prefix"}, {"kv_cache": "dual"}]
    chosen += [{"confidence_threshold": limit} for limit in limits]
    chosen += [{"exit_entropy": entropy} for entropy in entropies]
    if limits:
        chosen.append({"kv_cache": "dual", "confidence_threshold": min(limits)})
    samplers = [replace(own, **{**EXACT_DECODING, **shortcuts}) for shortcuts in chosen]
    return [Variant(sampler=sampler, of_recipe=sampler == own) for sampler in dict.fromkeys([*samplers, own])]


def usable(variants: list[Variant], policy: DiffusionPolicy) -> tuple[list[Variant], list[str]]:
    """The variants that ``policy`` can run, and a note where caches are left out."""
    if policy.supports_cache:
        return variants, []
    kept = [variant for variant in variants if variant.sampler.kv_cache == "none"]
    return kept, [f"{type(policy).__name__} keeps no keys and values (supports_cache=False): caches are left out"]

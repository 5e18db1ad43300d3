"""Whether the policy is still the old one, the one that sampled the window. Everyone else asks here.

It is until the window's first optimizer step. Until then old = new: nothing needs an old pass, every ratio is 1, and a k2 or
k3 to the old policy is 0 with gradient 0. Afterwards the old log-probabilities are those of an old pass, made before.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..config.arguments import UniGRPOConfig
from ..config.build import Algorithm
from ..config.task import TaskSettings
from ..models.draw import TokenScores
from ..types import Experience
from .batches import Batch


def has_moved(args: UniGRPOConfig, k: int, step: int) -> bool:
    """Whether an optimizer step comes before micro-step ``step`` of inner update ``k``, in the same window."""
    return k * args.steps_per_generation + step >= args.gradient_accumulation_steps


def will_move(args: UniGRPOConfig) -> bool:
    """Whether a window has a micro-step that finds the policy moved."""
    return has_moved(args, args.num_iterations - 1, args.steps_per_generation - 1)


def needs_old_pass(args: UniGRPOConfig, algorithm: Algorithm, k: int, step: int) -> bool:
    """Whether a micro-step reads old log-probabilities that are no longer the policy's own."""
    return algorithm.needs_old and has_moved(args, k, step)


def kl_acts(args: UniGRPOConfig, settings: TaskSettings) -> bool:
    """Whether the KL has a gradient somewhere in a window."""
    if settings.beta == 0:
        return False
    return settings.needs_reference or will_move(args) or settings.kl_estimator == "k1"


def moves_policy(experience: Experience, kl_acts: bool) -> bool:
    """False for an answer without a reward, and for an advantage of 0 where its task has no KL term that acts."""
    return experience.active and (experience.advantage != 0 or kl_acts)


def forget_old(experience: Experience, kept: bool) -> None:
    """No old pass has been made yet; ``kept``: there will be a place for what it says."""
    experience.old_logps = torch.zeros_like(experience.weight) if kept else None
    experience.old_known = torch.zeros(experience.weight.shape[0], dtype=torch.bool)


def without_moved_sampler(batch: Batch, args: UniGRPOConfig, k: int, step: int) -> Batch:
    """The batch without the sampler's log-probabilities where nobody knows the old policy's to compare them with."""
    unknown = batch.old_logps is None and has_moved(args, k, step)
    return replace(batch, sampling_logps=None) if unknown else batch


def compared(batch: Batch, scores: TokenScores, settings: TaskSettings) -> Batch:
    """The batch with what the new ``scores`` are compared with: without an old pass, with themselves."""
    old = scores.logps.detach() if batch.old_logps is None else batch.old_logps
    return replace(batch, old_logps=old, ref_logps=old if settings.kl_reference == "old" else batch.ref_logps)

"""Rollouts and rows by hand."""

from __future__ import annotations

import torch

from unigrpo.algorithm.loss import LossBatch, LossTerms, PolicyLoss
from unigrpo.models.draw import TokenScores
from unigrpo.types import Canvas, Experience, Rollout, TokenSpace


def rollout(completions: list[int], prompt: int = 3, length: int = 40) -> Rollout:
    """Rows with ``prompt`` visible tokens, then 30 written ones of which the first ``completions[b]`` count."""
    batch = len(completions)
    ids = torch.arange(length).repeat(batch, 1)
    counts = torch.zeros(batch, length, dtype=torch.bool)
    fill = torch.zeros(batch, length, dtype=torch.bool)
    fill[:, prompt : prompt + 30] = True
    for row, count in enumerate(completions):
        counts[row, prompt : prompt + count] = True
    canvas = Canvas(
        ids=ids,
        fill_mask=fill,
        attention_mask=torch.ones_like(fill),
        task="text",
        token_space=TokenSpace(start=0, stop=100),
    )
    zeros = torch.zeros(batch, length)
    return Rollout(
        canvas=canvas, completion_mask=counts, step_map=zeros.long(), sampling_logps=zeros, completions=[""] * batch
    )


SPACE = TokenSpace(start=0, stop=1000)


def row(
    length=6, *, advantage=1.0, active=True, task="text", draws=1, iterations=2, index=0, missing=()
) -> Experience:
    """A row whose last three tokens are the answer; draw s of update k hides the answer's token (k + s) mod 3."""
    answer = torch.zeros(length, dtype=torch.bool)
    answer[-3:] = True
    hidden = torch.zeros(iterations, draws, length, dtype=torch.bool)
    for k in range(iterations):
        for s in range(draws):
            hidden[k, s, length - 3 + (k + s) % 3] = s not in missing
    return Experience(
        ids=torch.arange(length) + 100 * index,
        attention_mask=torch.ones(length, dtype=torch.bool),
        fill_mask=answer,
        completion_mask=answer.clone(),
        hidden=hidden,
        target=hidden.clone(),
        weight=hidden.float(),
        sampling_logps=torch.zeros(length),
        step_map=torch.zeros(length, dtype=torch.int64),
        advantage=advantage,
        active=active,
        task=task,
        token_space=SPACE,
        index=index,
    )


def terms_of(
    loss: PolicyLoss,
    logps: torch.Tensor,
    old_logps: torch.Tensor,
    ref_logps: torch.Tensor | None,
    advantages: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    completion_length: torch.Tensor,
    exact_kl: torch.Tensor | None = None,
    **counts,
) -> LossTerms:
    """The loss's terms of new, old and reference log-probabilities ``[m, L]``; ``counts`` as in ``LossBatch``."""
    batch = LossBatch(
        advantages=advantages,
        target=target,
        weight=weight,
        completion_length=completion_length,
        old_logps=old_logps,
        ref_logps=ref_logps,
        **counts,
    )
    return loss(batch, TokenScores(logps, kl=exact_kl))

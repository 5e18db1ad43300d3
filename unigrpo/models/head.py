"""The vocabulary head: log-probabilities of chosen tokens over a slice of the vocabulary, without the full logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..types import TokenSpace


ROWS_PER_CHUNK = 256
"""Rows scored at once: 256 x 134,656 fp32 logits are 138 MB; fewer rows are slower on CPU, more only cost memory."""

VOCAB_PER_CHUNK = 16_384
"""Vocabulary rows upcast at once when the head is not fp32; the weight is never upcast whole."""


def _matmul_t(hidden: Tensor, weight: Tensor) -> Tensor:
    """``hidden @ weight.T`` in fp32, ``[n, d] x [W, d] -> [n, W]``."""
    if weight.dtype == torch.float32:
        return hidden @ weight.T
    return torch.cat([hidden @ part.float().T for part in weight.split(VOCAB_PER_CHUNK)], dim=1)


def _matmul(probs: Tensor, weight: Tensor) -> Tensor:
    """``probs @ weight`` in fp32, ``[n, W] x [W, d] -> [n, d]``."""
    if weight.dtype == torch.float32:
        return probs @ weight
    parts = zip(probs.split(VOCAB_PER_CHUNK, dim=1), weight.split(VOCAB_PER_CHUNK), strict=True)
    return sum(p @ w.float() for p, w in parts)


def space_logits(hidden: Tensor, weight: Tensor, space: TokenSpace, temperature: float = 1.0) -> Tensor:
    """fp32 logits ``[n, W]`` of ``space`` divided by ``temperature``; excluded ids hold the smallest fp32 number."""
    logits = _matmul_t(hidden.float(), weight[space.start : space.stop])
    if temperature != 1.0:
        logits = logits / temperature
    for token in space.exclude:
        logits[:, token - space.start] = torch.finfo(torch.float32).min
    return logits


def gather_logps(logits: Tensor, targets: Tensor, space: TokenSpace) -> tuple[Tensor, Tensor]:
    """Log-probability ``[n]`` of ``targets`` (vocabulary ids) and entropy ``[n]`` (nats) under logits ``[n, W]``."""
    lse = logits.logsumexp(dim=-1)
    logps = logits.gather(1, (targets - space.start)[:, None]).squeeze(1) - lse
    with torch.no_grad():
        entropy = lse - ((logits - lse[:, None]).exp() * logits).sum(dim=-1)
    return logps, entropy


class _SelectedLogProbs(torch.autograd.Function):
    """log p(target) over a vocabulary slice, row chunk by row chunk.

    With a frozen head, d logp / d hidden does not depend on the loss, so it is made in the forward and saved: it serves
    token-level and sequence-level ratios alike. With a trainable head the backward recomputes the chunk's logits.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, space, temperature):
        frozen = not ctx.needs_input_grad[1]
        keep = ctx.needs_input_grad[0] and frozen
        logps, entropies, jacobian = [], [], []
        for rows, ids in zip(hidden.split(ROWS_PER_CHUNK), targets.split(ROWS_PER_CHUNK), strict=True):
            logits = space_logits(rows, weight, space, temperature)
            logp, entropy = gather_logps(logits, ids, space)
            logps.append(logp)
            entropies.append(entropy)
            if keep:
                jacobian.append(_logp_jacobian(logits, ids, weight, space, temperature).to(hidden.dtype))
        ctx.space, ctx.temperature, ctx.frozen = space, temperature, frozen
        if frozen:
            ctx.save_for_backward(torch.cat(jacobian) if jacobian else hidden.new_empty(0))
        else:
            ctx.save_for_backward(hidden, weight, targets)
        entropy = torch.cat(entropies) if entropies else hidden.new_empty(0, dtype=torch.float32)
        ctx.mark_non_differentiable(entropy)
        return (torch.cat(logps) if logps else hidden.new_empty(0, dtype=torch.float32)), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.frozen:
                (jacobian,) = ctx.saved_tensors
                return (grad[:, None] * jacobian.float()).to(jacobian.dtype), None, None, None, None
            return _recompute_gradients(ctx, grad)


def _residual(logits: Tensor, targets: Tensor, space: TokenSpace) -> Tensor:
    """onehot(target) - p, in place of ``logits``."""
    residual = logits.softmax(dim=-1).neg_()
    residual[torch.arange(len(targets), device=targets.device), targets - space.start] += 1.0
    return residual


def _logp_jacobian(logits, targets, weight, space, temperature) -> Tensor:
    """d logp / d hidden ``[n, d]`` = (onehot - p) W / temperature."""
    return _matmul(_residual(logits, targets, space), weight[space.start : space.stop]) / temperature


def _recompute_gradients(ctx, grad: Tensor):
    hidden, weight, targets = ctx.saved_tensors
    space = ctx.space
    grad_hidden = torch.empty_like(hidden)
    grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
    for start in range(0, len(hidden), ROWS_PER_CHUNK):
        part = slice(start, start + ROWS_PER_CHUNK)
        logits = space_logits(hidden[part], weight, space, ctx.temperature)
        residual = _residual(logits, targets[part], space).mul_(grad[part, None] / ctx.temperature)
        grad_hidden[part] = _matmul(residual, weight[space.start : space.stop]).to(hidden.dtype)
        grad_weight[space.start : space.stop] += residual.T @ hidden[part].float()
    return grad_hidden, grad_weight.to(weight.dtype), None, None, None


class VocabularyHead(nn.Linear):
    """An untied LM head that also scores tokens. It is the only reader of its weight."""

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        token_space: TokenSpace | None = None,
        temperature: float = 1.0,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """fp32 logits, or log-probabilities and entropies of ``targets``.

        Args:
            hidden: ``[..., d]``; ``[n, d]`` when targets are given.
            targets: ``[n]`` int64 vocabulary ids inside ``token_space``.
            token_space: the slice that probabilities are normalised over; None = the whole vocabulary.
            temperature: divides the logits, > 0.

        Returns:
            logits ``[..., W]`` without targets, else ``(logps [n], entropy [n])`` in nats, fp32. Entropy has no gradient.
        """
        space = token_space or TokenSpace(start=0, stop=self.out_features)
        with torch.autocast(hidden.device.type, enabled=False):
            if targets is None:
                flat = space_logits(hidden.reshape(-1, hidden.shape[-1]), self.weight, space, temperature)
                return flat.view(*hidden.shape[:-1], space.width)
            return _SelectedLogProbs.apply(hidden, self.weight, targets, space, temperature)

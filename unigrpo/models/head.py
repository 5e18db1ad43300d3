"""The vocabulary head: log-probabilities of chosen tokens over a slice of the vocabulary, without the full logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..types import TokenSpace
from .draw import Draw, TokenScores, choose_tokens, floored, join
from .placing import on_host, product


ROWS_PER_CHUNK = 128
"""Rows scored at once: 128 x 134,656 fp32 logits are 69 MB; fewer rows are slower on CPU, more only cost memory."""

ROWS_PER_GPU_CHUNK = 512
"""The same on a GPU, which wants larger products: 276 MB."""

VOCAB_PER_CHUNK = 16_384
"""Vocabulary rows upcast at once on a CPU when the head is not fp32; the weight is never upcast whole."""

LEAST_TEMPERATURE = 1e-20
"""Logits divided by less come near the smallest fp32 number, which closes a token."""


def rows_per_chunk(rows: Tensor) -> int:
    """How many of ``rows`` are scored at once on their device."""
    return ROWS_PER_CHUNK if on_host(rows) else ROWS_PER_GPU_CHUNK


def _matmul_t(hidden: Tensor, weight: Tensor) -> Tensor:
    """``hidden @ weight.T`` in fp32, ``[n, d] x [W, d] -> [n, W]``."""
    if weight.dtype == torch.float32:
        return hidden.float() @ weight.T
    if hidden.dtype == weight.dtype and not on_host(weight):
        return product(hidden, weight.T)
    # Guided hidden states are fp32, and more than half precision can hold.
    hidden = hidden.float()
    return torch.cat([hidden @ part.float().T for part in weight.split(VOCAB_PER_CHUNK)], dim=1)


def _matmul(probs: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``probs @ weight`` in fp32, ``[n, W] x [W, d] -> [n, d]``, of which digits of ``dtype`` are wanted."""
    if weight.dtype == torch.float32:
        return probs @ weight
    if dtype == weight.dtype and not on_host(weight):
        return product(probs.to(dtype), weight)
    parts = zip(probs.split(VOCAB_PER_CHUNK, dim=1), weight.split(VOCAB_PER_CHUNK), strict=True)
    return sum(p @ w.float() for p, w in parts)


def space_logits(hidden: Tensor, weight: Tensor, space: TokenSpace, temperature: float = 1.0) -> Tensor:
    """fp32 logits ``[n, W]`` of ``space`` divided by ``temperature``; excluded ids hold the smallest fp32 number."""
    logits = _matmul_t(hidden, weight[space.start : space.stop])
    if temperature != 1.0:
        logits.div_(temperature)
    for token in space.exclude:
        logits[:, token - space.start] = torch.finfo(torch.float32).min
    return logits


def normalised(logits: Tensor) -> Tensor:
    """Log-probabilities ``[n, W]``. Policy and reference share this expression, so that equal logits have KL 0 exactly."""
    return by_chunks(lambda rows: rows - rows.logsumexp(dim=-1, keepdim=True), logits)


def by_chunks(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """``function`` of a chunk of rows at a time: kernels round by the number of rows they are given."""
    parts = [function(part) for part in rows.split(rows_per_chunk(rows))]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def gather_logps(
    logits: Tensor, targets: Tensor, space: TokenSpace, ref_logprobs: Tensor | None = None
) -> TokenScores:
    """Scores of ``targets`` (vocabulary ids ``[n]``) under ``logits [n, W]``, against ``ref_logprobs [n, W]``.

    Half-precision logits are scored in fp32. A column of -inf adds nothing to the entropy and the KL; as a target it has
    log-probability -inf.
    """
    logits = logits.float()
    lse = logits.logsumexp(dim=-1)
    logps = logits.gather(1, (targets - space.start)[:, None]).squeeze(1) - lse
    with torch.no_grad():
        entropy = lse - ((logits - lse[:, None]).exp() * floored(logits)).sum(dim=-1)
    return TokenScores(logps, entropy, None if ref_logprobs is None else exact_kl(logits, ref_logprobs))


def exact_kl(logits: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL(softmax(logits) || reference) ``[n]`` over the columns, nats.

    Columns of -inf on both sides add 0. One that is closed in the reference alone counts with the smallest fp32 number as its
    log-probability, so that the KL is huge.
    """
    return _kl(floored(normalised(logits.float())), floored(ref_logprobs.float()))


def _kl(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``exact_kl`` of log-probabilities that are finite, as those of the head are."""
    return (logprobs.exp() * (logprobs - ref_logprobs)).sum(dim=-1)


def _scores_and_probs(
    logits: Tensor, targets: Tensor, space: TokenSpace, ref_logprobs: Tensor | None
) -> tuple[TokenScores, Tensor]:
    """``gather_logps`` in fewer passes over the logits, and the probabilities ``[n, W]``; no gradient."""
    top, probs = logits.amax(dim=-1), logits.softmax(dim=-1)
    lse = top - probs.amax(dim=-1).log()
    logps = logits.gather(1, (targets - space.start)[:, None]).squeeze(1) - lse
    entropy = lse - torch.linalg.vecdot(probs, logits)
    kl = torch.zeros_like(logps) if ref_logprobs is None else _kl(normalised(logits), ref_logprobs)
    return TokenScores(logps, entropy, kl), probs


class _SelectedLogProbs(torch.autograd.Function):
    """log p(target), entropy and exact KL over a vocabulary slice, row chunk by row chunk.

    With a frozen head, d logp / d hidden and d KL / d hidden do not depend on the loss, so they are made in the forward
    and saved: they serve token-level and sequence-level ratios alike. With a trainable head the backward recomputes the
    chunk's logits. The KL is a column of zeros where there is no reference.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, ref_logprobs, space, temperature):
        """``logps``, ``entropy`` and ``kl`` ``[n]``; arguments as ``VocabularyHead.forward``'s, ``weight [V, d]``."""
        frozen = not ctx.needs_input_grad[1]
        keep = ctx.needs_input_grad[0] and frozen
        parts, saved = [], []
        for chunk in _chunks(hidden, targets, ref_logprobs):
            scores, slopes = _scored(*chunk, weight, space, temperature, keep)
            parts.append(scores)
            saved.append(slopes)
        ctx.space, ctx.temperature, ctx.frozen = space, temperature, frozen
        if frozen:
            saved = saved if keep and saved else [[hidden.new_empty(0, hidden.shape[1])]]
            ctx.save_for_backward(*(torch.cat(columns) for columns in zip(*saved, strict=True)))
        else:
            ctx.save_for_backward(hidden, weight, targets, ref_logprobs)
        columns = torch.cat(parts, dim=1) if parts else hidden.new_zeros(3, 0, dtype=torch.float32)
        # Not views of one tensor: FSDP2 hangs its hooks on what a unit returns, and warns of views.
        logps, entropy, kl = (column.clone() for column in columns)
        ctx.mark_non_differentiable(entropy)
        return logps, entropy, kl

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _, grad_kl):
        """Gradients of ``hidden`` and, of a trainable head, of ``weight``."""
        with torch.autocast(grad.device.type, enabled=False):
            if not ctx.frozen:
                return (*_recompute_gradients(ctx, grad, grad_kl), None, None, None, None)
            jacobians = ctx.saved_tensors
            total = sum(g[:, None] * j.float() for g, j in zip((grad, grad_kl), jacobians, strict=False))
            return total.to(jacobians[0].dtype), None, None, None, None, None


def _scored(rows, targets, ref_logprobs, weight, space, temperature, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """One chunk's scores ``[3, n]`` and, to ``keep``, their slopes in its hidden states, each ``[n, d]``.

    A function of its own, so that a chunk's logits are gone when the next one's are made.
    """
    logits = space_logits(rows, weight, space, temperature)
    scores, probs = _scores_and_probs(logits, targets, space, ref_logprobs)
    if not keep:
        return torch.stack(scores[:3]), []
    slopes = _slopes(logits, probs, targets, ref_logprobs, scores.kl, space)
    del logits
    return torch.stack(scores[:3]), [_through_head(slope, weight, space, temperature, rows.dtype) for slope in slopes]


def _chunks(hidden: Tensor, targets: Tensor, ref_logprobs: Tensor | None):
    size = rows_per_chunk(hidden)
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        yield hidden[part], targets[part], None if ref_logprobs is None else ref_logprobs[part]


def _slopes(logits, probs, targets, ref_logprobs, kl, space) -> list[Tensor]:
    """d logp / d logits = onehot - p and, with a reference, d KL / d logits = p (log p - log q - KL), each ``[n, W]``.

    ``probs`` is overwritten.
    """
    residual = probs.neg_()
    slopes = [residual]
    if ref_logprobs is not None:
        slopes.append(-residual * (normalised(logits) - ref_logprobs - kl[:, None]))
    residual[torch.arange(len(targets), device=targets.device), targets - space.start] += 1.0
    return slopes


def _through_head(slope: Tensor, weight: Tensor, space: TokenSpace, temperature: float, dtype: torch.dtype) -> Tensor:
    """``[n, W]`` slopes of logits as slopes of hidden states ``[n, d]`` in ``dtype``."""
    return (_matmul(slope, weight[space.start : space.stop], dtype) / temperature).to(dtype)


def _slope_of_loss(rows, targets, ref_logprobs, weight, space, temperature, grad, grad_kl) -> Tensor:
    """d loss / d (hidden @ weight.T) ``[n, W]`` of one chunk."""
    logits = space_logits(rows, weight, space, temperature)
    scores, probs = _scores_and_probs(logits, targets, space, ref_logprobs)
    slopes = _slopes(logits, probs, targets, ref_logprobs, scores.kl, space)
    slope = slopes[0].mul_(grad[:, None] / temperature)
    if ref_logprobs is not None:
        slope.addcmul_(slopes[1], grad_kl[:, None] / temperature)
    return slope


def _recompute_gradients(ctx, grad: Tensor, grad_kl: Tensor) -> tuple[Tensor, Tensor]:
    hidden, weight, targets, ref_logprobs = ctx.saved_tensors
    space = ctx.space
    grad_hidden = torch.empty_like(hidden)
    grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
    start = 0
    for rows, ids, ref in _chunks(hidden, targets, ref_logprobs):
        part = slice(start, start + len(rows))
        slope = _slope_of_loss(rows, ids, ref, weight, space, ctx.temperature, grad[part], grad_kl[part])
        grad_hidden[part] = _matmul(slope, weight[space.start : space.stop], hidden.dtype).to(hidden.dtype)
        grad_weight[space.start : space.stop].addmm_(slope.T, rows.float())
        start += len(rows)
        del slope
    return grad_hidden, grad_weight.to(weight.dtype)


class _WeightedSum(torch.autograd.Function):
    """sum_n coefficient_n log p_n over a vocabulary slice, row chunk by row chunk; log p and entropy without gradient.

    The sum's slopes are known while a chunk's logits are there. So both gradients are made in the forward: a trainable head
    costs three products a token, where one that must wait for the loss recomputes the logits and costs four.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, coefficients, space, temperature):
        """The sum ``[]``, ``logps`` and ``entropy`` ``[n]``; arguments as ``VocabularyHead.forward``'s, ``weight [V, d]``."""
        wanted, trainable = ctx.needs_input_grad[:2]
        like = {"dtype": torch.float32, "device": weight.device}
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.grad_hidden = torch.empty(hidden.shape, **like) if wanted or trainable else None
        ctx.grad_weight = torch.zeros(weight.shape, **like) if trainable else None
        logps, entropy, start = torch.empty(len(targets), **like), torch.empty(len(targets), **like), 0
        for rows, ids, _ in _chunks(hidden, targets, None):
            part, columns = slice(start, start + len(rows)), (ids - space.start)[:, None]
            logits = space_logits(rows, weight, space, temperature)
            logps[part], entropy[part], powers, total = _scored_in_place(logits, columns)
            if ctx.grad_hidden is not None:
                # coefficient (onehot - p), where the powers were.
                each = (coefficients[part] / temperature)[:, None]
                slope = powers.mul_(-each / total).scatter_add_(1, columns, each)
                ctx.grad_hidden[part] = _matmul(slope, weight[space.start : space.stop], hidden.dtype)
                if trainable:
                    ctx.grad_weight[space.start : space.stop].addmm_(slope.T, rows.float())
            start += len(rows)
            # The next chunk's logits are made when these are gone.
            logits = powers = slope = None
        ctx.mark_non_differentiable(logps, entropy)
        return torch.where(coefficients != 0, coefficients * logps, 0.0).sum(), logps, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        """Gradients of ``hidden`` and, of a trainable head, of ``weight``, times what the sum is multiplied with."""
        found = (ctx.grad_hidden, ctx.grad_weight)
        ctx.grad_hidden = ctx.grad_weight = None
        parts = (
            None if own is None else own.mul_(grad).to(dtype) for own, dtype in zip(found, ctx.dtypes, strict=True)
        )
        return *parts, None, None, None, None


def _scored_in_place(logits: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p of ``columns`` ``[n, 1]`` and entropy, each ``[n]``, from ``logits [n, W]``, whose memory powers of e take.

    Returns:
        log p, entropy, the powers ``[n, W]`` and their sums ``[n, 1]``: p is a power over its row's sum.
    """
    top, chosen = logits.amax(dim=-1, keepdim=True), logits.gather(1, columns)
    powers = logits.sub_(top).exp_()
    total = powers.sum(dim=-1, keepdim=True)
    parts = [torch.special.entr(own).sum(dim=-1, keepdim=True) for own in powers.split(VOCAB_PER_CHUNK, dim=1)]
    entropy = total.log() + torch.stack(parts).sum(dim=0) / total
    return (chosen - top - total.log()).squeeze(1), entropy.squeeze(1), powers, total


def check_temperature(temperature: float) -> None:
    """Raises ``ValueError`` for a temperature that logits cannot be divided by."""
    if not temperature >= LEAST_TEMPERATURE:
        raise ValueError(f"temperature={temperature} must be at least {LEAST_TEMPERATURE}; 0 is for samplers, argmax")


class VocabularyHead(nn.Linear):
    """An LM head that also scores tokens. It is the only reader of its weight, unless that is tied to the embedding."""

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        token_space: TokenSpace | None = None,
        temperature: float = 1.0,
        ref_logprobs: Tensor | None = None,
        draw: Draw | None = None,
        coefficients: Tensor | None = None,
    ) -> Tensor | TokenScores:
        """fp32 logits, the scores of ``targets``, or tokens chosen as ``draw`` says.

        Args:
            hidden: ``[..., d]``; ``[n, d]`` when targets or a draw are given.
            targets: ``[n]`` int64 vocabulary ids inside ``token_space``.
            token_space: the slice that probabilities are normalised over; None = the whole vocabulary.
            temperature: divides the logits, ``LEAST_TEMPERATURE`` at least.
            ref_logprobs: ``[n, W]`` fp32 log-probabilities of a reference over the token space, for the exact KL.
            draw: how to choose a token for each row.
            coefficients: ``[n]`` fp32 of the targets' log-probabilities in a loss that is linear in them and is known to be;
                without a reference.

        Returns:
            logits ``[..., W]`` without targets and draw, else ``TokenScores``, which never hold more
            than a chunk of logits.

        Raises:
            ValueError: a temperature that is too small, or NaN.
        """
        check_temperature(temperature)
        space = token_space or TokenSpace(start=0, stop=self.out_features)
        with torch.autocast(hidden.device.type, enabled=False):
            if draw is not None:
                return self._draw(hidden, space, temperature, draw)
            if targets is None:
                rows = hidden.reshape(-1, hidden.shape[-1])
                flat = by_chunks(lambda part: space_logits(part, self.weight, space, temperature), rows)
                return flat.view(*hidden.shape[:-1], space.width)
            if coefficients is not None:
                found = (hidden, self.weight, targets, coefficients, space, temperature)
                total, logps, entropy = _WeightedSum.apply(*found)
                return TokenScores(logps, entropy, total=total)
            logps, entropy, kl = _SelectedLogProbs.apply(
                hidden, self.weight, targets, ref_logprobs, space, temperature
            )
            return TokenScores(logps, entropy, None if ref_logprobs is None else kl)

    @torch.no_grad()
    def _draw(self, hidden: Tensor, space: TokenSpace, temperature: float, draw: Draw) -> TokenScores:
        parts, size = [], rows_per_chunk(hidden)
        for start in range(0, max(len(hidden), 1), size):
            part = slice(start, start + size)
            logits = space_logits(hidden[part], self.weight, space, temperature)
            parts.append(choose_tokens(logits, draw.part(part)))
        drawn = join(parts)
        return drawn._replace(tokens=drawn.tokens + space.start)

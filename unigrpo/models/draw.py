"""Tokens chosen from logits: the likeliest, or an exact draw with one uniform number a row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .placing import on_host


BLOCK = 512
"""Columns whose masses are summed first; the sums are accumulated in fp64."""

ROWS_IN_CACHE = 8
"""Rows whose probabilities stay in a CPU's cache between the passes over them; a GPU takes all rows at once."""


ROWS_SORTED = 64
"""Rows whose probabilities a GPU sorts at once to truncate them: 64 x 134,656 fp64 sums are 69 MB."""


class Truncation(NamedTuple):
    """Which tokens may be drawn at all: one after the other, as transformers' ``generate`` takes them.

    Attributes:
        top_k: the k likeliest; 0 = all.
        top_p: of these, the fewest likeliest whose share of the mass is at least p (nucleus sampling, arXiv 1904.09751); 1 = all.
        min_p: of these, those at least p times as likely as the likeliest (arXiv 2407.01082); 0 = all.
    """

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


class Draw:
    """How a forward chooses tokens for the selected rows.

    Not a tensor and not a dataclass: engines with mixed precision look into those, and cast what a forward is given. In
    bf16 most tokens of a vocabulary could never be drawn.

    Args:
        uniforms: ``[n]`` fp64 in [0, 1), one a row; None = the likeliest token.
        entropy: whether the entropy of each row is wanted as well.
        margin: whether the lead of its likeliest token over the second is.
        truncation: what may be drawn; None = every token. The likeliest token is always among it.

    Raises:
        ValueError: uniforms of another dtype.
    """

    def __init__(
        self,
        *,
        uniforms: Tensor | None = None,
        entropy: bool = False,
        truncation: Truncation | None = None,
        margin: bool = False,
    ) -> None:
        if uniforms is not None and uniforms.dtype != torch.float64:
            raise ValueError(f"uniforms are {uniforms.dtype}; a vocabulary needs torch.float64")
        self.uniforms, self.entropy, self.truncation, self.margin = uniforms, entropy, truncation, margin

    def part(self, rows: slice) -> Draw:
        """The same for some of the rows."""
        uniforms = None if self.uniforms is None else self.uniforms[rows]
        return Draw(uniforms=uniforms, entropy=self.entropy, truncation=self.truncation, margin=self.margin)


class TokenScores(NamedTuple):
    """What a model says of tokens that were given to it, or drawn from it; fp32, in nats, all of one shape.

    A head or a forward answers for n tokens, ``[n]``; a likelihood places the answer on its canvas, ``[b, L]``.

    Attributes:
        logps: log-probability of each token.
        entropy: of its token space, without gradient.
        kl: exact KL(policy || reference) over the token space; None without a reference.
        tokens: int64, those that were drawn; None where they were given.
        doubt: the probability of all other tokens together, of drawn ones: it ranks tokens whose own probability rounds to 1.
        total: sum of the log-probabilities times the coefficients that were given, ``[]``; it alone has a gradient then.
        kept: log of the mass that a truncation left, of drawn ones: ``logps - kept`` is the law they were drawn from. None
            where nothing was cut off.
        margin: probability of the likeliest token minus that of the second, of drawn ones; None where it was not asked for.
    """

    logps: Tensor
    entropy: Tensor | None = None
    kl: Tensor | None = None
    tokens: Tensor | None = None
    doubt: Tensor | None = None
    total: Tensor | None = None
    kept: Tensor | None = None
    margin: Tensor | None = None


def choose_tokens(logits: Tensor, draw: Draw) -> TokenScores:
    """One column for each row of ``logits [n, W]``, by argmax or from softmax(logits); half precision is drawn from in fp32.

    A column of -inf is never drawn. A row with NaN or +inf, or of -inf alone, has no distribution: the log-probability and
    the entropy that come with its column are NaN, and samplers refuse it.
    """
    size = ROWS_IN_CACHE if on_host(logits) else max(len(logits), 1) if draw.truncation is None else ROWS_SORTED
    parts = []
    for start in range(0, max(len(logits), 1), size):
        part = slice(start, start + size)
        own = draw.part(part)
        parts.append(_choose(logits[part], own))
    return join(parts)


def _choose(logits: Tensor, draw: Draw) -> TokenScores:
    logits, kept = logits.float(), None
    probs = logits.softmax(dim=1)
    if draw.uniforms is None:
        columns = logits.argmax(dim=1)
    elif draw.truncation is None:
        columns = draw_columns(probs, draw.uniforms)
    else:
        masses = truncated(probs, draw.truncation)
        columns, kept = draw_columns(masses, draw.uniforms), masses.sum(dim=1).log()
    picked = columns[:, None]
    # The log of the probability itself: what was chosen has mass.
    logps = probs.gather(1, picked).squeeze(1).log()
    entropy = None
    if draw.entropy:
        # The chosen column is a good reference point: log-sum-exp = its logit - its log-probability.
        lse = logits.gather(1, picked).squeeze(1) - logps
        entropy = lse - torch.linalg.vecdot(probs, logits)
        if not on_host(logits) or bool(entropy.isnan().any()):
            # 0 times -inf; finite logits are spared another pass where the host need not wait to know them.
            entropy = lse - torch.linalg.vecdot(probs, floored(logits))
    margin = None
    if draw.margin:
        best = probs.topk(min(2, probs.shape[1]), dim=1).values
        margin = best[:, 0] - best[:, 1:].sum(dim=1)
    # A sum of small numbers keeps what 1 - p loses: fp32 tells p = 1 - 1e-8 from 1 - 1e-30.
    doubt = probs.scatter_(1, picked, 0.0).sum(dim=1)
    return TokenScores(logps, entropy, tokens=columns, doubt=doubt, kept=kept, margin=margin)


def truncated(probs: Tensor, truncation: Truncation) -> Tensor:
    """``probs [n, W]`` with 0 for what may not be drawn; tokens as likely as the last that may be are kept too."""
    top_k, top_p, min_p = truncation
    least = probs.new_zeros(len(probs), 1)
    if 0 < top_k < probs.shape[1]:
        least = probs.topk(top_k, dim=1).values[:, -1:]
    if top_p < 1:
        ordered = probs.masked_fill(probs < least, 0.0).sort(dim=1, descending=True).values
        sums = ordered.double().cumsum(dim=1)
        # A token is needed while those before it hold less than their share; the first one always is.
        needed = (sums - ordered < top_p * sums[:, -1:]).sum(dim=1, keepdim=True).clamp(min=1)
        least = torch.maximum(least, ordered.gather(1, needed - 1))
    if min_p > 0:
        least = torch.maximum(least, min_p * probs.amax(dim=1, keepdim=True))
    return probs.masked_fill(probs < least, 0.0)


def floored(logits: Tensor) -> Tensor:
    """-inf as the smallest fp32 number: it has no mass either, and 0 times it is 0, not NaN."""
    return logits.clamp(min=torch.finfo(torch.float32).min)


def join(parts: list[TokenScores]) -> TokenScores:
    """The rows of ``parts``, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return TokenScores(*(None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)))


def draw_columns(masses: Tensor, uniforms: Tensor) -> Tensor:
    """Columns ``[n]`` drawn in proportion to ``masses [n, W]`` fp32, by the inverse of their cumulative sums.

    The same law as Gumbel-max at 1/W of the random numbers. Block sums are accumulated in fp64, so that the last of 134,656
    tokens is as likely as its mass says; entries stay fp32. A column without mass is never drawn,
    except from a row without mass.
    """
    width = masses.shape[1]
    whole = width // BLOCK * BLOCK
    sums = masses[:, :whole].unflatten(1, (-1, BLOCK)).sum(dim=2)
    if whole < width:
        sums = torch.cat([sums, masses[:, whole:].sum(dim=1, keepdim=True)], dim=1)
    cumulative = sums.double().cumsum(dim=1)
    threshold = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, threshold, right=True).clamp(max=cumulative.shape[1] - 1)
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)), 0.0)
    places = block * BLOCK + torch.arange(BLOCK, device=masses.device)
    inside = masses.gather(1, places.clamp(max=width - 1)) * (places < width)
    running = inside.double().cumsum(dim=1)
    column = torch.searchsorted(running, threshold - before, right=True)
    # fp32 block sums and fp64 running sums differ in the last digits: past the end means the last token with mass.
    last = BLOCK - 1 - (inside > 0).flip(1).int().argmax(dim=1, keepdim=True)
    # A row without any mass has no last token; its column is one all the same.
    return (block * BLOCK + torch.minimum(column, last)).squeeze(1).clamp(max=width - 1)

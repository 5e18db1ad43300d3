"""Laws of a policy's likelihood: what it is the softmax of, and what it depends on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..algorithm.likelihood import score_tokens
from ..algorithm.noising import random_corruption
from ..models import DiffusionPolicy
from ..models.cache import KeyValueCache
from ..models.draw import Draw
from ..models.forward import used_scales
from ..types import Canvas, Rollout, keyed_generator
from .require import require


TOLERANCE = 2e-5
"""Nats between two ways to compute one log-probability in fp32."""

FELT = 10 * TOLERANCE
"""What a token that matters moves at least."""

GUIDANCE, IMAGE_GUIDANCE = 1.5, 0.5


def some_hidden(rollout: Rollout) -> tuple[Tensor, Tensor]:
    """About half of the counted tokens hidden, and half of those scored; at least one a row."""
    generator = torch.Generator().manual_seed(3)
    draw = torch.rand(rollout.completion_mask.shape, generator=generator)
    draw = draw.masked_fill(~rollout.completion_mask, 2.0)
    first = draw == draw.amin(1, keepdim=True)
    return (draw < 0.5) | first, (draw < 0.25) | first


def corrupted(policy: DiffusionPolicy, canvas: Canvas, hidden: Tensor) -> Tensor | None:
    """Random tokens at ``hidden`` for policies without a mask id, each row's from an equal stream; else None."""
    if policy.mask_token_id is not None:
        return None
    rows = [
        random_corruption(own, ids, canvas.token_space, generator=keyed_generator("noise"))
        for own, ids in zip(hidden, canvas.ids, strict=True)
    ]
    return torch.stack(rows)


@torch.no_grad()
def score(policy, model, canvas: Canvas, hidden: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Log-probabilities ``[b, L]`` of the tokens at ``target``."""
    return score_tokens(model, policy, canvas, hidden, target, corrupted(policy, canvas, hidden), temperature).logps


def worst(difference: Tensor) -> float:
    return float(difference.detach().abs().max())


def check_scores(policy: DiffusionPolicy, model: Any, rollout: Rollout, temperature: float) -> None:
    """Scores equal a log-softmax over the token space of the full logits, read where the family puts them."""
    canvas, (hidden, target) = rollout.canvas, some_hidden(rollout)
    noisy_ids = corrupted(policy, canvas, hidden)
    with torch.no_grad():
        logits = model(**policy.likelihood_inputs(canvas, hidden, noisy_ids)).logits
        scores = score_tokens(model, policy, canvas, hidden, target, noisy_ids, temperature)
    own, entropy = _at_targets(policy, canvas, target, logits, temperature)
    off = worst(scores.logps[target] - own)
    require(
        off < TOLERANCE,
        f"log-probabilities are {off:.2g} nats off the softmax of the full logits over the token space: is logit_shift "
        f"{policy.logit_shift}, and does forward read select and token_space?",
    )
    entropies = scores.entropy
    assert entropies is not None, "forward returns no entropy of its targets"
    off = worst(entropies[target] - entropy)
    require(off < TOLERANCE, f"entropies are {off:.2g} nats off those of the full logits")
    require(not scores.logps[~target].any() and not entropies[~target].any(), "scores outside the target are not 0")


def _at_targets(policy, canvas: Canvas, target: Tensor, logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies ``[n]`` at ``target``, in fp64 from full ``logits [b, L, V]``."""
    table = logits.double() / temperature
    open_columns = canvas.token_space.contains(torch.arange(table.shape[-1]))
    table = table.masked_fill(~open_columns, -torch.inf).log_softmax(-1)
    row, position = target.nonzero(as_tuple=True)
    at = table[row, position - policy.logit_shift]
    entropy = -(at.exp() * at.masked_fill(~open_columns, 0)).sum(-1)
    return at.gather(1, canvas.ids[target][:, None])[:, 0], entropy


@torch.no_grad()
def check_draws(policy: DiffusionPolicy, model: Any, rollout: Rollout, temperature: float) -> None:
    """Tokens chosen inside the forward are the likeliest, or the inverse of the cumulative distribution, of its own logits."""
    request = _request(policy, rollout, temperature)
    table = model(**request).logits.double().log_softmax(-1)
    uniforms = torch.linspace(0.001, 0.999, len(table), dtype=torch.float64)
    drawn = (table.exp().cumsum(-1) < uniforms[:, None]).sum(-1)
    for draw, columns in ((Draw(), table.argmax(-1)), (Draw(uniforms=uniforms, entropy=True), drawn)):
        output, kind = model(**request, draw=draw), "greedy" if draw.uniforms is None else "drawn"
        expected = columns + request["token_space"].start
        require(
            torch.equal(output.tokens, expected),
            f"{int((output.tokens != expected).sum())} of {len(expected)} {kind} tokens are not those of the forward's own logits",
        )
        off = worst(output.logps - table.gather(1, columns[:, None])[:, 0])
        require(off < TOLERANCE, f"log-probabilities of {kind} tokens are {off:.2g} nats off the forward's own logits")
    closed = table < -1e30
    off = worst(output.entropy + (table.exp() * table.masked_fill(closed, 0)).sum(-1))
    require(off < TOLERANCE, f"entropies of drawn tokens are {off:.2g} nats off the forward's own logits")


def _request(policy: DiffusionPolicy, rollout: Rollout, temperature: float) -> dict[str, Any]:
    """Arguments of a forward for the logits of ``some_hidden`` tokens."""
    canvas, (hidden, target) = rollout.canvas, some_hidden(rollout)
    inputs = policy.inputs(canvas, hidden, corrupted(policy, canvas, hidden))
    return {**inputs, "select": policy.rows(target), "token_space": canvas.token_space, "temperature": temperature}


@torch.no_grad()
def check_guidance(policy: DiffusionPolicy, model: Any, rollout: Rollout, temperature: float) -> None:
    """Guided scores are the softmax of c + s (c - u), and with the prompt's picture of c + s (c - u) + s' (c - u'), where the family has
    such canvases.
    """
    canvas, (hidden, target) = rollout.canvas, some_hidden(rollout)
    noisy = corrupted(policy, canvas, hidden)
    for scale in (GUIDANCE, (GUIDANCE, IMAGE_GUIDANCE), (0.0, IMAGE_GUIDANCE)):
        try:
            twins = policy.guidance_twins(canvas, scale)
        except ValueError:
            continue
        given = model(**policy.likelihood_inputs(canvas, hidden, noisy)).logits.double()
        guided = given.clone()
        for factor, twin in zip(used_scales(scale), twins, strict=True):
            require(
                twin.ids.shape == canvas.ids.shape and torch.equal(twin.fill_mask, canvas.fill_mask),
                "guidance_canvas or imageless_canvas moves the answer: its canvas has the same length and the same fill_mask",
            )
            twin = replace(twin, ids=torch.where(canvas.fill_mask, canvas.ids, twin.ids))
            twin_noisy = None if noisy is None else torch.where(canvas.fill_mask, noisy, twin.ids)
            guided += factor * (given - model(**policy.likelihood_inputs(twin, hidden, twin_noisy)).logits.double())
        own, _ = _at_targets(policy, canvas, target, guided, temperature)
        scores = score_tokens(model, policy, canvas, hidden, target, noisy, temperature, guidance_scale=scale)
        off = worst(scores.logps[target] - own)
        require(
            off < FELT,
            f"guided log-probabilities are {off:.2g} nats off c + s (c - u) of the full logits at s = {scale}: linear_head is "
            f"{policy.linear_head}, and guided_inputs stacks [conditional; unconditional]",
        )


@torch.no_grad()
def check_kept_keys(policy: DiffusionPolicy, model: Any, rollout: Rollout, temperature: float) -> None:
    """On a canvas that has not changed, columns computed beside kept keys and values are those of a full forward."""
    request, cache = _request(policy, rollout, temperature), KeyValueCache()
    full = model(**request, cache=cache).logits
    columns = request["select"].any(dim=0).nonzero().squeeze(1)
    cache.span = (int(columns[0]), int(columns[-1]) + 1)
    off = worst(model(**request, cache=cache).logits - full)
    require(
        off < TOLERANCE, f"logits beside kept keys and values are {off:.2g} off a full forward's of the same canvas"
    )


def trimmed(canvas: Canvas, row: int) -> tuple[Canvas, Tensor]:
    """One row without its padding, and which positions that keeps."""
    keep = canvas.attention_mask[row]
    alone = canvas.take(torch.tensor([row]))
    positions = None if alone.position_ids is None else alone.position_ids[:, keep]
    return replace(
        alone,
        ids=alone.ids[:, keep],
        fill_mask=alone.fill_mask[:, keep],
        attention_mask=alone.attention_mask[:, keep],
        position_ids=positions,
    ), keep


def check_padding(policy: DiffusionPolicy, model: Any, rollout: Rollout, temperature: float) -> None:
    """A row alone, without padding, scores as in the batch; so does what the padding holds."""
    canvas, (hidden, target) = rollout.canvas, some_hidden(rollout)
    together = score(policy, model, canvas, hidden, target, temperature)
    cure = "hand attention_mask on in inputs, and position_ids where positions are counted from the left edge; is logit_shift right?"
    for row in range(len(canvas.ids)):
        alone, keep = trimmed(canvas, row)
        own = score(policy, model, alone, hidden[row : row + 1, keep], target[row : row + 1, keep], temperature)
        off = worst(own[0] - together[row, keep])
        require(off < TOLERANCE, f"row {row} without its padding scores {off:.2g} nats apart: {cure}")
    stuffed = replace(canvas, ids=torch.where(canvas.attention_mask, canvas.ids, canvas.token_space.stop - 1))
    off = worst(score(policy, model, stuffed, hidden, target, temperature) - together)
    require(off < TOLERANCE, f"the ids of padding move scores by {off:.2g} nats: {cure}")


def another(canvas: Canvas, where: Tensor) -> Canvas:
    """The canvas with other writable ids at ``where``."""
    choices = torch.arange(canvas.token_space.start, canvas.token_space.stop)
    choices = choices[canvas.token_space.contains(choices)]
    replaced = torch.where(canvas.ids == choices[0], choices[1], choices[0])
    return replace(canvas, ids=torch.where(where, replaced, canvas.ids))


def check_hidden_ids(policy: DiffusionPolicy, model: Any, rollout: Rollout, temperature: float) -> None:
    """What stands under ``hidden`` cannot be seen by the model: the other scores are bitwise the same.

    Where attention is in blocks, those of later blocks are not, which stand behind it; nothing is behind a row's last block.
    """
    canvas, (hidden, target) = rollout.canvas, some_hidden(rollout)
    unscored, blocks = hidden & ~target, policy.blocks(canvas)
    if blocks is not None:
        unscored &= blocks == blocks.amax(dim=1, keepdim=True)
    require(unscored.any(), "answers of this model are too short to hide a token that is not scored: give more rows")
    expected = score(policy, model, canvas, hidden, target, temperature)
    off = worst(score(policy, model, another(canvas, unscored), hidden, target, temperature) - expected)
    require(
        off == 0,
        f"tokens that are hidden move the scores of others by {off:.2g} nats: inputs(canvas, hidden, noisy_ids) must not show them",
    )


def check_visible_ids(policy: DiffusionPolicy, model: Any, rollout: Rollout, temperature: float) -> None:
    """Tokens before and after a scored position both matter: the model is bidirectional."""
    for scored, changed in ((0, -1), (-1, 0)):
        rows = len(rollout.canvas.ids)
        felt = influence(policy, model, rollout.canvas, [scored] * rows, [changed] * rows, temperature)
        side = "behind" if changed == -1 else "before"
        require(
            felt > FELT,
            f"a visible token {side} the scored one moves its score by {felt:.2g} nats only: inputs hides it, or the model does not "
            "look that way (block_length is for models that see no later block), or its random weights are too small to tell "
            "(initializer_range=0.15)",
        )


def check_blocks_are_causal(
    policy: DiffusionPolicy, model: Any, rollout: Rollout, temperature: float, block_length: int
) -> None:
    """A token sees its own block, both ways, and earlier ones; of later ones it sees nothing, bitwise.

    Blocks are the policy's, of one that has a ``block_size``; else ``block_length`` places of the answer, from its first on.
    """
    canvas, blocks = rollout.canvas, policy.blocks(rollout.canvas)
    if blocks is None:
        blocks = (canvas.fill_mask.cumsum(dim=1) - 1) // block_length
    rows = [own[fill].tolist() for own, fill in zip(blocks, canvas.fill_mask, strict=True)]
    whole = [max(own, key=own.count) for own in rows]
    first = [own.index(block) for own, block in zip(rows, whole, strict=True)]
    last = [start + own.count(block) - 1 for own, block, start in zip(rows, whole, first, strict=True)]
    second = [own.count(own[0]) for own in rows]
    # What predicts the first token of a block under shifted logits stands in the block before.
    first = [start + policy.logit_shift for start in first]
    before, opening, end = [place - 1 for place in second], [0] * len(rows), [len(own) - 1 for own in rows]
    for scored, changed in ((first, last), (last, first), (second, before), (end, opening)):
        felt = influence(policy, model, canvas, scored, changed, temperature)
        require(
            felt > FELT,
            f"answer tokens {changed} move the scores of tokens {scored} by {felt:.2g} nats only, in blocks of {block_length}",
        )
    for scored, changed in ((opening, end), (before, second)):
        felt = influence(policy, model, canvas, scored, changed, temperature)
        require(
            felt == 0,
            f"what stands at {changed} of a later block moves the scores of tokens {scored} by {felt:.2g} nats",
        )


def influence(
    policy: DiffusionPolicy, model: Any, canvas: Canvas, scored: list[int], changed: list[int], temperature: float
) -> float:
    """How far the score of each row's answer token ``scored`` moves with the visible token ``changed``, at most."""
    target, visible = torch.zeros_like(canvas.fill_mask), torch.zeros_like(canvas.fill_mask)
    for row, fill in enumerate(canvas.fill_mask):
        place = fill.nonzero().flatten()
        target[row, place[scored[row]]] = visible[row, place[changed[row]]] = True
    expected = score(policy, model, canvas, target, target, temperature)
    return worst(score(policy, model, another(canvas, visible), target, target, temperature) - expected)


def check_gradient(policy: DiffusionPolicy, model: Any, rollout: Rollout, temperature: float) -> None:
    """The gradient reaches the parameters, and a step along it raises the score. The weights are put back."""
    canvas, (hidden, target) = rollout.canvas, some_hidden(rollout)
    trainable = [p for p in model.parameters() if p.requires_grad]
    noisy_ids = corrupted(policy, canvas, hidden)
    value = score_tokens(model, policy, canvas, hidden, target, noisy_ids, temperature).logps.sum()
    gradients = torch.autograd.grad(value, trainable, allow_unused=True)
    reached = [g for g in gradients if g is not None and bool(g.abs().max() > 0)]
    require(
        len(reached) > 0.8 * len(trainable),
        f"the gradient of the scores reaches {len(reached)} of {len(trainable)} parameters that require one",
    )
    require(all(bool(g.isfinite().all()) for g in reached), "the gradient of the scores is not finite")
    step = 1e-2 / sum(float(g.pow(2).sum()) for g in reached)
    kept = [p.detach().clone() for p in trainable]
    with torch.no_grad():
        for parameter, gradient in zip(trainable, gradients, strict=True):
            if gradient is not None:
                parameter.add_(gradient, alpha=step)
        risen = float(score(policy, model, canvas, hidden, target, temperature).sum() - value.detach())
        for parameter, own in zip(trainable, kept, strict=True):
            parameter.copy_(own)
    require(
        0.5e-2 < risen < 2e-2,
        f"a step along the gradient that should raise the score by 0.01 raised it by {risen:.3g}",
    )

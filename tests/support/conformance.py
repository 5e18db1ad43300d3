"""Laws that every ``DiffusionPolicy`` must satisfy together with its model: ``check_policy(model, policy, rows, task)``.

``rows`` are dataset rows whose prompts differ in length; for ``mmu`` they carry ``image_codes``. Each law is a function
of its own and raises AssertionError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.algorithm.noising import random_corruption
from unigrpo.models import DiffusionPolicy
from unigrpo.models.cache import KeyValueCache
from unigrpo.models.draw import Draw
from unigrpo.samplers import Emerge, MaskGIT, SemiAutoregressive
from unigrpo.samplers.base import CanvasWriter
from unigrpo.types import Canvas, Rollout, keyed_generator


LENGTH = 8
TOLERANCE = 2e-5
TEMPERATURE = 0.7


def check_policy(
    model,
    policy: DiffusionPolicy,
    rows: list[dict[str, Any]],
    task: str = "text",
    padding: int | None = None,
    block_length: int | None = None,
) -> None:
    """Every law below.

    Args:
        padding: the id of padding in canvases of ``task`` where it is not ``policy.pad_token_id``.
        block_length: answer positions in a block, for models that see no later block; None for bidirectional ones.
    """
    model.eval()
    check_encode(policy, rows, task, padding)
    for sampler in SAMPLERS_OF.get(task, SAMPLERS_OF["text"]):
        rollout = check_rollout(model, policy, rows, task, sampler)
        check_sampling_logps(model, policy, rollout)
    check_scores_are_the_models(model, policy, rollout)
    check_draws_are_the_models(model, policy, rollout)
    if policy.supports_cache:
        check_kept_keys_change_nothing(model, policy, rollout)
    check_padding_changes_nothing(model, policy, rollout)
    check_hidden_ids_do_not_leak(model, policy, rollout)
    if block_length is None:
        check_visible_ids_count(model, policy, rollout)
    else:
        check_blocks_are_causal(model, policy, rollout, block_length)
    check_gradient(model, policy, rollout)


def answer_length(task: str) -> dict[str, int]:
    """The arguments of ``policy.encode`` that leave ``LENGTH`` tokens to write."""
    return {"image_tokens" if task == "t2i" else "max_completion_length": LENGTH}


def semi_autoregressive(temperature: float) -> SemiAutoregressive:
    return SemiAutoregressive(steps=4, block_length=4, temperature=temperature, stop="never")


def emerge(temperature: float) -> Emerge:
    return Emerge(steps=4, temperature=temperature, guidance_scale=0.0)


def maskgit(temperature: float) -> MaskGIT:
    return MaskGIT(steps=4, temperature=temperature, guidance_scale=0.0)


SAMPLERS_OF = {"text": (semi_autoregressive,), "t2i": (emerge, maskgit)}


def streams(count: int) -> list[torch.Generator]:
    return [keyed_generator("conformance", row) for row in range(count)]


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


def score(model, policy, canvas: Canvas, hidden: Tensor, target: Tensor, noisy_ids: Tensor | None = None) -> Tensor:
    noisy_ids = corrupted(policy, canvas, hidden) if noisy_ids is None else noisy_ids
    with torch.no_grad():
        return score_tokens(model, policy, canvas, hidden, target, noisy_ids, TEMPERATURE).logps


def worst(difference: Tensor) -> float:
    return float(difference.detach().abs().max())


def check_encode(policy: DiffusionPolicy, rows: list[dict], task: str, padding: int | None = None) -> None:
    """Exactly the answer is to be written, it holds the mask id, and the prompt does not depend on the other rows."""
    canvas = policy.encode(rows, task, **answer_length(task))
    assert canvas.task == task and canvas.token_space == policy.token_space(task)
    assert canvas.fill_mask.sum(1).tolist() == [LENGTH] * len(rows)
    assert canvas.attention_mask[canvas.fill_mask].all()
    if policy.mask_token_id is not None:
        assert (canvas.ids[canvas.fill_mask] == policy.mask_token_id).all()
        assert not canvas.token_space.contains(torch.tensor(policy.mask_token_id))
    lengths = canvas.attention_mask.sum(1)
    assert lengths.unique().numel() > 1, "give prompts of several lengths"
    padding = policy.pad_token_id if padding is None else padding
    assert (canvas.ids[~canvas.attention_mask] == padding).all()
    for row, own in enumerate(rows):
        alone = policy.encode([own], task, **answer_length(task))
        assert alone.attention_mask.all()
        assert torch.equal(alone.ids[0], canvas.ids[row][canvas.attention_mask[row]])
        assert torch.equal(alone.fill_mask[0], canvas.fill_mask[row][canvas.attention_mask[row]])


def check_rollout(
    model,
    policy: DiffusionPolicy,
    rows: list[dict],
    task: str,
    sampler: Callable[[float], Any] = semi_autoregressive,
) -> Rollout:
    """No hole is left, every token lies in the token space, and nothing else is touched; greedy and drawn.

    ``sampler`` makes one of a temperature. The drawn rollout is returned.
    """
    canvas = policy.encode(rows, task, **answer_length(task))
    before = canvas.ids.clone()
    for temperature in (0.0, TEMPERATURE):
        rollout = sampler(temperature)(model, policy, canvas, generators=streams(len(rows)))
        ids, fill_mask = rollout.canvas.ids, canvas.fill_mask
        assert canvas.token_space.contains(ids[fill_mask]).all()
        assert torch.equal(ids[~fill_mask], before[~fill_mask]) and torch.equal(canvas.ids, before)
        assert torch.equal(rollout.step_map >= 0, fill_mask)
        assert (rollout.sampling_logps[fill_mask] <= 0).all() and not rollout.sampling_logps[~fill_mask].any()
        assert rollout.completion_mask[fill_mask].any() and not rollout.completion_mask[~fill_mask].any()
        assert len(rollout.completions) == len(rows)
        decoded = policy.decode(rollout.canvas, rollout.completion_mask)
        assert all(plain(own) == plain(other) for own, other in zip(rollout.completions, decoded, strict=True))
    return rollout


def plain(completion: Any) -> Any:
    """Text as it is, codes as a list."""
    return completion.tolist() if isinstance(completion, Tensor) else completion


def check_scores_are_the_models(model, policy: DiffusionPolicy, rollout: Rollout) -> None:
    """Scores equal a log-softmax over the token space of the full logits, read where the family puts them."""
    canvas, (hidden, target) = rollout.canvas, some_hidden(rollout)
    noisy_ids = corrupted(policy, canvas, hidden)
    with torch.no_grad():
        logits = model(**policy.inputs(canvas, hidden, noisy_ids)).logits.double() / TEMPERATURE
        entropy = score_tokens(model, policy, canvas, hidden, target, noisy_ids, TEMPERATURE).entropy
    open_columns = canvas.token_space.contains(torch.arange(logits.shape[-1]))
    table = logits.masked_fill(~open_columns, -torch.inf).log_softmax(-1)
    logps = score(model, policy, canvas, hidden, target)
    for row, position in target.nonzero().tolist():
        at = table[row, position - policy.logit_shift]
        assert abs(float(logps[row, position]) - float(at[canvas.ids[row, position]])) < TOLERANCE
        own = -(at.exp() * at.masked_fill(~open_columns, 0)).sum()
        assert abs(float(entropy[row, position]) - float(own)) < TOLERANCE
    assert not logps[~target].any() and not entropy[~target].any()


@torch.no_grad()
def check_draws_are_the_models(model, policy: DiffusionPolicy, rollout: Rollout) -> None:
    """Tokens chosen inside the forward are the likeliest, or the inverse of the cumulative distribution, of its own logits."""
    request = door_request(policy, rollout)
    table = model(**request).logits.double().log_softmax(-1)
    uniforms = torch.linspace(0.001, 0.999, len(table), dtype=torch.float64)
    drawn = (table.exp().cumsum(-1) < uniforms[:, None]).sum(-1)
    for draw, columns in ((Draw(), table.argmax(-1)), (Draw(uniforms=uniforms, entropy=True), drawn)):
        output = model(**request, draw=draw)
        assert torch.equal(output.tokens, columns + request["token_space"].start)
        assert worst(output.logps - table.gather(1, columns[:, None])[:, 0]) < TOLERANCE
    closed = table < -1e30
    assert worst(output.entropy + (table.exp() * table.masked_fill(closed, 0)).sum(-1)) < TOLERANCE


@torch.no_grad()
def check_kept_keys_change_nothing(model, policy: DiffusionPolicy, rollout: Rollout) -> None:
    """On a canvas that has not changed, columns computed beside kept keys and values are those of a full forward."""
    request, cache = door_request(policy, rollout), KeyValueCache()
    full = model(**request, cache=cache).logits
    columns = request["select"].any(dim=0).nonzero().squeeze(1)
    cache.span = (int(columns[0]), int(columns[-1]) + 1)
    assert worst(model(**request, cache=cache).logits - full) < TOLERANCE


def door_request(policy: DiffusionPolicy, rollout: Rollout) -> dict[str, Any]:
    """Arguments of a forward for the logits of ``some_hidden`` tokens."""
    canvas, (hidden, target) = rollout.canvas, some_hidden(rollout)
    inputs = policy.inputs(canvas, hidden, corrupted(policy, canvas, hidden))
    return {**inputs, "select": policy.rows(target), "token_space": canvas.token_space, "temperature": TEMPERATURE}


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


def check_padding_changes_nothing(model, policy: DiffusionPolicy, rollout: Rollout) -> None:
    """A row alone, without padding, scores as in the batch; so does what the padding holds."""
    if policy.attends_padding:
        return
    canvas, (hidden, target) = rollout.canvas, some_hidden(rollout)
    together = score(model, policy, canvas, hidden, target)
    for row in range(len(canvas.ids)):
        alone, keep = trimmed(canvas, row)
        own = score(model, policy, alone, hidden[row : row + 1, keep], target[row : row + 1, keep])
        assert worst(own[0] - together[row, keep]) < TOLERANCE
    stuffed = replace(canvas, ids=torch.where(canvas.attention_mask, canvas.ids, canvas.token_space.stop - 1))
    assert worst(score(model, policy, stuffed, hidden, target) - together) < TOLERANCE


def another(canvas: Canvas, where: Tensor) -> Canvas:
    """The canvas with other writable ids at ``where``."""
    choices = torch.arange(canvas.token_space.start, canvas.token_space.stop)
    choices = choices[canvas.token_space.contains(choices)]
    replaced = torch.where(canvas.ids == choices[0], choices[1], choices[0])
    return replace(canvas, ids=torch.where(where, replaced, canvas.ids))


def check_hidden_ids_do_not_leak(model, policy: DiffusionPolicy, rollout: Rollout) -> None:
    """What stands under ``hidden`` cannot be seen by the model: the other scores are bitwise the same."""
    canvas, (hidden, target) = rollout.canvas, some_hidden(rollout)
    unscored = hidden & ~target
    assert unscored.any()
    expected = score(model, policy, canvas, hidden, target)
    assert torch.equal(score(model, policy, another(canvas, unscored), hidden, target), expected)


def check_visible_ids_count(model, policy: DiffusionPolicy, rollout: Rollout) -> None:
    """Tokens before and after a scored position both matter: the model is bidirectional."""
    for scored, changed in ((0, -1), (-1, 0)):
        assert influence(model, policy, rollout.canvas, scored, changed) > 10 * TOLERANCE


def check_blocks_are_causal(model, policy: DiffusionPolicy, rollout: Rollout, block_length: int) -> None:
    """A token sees its own block, both ways, and earlier ones; of later ones it sees nothing, bitwise."""
    last = block_length - 1
    for scored, changed in ((0, last), (last, 0), (block_length, last), (-1, 0)):
        assert influence(model, policy, rollout.canvas, scored, changed) > 10 * TOLERANCE
    for scored, changed in ((0, -1), (last, block_length)):
        assert influence(model, policy, rollout.canvas, scored, changed) == 0


def influence(model, policy: DiffusionPolicy, canvas: Canvas, scored: int, changed: int) -> float:
    """How far the score of answer token ``scored`` moves with the visible token ``changed``."""
    target, visible = torch.zeros_like(canvas.fill_mask), torch.zeros_like(canvas.fill_mask)
    for row, fill in enumerate(canvas.fill_mask):
        place = fill.nonzero().flatten()
        target[row, place[scored]] = visible[row, place[changed]] = True
    expected = score(model, policy, canvas, target, target)
    return worst(score(model, policy, another(canvas, visible), target, target) - expected)


def check_gradient(model, policy: DiffusionPolicy, rollout: Rollout) -> None:
    """The gradient reaches the parameters, and a step along it raises the score."""
    canvas, (hidden, target) = rollout.canvas, some_hidden(rollout)
    trainable = [p for p in model.parameters() if p.requires_grad]
    noisy_ids = corrupted(policy, canvas, hidden)
    value = score_tokens(model, policy, canvas, hidden, target, noisy_ids, TEMPERATURE).logps.sum()
    gradients = torch.autograd.grad(value, trainable, allow_unused=True)
    reached = [g for g in gradients if g is not None and bool(g.abs().max() > 0)]
    assert len(reached) > 0.8 * len(trainable)
    assert all(bool(g.isfinite().all()) for g in reached)
    square = sum(float(g.pow(2).sum()) for g in reached)
    step = 1e-2 / square
    with torch.no_grad():
        for sign in (1, -1):
            for parameter, gradient in zip(trainable, gradients, strict=True):
                if gradient is not None:
                    parameter.add_(gradient, alpha=sign * step)
            if sign == 1:
                risen = float(score(model, policy, canvas, hidden, target).sum() - value.detach())
    assert 0.5e-2 < risen < 2e-2, f"a step that should raise the score by 0.01 raised it by {risen}"


def check_sampling_logps(model, policy: DiffusionPolicy, rollout: Rollout) -> None:
    """What the sampler recorded for each step equals the score with the same positions hidden.

    Without a mask id the holes must hold the sampler's own random tokens, the first draws of the rows' streams.
    """
    fill, holes = rollout.canvas.fill_mask, None
    if policy.mask_token_id is None:
        holes = CanvasWriter(rollout.canvas, policy, 0.0, streams(len(fill))).ids
    for step in range(int(rollout.step_map.max()) + 1):
        hidden, target = fill & (rollout.step_map >= step), fill & (rollout.step_map == step)
        noisy_ids = None if holes is None else torch.where(hidden, holes, rollout.canvas.ids)
        logps = score(model, policy, rollout.canvas, hidden, target, noisy_ids)
        assert worst((logps - rollout.sampling_logps)[target]) < TOLERANCE

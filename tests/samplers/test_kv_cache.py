"""Keys and values that are kept while a block is written: what attention sees, who leaves, what it is off, who has none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.models import MMaDAPolicy
from unigrpo.models.cache import KeyValueCache
from unigrpo.rollout.sample import check_prompt
from unigrpo.samplers.kv_cache import BlockCache
from unigrpo.training.metrics import Metrics
from unigrpo.training.old_and_reference import log_decoding_gap
from unigrpo.types import Canvas, TokenSpace

from ..support.configs import config
from ..support.tiny import tiny_model
from ..support.tolerances import assert_rounding
from .test_text_sampler import CountingModel, counting_model, model_that_counts, sample, text_canvas  # noqa: F401


def stale_logits(model, policy, before, after, select, span):
    """Logits of ``after`` where attention outside ``span`` sees the keys and values of ``before``, by hooks alone."""
    kept: dict = {}
    outside = torch.ones(before.ids.shape[1], dtype=torch.bool)
    outside[span[0] : span[1]] = False

    def keep_or_replace(module, _, output):
        if module not in kept:
            kept[module] = output.detach()
            return None
        return torch.where(outside[None, :, None], kept[module], output)

    layers = [getattr(block, name) for block in model.model.transformer["blocks"] for name in ("k_proj", "v_proj")]
    hooks = [layer.register_forward_hook(keep_or_replace) for layer in layers]
    model(**policy.inputs(before))
    logits = model(**policy.inputs(after)).logits[select]
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize("span", [(10, 18), (10, None), (0, None)], ids=["dual", "prefix", "everything"])
@torch.no_grad()
def test_a_forward_over_a_span_sees_the_keys_that_were_kept(policy, model, span):
    canvas = text_canvas(policy)
    span = (span[0], span[1] or canvas.ids.shape[1])
    changed = canvas.ids.clone()
    changed[:, -20:-8] = torch.randint(3, 150, changed[:, -20:-8].shape, generator=torch.Generator().manual_seed(3))
    after = replace(canvas, ids=changed)
    select = torch.zeros_like(canvas.fill_mask)
    select[:, span[0] + 1 : span[0] + 7] = True
    select[0, span[0] + 2] = False
    cache = KeyValueCache()
    model(**policy.inputs(canvas), select=select, cache=cache)
    cache.span = span
    own = model(**policy.inputs(after), select=select, cache=cache).logits
    expected = stale_logits(model, policy, canvas, after, select, span)
    assert_rounding(own, expected)
    exact = model(**policy.inputs(after), select=select).logits
    if span == (0, canvas.ids.shape[1]):
        assert_rounding(own, exact)
    else:
        assert float((own - exact).abs().max()) > 1e-2


@torch.no_grad()
def test_kept_rows_can_leave(policy, model):
    canvas, rows = text_canvas(policy), torch.tensor([2, 0])
    few = canvas.take(rows)
    whole, part = KeyValueCache(), KeyValueCache()
    for cache in (whole, part):
        model(**policy.inputs(canvas), select=canvas.fill_mask, cache=cache)
        cache.span = (canvas.ids.shape[1] - 24, canvas.ids.shape[1])
    part.take(rows.tolist())
    logits = model(**policy.inputs(canvas), select=canvas.fill_mask, cache=whole).logits.view(4, 24, -1)
    own = model(**policy.inputs(few), select=few.fill_mask, cache=part).logits.view(2, 24, -1)
    assert_rounding(own, logits[rows])


def test_rows_outside_the_span_cannot_be_selected(policy, model):
    canvas, cache = text_canvas(policy), KeyValueCache()
    model(**policy.inputs(canvas), select=canvas.fill_mask, cache=cache)
    cache.span = (0, 5)
    with pytest.raises(ValueError, match=r"outside the columns \(0, 5\)"):
        model(**policy.inputs(canvas), select=canvas.fill_mask, cache=cache)


class SpanCounter(CountingModel):
    """Counts the columns that each forward computes."""

    def forward(self, *args, cache=None, **kwargs):
        length = kwargs["input_ids"].shape[1]
        span = None if cache is None else cache.span
        self.computed = [*getattr(self, "computed", []), length if span is None else span[1] - span[0]]
        return super().forward(*args, cache=cache, **kwargs)


@pytest.mark.smoke
@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize(("kind", "widths"), [("none", [0, 0, 0]), ("prefix", [24, 16, 8]), ("dual", [8, 8, 8])])
def test_a_block_is_computed_in_full_once(policy, kind, widths, guidance):
    plain = tiny_model()
    model = SpanCounter(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    canvas = text_canvas(policy, length=24)
    length = canvas.ids.shape[1]
    sample(model, policy, canvas, steps=12, stop="never", kv_cache=kind, guidance_scale=guidance)
    assert model.computed == [count for width in widths for count in (length, *[width or length] * 3)]


def test_shifted_logits_are_computed_from_one_column_earlier(policy):
    shifted = MMaDAPolicy(policy.config, policy.processor)
    shifted.logit_shift = 1
    for kind, span in (("dual", (3, 8)), ("prefix", (3, 12))):
        kept = BlockCache(kind, shifted, guided=False, length=12)
        assert kept.ready(0, [0, 1], 4, 8).span is None
        assert kept.ready(0, [0, 1], 4, 8).span == span


class WithoutCache(MMaDAPolicy):
    supports_cache = False


def test_a_policy_without_a_cache_says_so(policy, model):
    own, row = WithoutCache(policy.config, policy.processor), {"prompt": "w1"}
    with pytest.raises(ValueError, match="WithoutCache has no cache"):
        sample(model, own, text_canvas(policy), kv_cache="prefix")
    args = config(kv_cache="dual", max_completion_length=12)
    check_prompt(policy, args, None, row, "train_dataset[0]")
    with pytest.raises(
        ValueError, match=r"train_dataset\[0\], task 'text': kv_cache='dual': WithoutCache has no cache"
    ):
        check_prompt(own, args, None, row, "train_dataset[0]")
    check_prompt(own, args, None, row, "eval_dataset[0]", held_out=True)


def test_a_hole_that_an_earlier_block_left_is_computed_beside_a_cache(policy):
    """A policy may draw its mask id, and the position stays a hole: later blocks then reach back to it."""
    model = counting_model(mask_lover=True)
    canvas = text_canvas(policy)
    open_space = replace(canvas, token_space=TokenSpace(start=0, stop=canvas.token_space.stop))
    with torch.no_grad():
        model.get_output_embeddings().weight[184] *= 3
    options = {"temperature": 1.0, "steps": 24, "stop": "never"}
    for kind in ("prefix", "dual"):
        rollout = sample(model, policy, open_space, kv_cache=kind, **options)
        left = canvas.fill_mask & (rollout.canvas.ids == policy.mask_token_id)
        assert bool(left.any())


@pytest.mark.parametrize("kind", ["none", "prefix", "dual"])
def test_the_log_says_what_a_cache_is_off(make_trainer, kind):
    """The tiny model is random: with kept keys its log-probabilities are far off, without them they are the sampler's."""
    rows = [{"prompt": "w1 w2"}, {"prompt": "w9 w8 w7"}] * 4
    sizes = {"max_completion_length": 16, "steps": 16, "block_length": 8, "max_steps": 2}
    trainer = make_trainer(rows=rows, kv_cache=kind, **sizes)
    # As many stop tokens as an untrained model writes would hide what this is about.
    trainer.policy.stop_token_ids = ()
    trainer.train()
    found = trainer.state.log_history
    gaps = [logs["sampling/decoding_gap/mean"] for logs in found if "sampling/decoding_gap/mean" in logs]
    assert len(gaps) == (kind != "none") and all(gap > 0.01 for gap in gaps)
    if kind == "none":
        return
    pipe, window = trainer.pipeline(), trainer._window
    # The same rows, as if their log-probabilities had been drawn with exact forwards.
    for row in window.experiences:
        whole = {"ids": row.ids[None], "fill_mask": row.fill_mask[None], "attention_mask": row.attention_mask[None]}
        own = Canvas(**whole, task="text", token_space=row.token_space)
        for step in row.step_map[row.fill_mask].unique():
            hidden, target = (row.step_map >= step) & row.fill_mask, (row.step_map == step) & row.fill_mask
            with torch.no_grad():
                scores = score_tokens(trainer.model.eval(), trainer.policy, own, hidden[None], target[None])
            row.sampling_logps[target] = scores.logps[0][target]
    metrics = Metrics(by_task=False)
    log_decoding_gap(pipe, window, 0, ["text"], metrics)
    assert metrics.flush()["sampling/decoding_gap/max"] < 1e-4

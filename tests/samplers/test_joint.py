"""A thought and a picture written together: whose turn it is, what either reads, and the law of what is drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch

from unigrpo.models.mmada import MMaDAPolicy
from unigrpo.samplers import Emerge, LeftToRight, MaskGIT, SemiAutoregressive
from unigrpo.samplers.joint import write_together
from unigrpo.types import Rollout, TokenSpace, keyed_generator

from ..support.tiny import tiny_model, tiny_processor


ROWS = [{"prompt": "w7 w8"}, {"prompt": "w7"}]


@pytest.fixture(scope="module")
def loaded():
    model = tiny_model().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)
    return model, MMaDAPolicy.from_model(model, tiny_processor())


def canvases(policy, rows, length=6, image_tokens=16):
    hidden = torch.full((length,), policy.mask_token_id)
    lengths = {"max_completion_length": length, "image_tokens": image_tokens}
    picture = policy.encode([{**row, "thought_ids": hidden} for row in rows], "picture", **lengths)
    return policy.encode(rows, "thought", **lengths), picture


def streams(count, seed=0):
    return [[keyed_generator(span, seed, row) for row in range(count)] for span in ("thought", "picture")]


def written_whatever_stands_beside(write, loaded, samplers) -> Rollout:
    """The pictures of ``ROWS``, once both spans are whole, in their own spaces, and a row alone has the same one."""
    model, policy = loaded
    thought, picture = write(model, policy, canvases(policy, ROWS), samplers, generators=streams(2))
    assert torch.equal(thought.canvas.ids, picture.canvas.ids)
    for own in (thought, picture):
        written = own.canvas.ids[own.completion_mask]
        assert own.canvas.token_space.contains(written).all() and (own.step_map[own.completion_mask] >= 0).all()
    assert picture.completion_mask.sum(dim=1).tolist() == [16, 16]
    alone = [own[:1] for own in streams(2)]
    one = write(model, policy, canvases(policy, ROWS[:1]), samplers, generators=alone)
    assert torch.equal(one[1].canvas.ids[0], picture.canvas.ids[0, picture.canvas.attention_mask[0]])
    return picture


SAMPLERS = {
    "emerge": (SemiAutoregressive(steps=6, block_length=2), Emerge(steps=4, guidance_scale=0.0)),
    "maskgit, guided": (SemiAutoregressive(steps=3, block_length=3), MaskGIT(steps=6, guidance_scale=1.0)),
    "one token a step": (LeftToRight(), Emerge(steps=2, guidance_scale=0.0)),
}


@pytest.mark.smoke
@pytest.mark.parametrize("samplers", SAMPLERS.values(), ids=SAMPLERS)
def test_both_spans_are_written_in_their_own_spaces_whatever_stands_beside_them(loaded, samplers):
    written_whatever_stands_beside(write_together, loaded, samplers)


def test_steps_come_in_turn_and_read_what_the_other_has_written(loaded):
    model, policy = loaded
    seen, progress = [], []

    class Watched(torch.nn.Module):
        def forward(self, **inputs):
            ids = inputs["input_ids"][0]
            holes = [int((ids[own] == policy.mask_token_id).sum()) for own in spans]
            seen.append(("picture" if bool(inputs["select"][0, spans[1]].any()) else "thought", *holes))
            return model(**inputs)

    both = canvases(policy, ROWS[1:])
    spans = [own.fill_mask[0] for own in both]
    samplers = SemiAutoregressive(steps=2, block_length=6, stop="never"), Emerge(steps=4, guidance_scale=0.0)
    write_together(
        Watched(), policy, both, samplers, generators=streams(1), on_step=lambda *done: progress.append(done)
    )
    assert [name for name, *_ in seen] == ["thought", "picture", "picture", "thought", "picture", "picture"]
    assert [thought for _, thought, _ in seen] == [6, 3, 3, 3, 0, 0]
    assert seen[3][2] < 16 and progress[-1] == (6, 6)


def test_what_is_drawn_has_the_law_of_its_turns(loaded):
    """One position each: p(thought | a hidden code) p(code | thought), enumerated on 3 x 3 tokens."""
    model, policy = loaded
    count, few = 4000, [TokenSpace(start=11, stop=14), None]
    few[1] = replace(few[0], start=policy.config.image_token_offset, stop=policy.config.image_token_offset + 3)
    one = canvases(policy, ROWS[1:], 1, 1)
    one = [replace(own, token_space=space) for own, space in zip(one, few, strict=True)]
    spans = [own.fill_mask[0] for own in one]

    def law(ids, span, space):
        return model(input_ids=ids, select=span[None], token_space=space).logits[0].double().softmax(dim=0)

    expected = {}
    with torch.no_grad():
        first = law(one[0].ids, spans[0], few[0])
        for a, b in product(range(3), range(3)):
            ids = one[0].ids.masked_fill(spans[0], few[0].start + a)
            expected[a, b] = float(first[a] * law(ids, spans[1], few[1])[b])
    many = [own.take(torch.zeros(count, dtype=torch.int64)) for own in one]
    samplers = SemiAutoregressive(steps=1, block_length=1), Emerge(steps=1, guidance_scale=0.0)
    thought, _ = write_together(model, policy, many, samplers, generators=streams(count))
    ids = thought.canvas.ids
    drawn = [(ids[:, span] - space.start).flatten().tolist() for span, space in zip(spans, few, strict=True)]
    found = Counter(zip(*drawn, strict=True))
    statistic = sum((found[own] - count * p) ** 2 / (count * p) for own, p in expected.items())
    assert statistic < 27.9, "chi-square of 8 degrees of freedom, one in two thousand"


@dataclass
class Whole:
    """A sampler of one call."""

    def __call__(self, *arguments, **options):
        raise AssertionError


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (Whole(), "sampler Whole writes its span in one call"),
        (SemiAutoregressive(kv_cache="dual"), "kv_cache='dual' keeps"),
    ],
)
def test_samplers_that_cannot_take_turns_are_refused(loaded, sampler, message):
    model, policy = loaded
    with pytest.raises(ValueError, match=message):
        write_together(model, policy, canvases(policy, ROWS), [sampler, Emerge()], generators=streams(2))

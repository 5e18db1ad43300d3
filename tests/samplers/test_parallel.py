"""A thought and a picture in one forward a step: when either acts, what it reads, and the law of what is drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch

from unigrpo.models.forward import Ask
from unigrpo.models.mmada import MMaDAPolicy
from unigrpo.samplers import Emerge, LeftToRight, MaskGIT, SemiAutoregressive
from unigrpo.samplers.answers import Answers
from unigrpo.samplers.joint import begin_on_one_canvas, write_together
from unigrpo.samplers.parallel import ask_together, on_one_clock, picture_times, write_in_parallel
from unigrpo.types import TokenSpace

from ..support.tiny import tiny_model, tiny_processor
from ..support.tiny_policies import example
from ..support.tolerances import FP32
from .test_joint import ROWS, Whole, canvases, streams, written_whatever_stands_beside


@pytest.fixture(scope="module")
def loaded():
    model = tiny_model().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)
    return model, MMaDAPolicy.from_model(model, tiny_processor())


class Counted(torch.nn.Module):
    """A model that counts its forwards and their rows."""

    def __init__(self, model):
        super().__init__()
        self.model, self.rows = model, []

    def forward(self, **inputs):
        self.rows.append(len(inputs["input_ids"]))
        return self.model(**inputs)


def one_block(steps: int, length: int = 6, **keys) -> SemiAutoregressive:
    return SemiAutoregressive(steps=steps, block_length=length, **keys)


def test_a_picture_acts_from_a_quarter_of_the_text_on_and_ends_with_it():
    assert picture_times(12, 5) == [3, 5, 7, 9, 11]
    assert picture_times(8, 1) == [7] and picture_times(4, 3) == [1, 2, 3]
    assert [len(set(picture_times(128, count))) for count in (30, 96)] == [30, 96]
    with pytest.raises(ValueError, match=r"the 4 steps of a picture .* at most 3 steps, or the text more"):
        picture_times(4, 4)


SAMPLERS = {
    "emerge": (one_block(6, 2), Emerge(steps=4, guidance_scale=0.0)),
    "maskgit, guided": (one_block(6), MaskGIT(steps=3, guidance_scale=1.0)),
    "both guided, two ways": (
        one_block(6, guidance_scale=0.5, guidance_direction="away"),
        MaskGIT(steps=5, guidance_scale=1.0, remask_noise="gaussian", remask_noise_decay="compound"),
    ),
}


@pytest.mark.smoke
@pytest.mark.parametrize("samplers", SAMPLERS.values(), ids=SAMPLERS)
def test_both_spans_are_written_whole_whatever_stands_beside_them(loaded, samplers):
    picture = written_whatever_stands_beside(write_in_parallel, loaded, samplers)
    acted = set(picture.step_map[picture.completion_mask].tolist())
    assert acted <= set(picture_times(6, samplers[1].steps)) and 5 in acted


def test_one_forward_a_step_of_the_text_serves_both(loaded):
    """The sizes that MMaDA-Parallel's script has, 128 and 30 steps: 128 forwards, where turns take 158."""
    model, policy = loaded
    both = canvases(policy, ROWS[1:], length=128, image_tokens=64)
    samplers, counts = (one_block(128, 128, stop="never"), MaskGIT(steps=30, guidance_scale=0.0)), []
    for write in (write_in_parallel, write_together):
        counted = Counted(model)
        write(counted, policy, both, samplers, generators=streams(1))
        counts.append(len(counted.rows))
    assert counts == [128, 158]


@pytest.mark.parametrize(
    ("text", "picture", "rows"),
    [(0.0, 0.0, {1}), (0.0, 2.0, {1, 2}), (2.0, 0.0, {2}), (2.0, 2.0, {2, 3})],
)
def test_a_row_without_the_prompt_is_read_only_by_whom_it_guides(loaded, text, picture, rows):
    """MMaDA hides of a picture its thought too, so that two guided spans have a row each."""
    model, policy = loaded
    counted = Counted(model)
    samplers = one_block(6, guidance_scale=text, stop="never"), MaskGIT(steps=3, guidance_scale=picture)
    write_in_parallel(counted, policy, canvases(policy, ROWS[1:]), samplers, generators=streams(1))
    assert set(counted.rows) == rows and len(counted.rows) == 6


@pytest.mark.parametrize("away", [False, True])
def test_a_shared_forward_says_what_one_forward_for_each_span_says(loaded, away):
    """Also of rows of which one span is finished, and beside padding."""
    model, policy = loaded
    samplers = (
        one_block(6, guidance_scale=2.5, guidance_direction="away" if away else "toward", logits_eos_inf=True),
        MaskGIT(steps=3, guidance_scale=4.0),
    )
    rows = [*ROWS, {"prompt": "w3 w4 w5"}]
    writers = begin_on_one_canvas(policy, canvases(policy, rows), samplers, streams(3))
    writers[0].hidden[1], writers[1].hidden[2, ::2] = False, False
    answers = Answers(), Answers()
    ask_together(model, policy, writers, answers)
    for own, answer in zip(writers, answers, strict=True):
        counts = own.hidden.sum(dim=1).tolist()
        active = torch.tensor([row for row, count in enumerate(counts) if count])
        holes, counts = own.hidden[active], [count for count in counts if count]
        alone, space = own.logits(model, active, holes, counts, own.space)
        told = answer(active, holes, space).logits
        assert told.shape == alone.shape and (told - alone).abs().max() <= FP32 * alone.abs().max().clamp(max=1e4)


def test_guidance_away_is_guidance_toward_with_the_other_sign(loaded):
    """c + s (u - c), where the other is c + s (c - u): open columns of both have the mean c."""
    model, policy = loaded
    canvas = canvases(policy, ROWS[1:])[0]
    space, found = canvas.token_space, []
    for keys in ({}, {"guidance_direction": "away"}):
        writer = one_block(6, guidance_scale=2.5, **keys).begin(policy, canvas, streams(1)[0])
        found.append(writer.logits(model, torch.tensor([0]), canvas.fill_mask, [6], space)[0])
    plain = model(**policy.inputs(canvas), select=canvas.fill_mask, token_space=space).logits
    toward, away, plain = (own[:, plain[0] > -1e9] for own in (*found, plain))
    assert ((toward + away) / 2 - plain).abs().max() <= 1e-4 and (toward - away).abs().max() > 1


def test_spans_that_do_not_read_each_other_are_written_as_each_alone(loaded):
    """Without attention a hole is drawn from the same law whatever stands around it: the same streams give the same tokens."""
    model, policy = tiny_model().eval(), loaded[1]
    with torch.no_grad():
        for block in model.model.transformer["blocks"]:
            block.attn_out.weight.zero_()
    both = canvases(policy, ROWS)
    samplers = one_block(6, stop="never"), MaskGIT(steps=3, guidance_scale=1.0)
    found = write_in_parallel(model, policy, both, samplers, generators=streams(2))
    text = samplers[0](model, policy, both[0], generators=streams(2)[0])
    span = both[0].fill_mask
    assert torch.equal(found[0].canvas.ids[span], text.canvas.ids[span])
    picture = on_one_clock(samplers)[1]
    writer = picture.begin(policy, both[1], streams(2)[1])
    assert list(picture.advance(model, writer, streams(2)[1], at=[1, 3, 5])) == [(2, 6), (4, 6), (6, 6)]
    # One stream a span was begun above, and its first numbers are those of the first step.
    assert torch.equal(found[1].canvas.ids[both[1].fill_mask], writer.ids[both[1].fill_mask])
    assert torch.equal(found[1].step_map, writer.step_map)


def test_what_is_drawn_has_the_law_of_shared_forwards(loaded):
    """Two tokens of text and a code in two steps, enumerated on 3 x 3 x 3: the surer of two drawn tokens is kept, then one forward
    gives the other and the code, neither of which reads the other."""
    model, policy = loaded
    count, few = 4000, [TokenSpace(start=11, stop=14), None]
    few[1] = replace(few[0], start=policy.config.image_token_offset, stop=policy.config.image_token_offset + 3)
    one = [replace(own, token_space=space) for own, space in zip(canvases(policy, ROWS[1:], 2, 1), few, strict=True)]
    spans = [own.fill_mask[0] for own in one]
    places = spans[0].nonzero().squeeze(1)

    def law(ids, span, space):
        return model(input_ids=ids, select=span[None], token_space=space).logits.double().softmax(dim=1)

    expected = Counter()
    with torch.no_grad():
        first = law(one[0].ids, spans[0], few[0])
        for a, b in product(range(3), range(3)):
            kept, token = (0, a) if first[0, a] >= first[1, b] else (1, b)
            ids = one[0].ids.clone()
            ids[0, places[kept]] = few[0].start + token
            left = torch.zeros_like(spans[0]).index_fill(0, places[1 - kept], True)
            other, code = law(ids, left, few[0])[0], law(ids, spans[1], few[1])[0]
            for c, d in product(range(3), range(3)):
                pair = (token, c) if kept == 0 else (c, token)
                expected[*pair, d] += float(first[0, a] * first[1, b] * other[c] * code[d])
    many = [own.take(torch.zeros(count, dtype=torch.int64)) for own in one]
    samplers = one_block(2, 2), Emerge(steps=1, guidance_scale=0.0)
    thought, _ = write_in_parallel(model, policy, many, samplers, generators=streams(count))
    ids = thought.canvas.ids
    drawn = torch.cat([ids[:, spans[0]] - few[0].start, ids[:, spans[1]] - few[1].start], dim=1)
    found = Counter(map(tuple, drawn.tolist()))
    assert sum(expected.values()) == pytest.approx(1) and found.keys() <= expected.keys()
    statistic = sum((found[own] - count * p) ** 2 / (count * p) for own, p in expected.items())
    assert statistic < 56, "chi-square of 26 degrees of freedom, one in two thousand"


@pytest.mark.parametrize(
    ("samplers", "message"),
    [
        ((Whole(), Emerge()), "sampler Whole has no number of steps"),
        ((LeftToRight(), Emerge()), "sampler LeftToRight has no number of steps"),
        ((one_block(6), Whole()), "sampler Whole takes every one of its steps"),
        ((one_block(6), Emerge(steps=6)), "at most 5 steps"),
        ((one_block(6, kv_cache="dual"), Emerge(steps=2)), "kv_cache='dual' keeps"),
    ],
)
def test_samplers_that_cannot_share_forwards_are_refused(loaded, samplers, message):
    model, policy = loaded
    with pytest.raises(ValueError, match=message):
        write_in_parallel(model, policy, canvases(policy, ROWS), samplers, generators=streams(2))


def test_logits_that_are_not_there_are_not_made_up(loaded):
    answers = Answers()
    answers.hold(torch.ones(1, 2, dtype=torch.bool), torch.zeros(2, 3), TokenSpace(start=4, stop=7))
    with pytest.raises(ValueError, match=r"the shared forward has logits of .* a sampler asks for"):
        answers(torch.tensor([0]), torch.ones(1, 2, dtype=torch.bool), None)


def test_any_hugging_face_masked_model_answers_several_readers():
    """``MaskedDiffusionMixin`` makes all logits and cuts them, in fp32, for each."""
    model, _ = example.build()
    ids = (torch.arange(6)[None] % model.config.vocab_size).repeat(2, 1)
    own, other = torch.zeros(2, 2, 6, dtype=torch.bool)
    own[:, :2], other[0, 3:] = True, True
    space = TokenSpace(start=2, stop=model.config.vocab_size - 1)
    first, second = model.eval()(ids, asks=[Ask(own, space, 1.5), Ask(other)]).answers
    assert torch.equal(first, model(ids, select=own, token_space=space, guidance_scale=1.5).logits)
    assert torch.equal(second, model(ids, select=other).logits) and len(first) == 2 and len(second) == 3

"""The conformance suite over every policy: MMaDA, LLaDA, a masked LM of Hugging Face, one with shifted logits, one with
block-causal attention and one without a mask id.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import BertForMaskedLM

from unigrpo.models import (
    MaskedDiffusionMixin,
    MMaDAPolicy,
    MMaDAProcessor,
    policy_class_of,
    resolve_policy,
)
from unigrpo.models.llada.policy import LLaDAPolicy
from unigrpo.models.mmada.policy import MMaDAPolicy as ListedMMaDA
from unigrpo.testing import check_policy
from unigrpo.testing.likelihood import score, some_hidden
from unigrpo.testing.policy import TEMPERATURE, sampled
from unigrpo.types import TokenSpace

from ..support.tiny import golden_tokenizer, prompts, tiny_llada, tiny_model, tiny_processor
from ..support.tiny_decoders import DECODERS, tiny_decoder
from ..support.tiny_policies import BLOCK, UniformNoisePolicy, block_causal, example, uniform_noise


class ShiftedLogits(BertForMaskedLM):
    """A bidirectional model whose logits at position i predict token i + 1."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        return replace(output, logits=output.logits.roll(-1, dims=1))


class ShiftedModel(MaskedDiffusionMixin, ShiftedLogits):
    pass


class ShiftedPolicy(example.BertPolicy):
    """Its token space is the example's, written as a range with two ids left out."""

    logit_shift = 1

    def token_space(self, task):
        return TokenSpace(start=0, stop=self.config.vocab_size, exclude=(self.pad_token_id, self.mask_token_id))


def mmada():
    model = tiny_model()
    return model, MMaDAPolicy(model.config, tiny_processor()), prompts(3)


def mmada_attending_padding():
    model, _, rows = mmada()
    model.config.attn_mask_mode = "none"
    return model, MMaDAPolicy(model.config, tiny_processor()), rows


def llada(**fields):
    model = tiny_llada(**fields)
    return model, LLaDAPolicy(model.config, MMaDAProcessor(golden_tokenizer())), prompts(3)


def llada_with_a_tied_head():
    return llada(weight_tying=True)


EXAMPLE_ROWS = [{"prompt": "say red"}, {"prompt": "please say blue"}, {"prompt": "say"}]


def bert():
    torch.manual_seed(0)
    model, tokenizer = example.build()
    return model.eval(), example.BertPolicy(model.config, tokenizer), EXAMPLE_ROWS


def shifted():
    plain, policy, rows = bert()
    model = ShiftedModel(plain.config)
    model.load_state_dict(plain.state_dict())
    return model.eval(), ShiftedPolicy(plain.config, policy.processor), rows


def mmada_reading_images():
    """Every row asks about its own 16 codes."""
    model, policy, rows = mmada()
    codes = torch.randint(64, (3, 16), generator=torch.Generator().manual_seed(1))
    return model, policy, [{**row, "image_codes": own} for row, own in zip(rows, codes, strict=True)]


FAMILIES = [mmada, mmada_attending_padding, llada, llada_with_a_tied_head, bert, shifted, uniform_noise]


@pytest.mark.smoke
@pytest.mark.parametrize("build", FAMILIES)
def test_policy_conforms(build):
    model, policy, rows = build()
    check_policy(policy, model, rows)


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_of_transformers_conform(name):
    model, policy = tiny_decoder(name)
    check_policy(policy, model, prompts(3), block_length=model.config.block_size)


def test_policy_conforms_when_it_sees_no_later_block():
    model, policy, rows = block_causal()
    check_policy(policy, model, rows, block_length=BLOCK)


def test_policy_conforms_when_it_reads_images():
    model, policy, rows = mmada_reading_images()
    check_policy(policy, model, rows, task="mmu")


def test_policy_conforms_when_it_makes_images():
    """Captions are padded with their own id, and both samplers record the likelihood."""
    model, policy, rows = mmada()
    padding = model.config.special_token_ids["ipad"]
    assert padding != policy.pad_token_id
    check_policy(policy, model, rows, task="t2i", padding=padding)


def test_the_image_that_is_asked_about_counts():
    """Every code of the image reaches the scores of the answer, and the codes of other rows do not."""
    model, policy, rows = mmada_reading_images()
    rollout = sampled(policy, model, rows, "mmu")
    canvas, (hidden, target) = rollout.canvas, some_hidden(rollout)
    expected = score(policy, model, canvas, hidden, target, TEMPERATURE)
    offset = model.config.image_token_offset
    first = canvas.ids[0] >= offset
    assert int(first.sum()) == 16
    for place in first.nonzero().flatten().tolist():
        ids = canvas.ids.clone()
        ids[0, place] = offset + (ids[0, place] - offset + 1) % 64
        moved = score(policy, model, replace(canvas, ids=ids), hidden, target, TEMPERATURE) - expected
        moved = moved.abs().amax(1)
        assert moved[0] > 1e-5 and not moved[1:].any()


def test_a_shifted_model_is_the_same_policy_as_the_unshifted_one():
    runs = [sampled(policy, model, rows, "text") for model, policy, rows in (bert(), shifted())]
    assert torch.equal(runs[0].canvas.ids, runs[1].canvas.ids)
    assert torch.equal(runs[0].step_map, runs[1].step_map)


def test_a_shifted_model_cannot_write_the_first_position():
    _, policy, _ = shifted()
    with pytest.raises(ValueError, match="first position"):
        policy.rows(torch.tensor([[True, False]]))
    assert policy.rows(torch.tensor([[False, True, True]])).tolist() == [[True, True, False]]


def test_llada_writes_what_its_tokenizer_can_decode():
    _, policy, _ = llada()
    assert policy.token_space("text") == TokenSpace(start=0, stop=197, exclude=(184,))
    assert policy.stop_token_ids == (161, 196)


# ---- the suite must be able to fail ----


class WrongShift(ShiftedPolicy):
    logit_shift = 0


class NoPositions(example.BertPolicy):
    def encode(self, rows, task="text", **lengths):
        return replace(super().encode(rows, task, **lengths), position_ids=None)


class ShowsHidden(example.BertPolicy):
    def inputs(self, canvas, hidden=None, noisy_ids=None):
        return super().inputs(canvas, None, noisy_ids)


class IgnoresPadding(example.BertPolicy):
    def inputs(self, canvas, hidden=None, noisy_ids=None):
        inputs = super().inputs(canvas, hidden, noisy_ids)
        return {**inputs, "attention_mask": torch.ones_like(canvas.attention_mask)}


class MayWriteTheMask(example.BertPolicy):
    def token_space(self, task):
        return TokenSpace(start=self.mask_token_id, stop=self.config.vocab_size)


class HidesThePrompt(example.BertPolicy):
    def inputs(self, canvas, hidden=None, noisy_ids=None):
        inputs = super().inputs(canvas, hidden, noisy_ids)
        return {**inputs, "input_ids": inputs["input_ids"].masked_fill(canvas.fill_mask, self.mask_token_id)}


BROKEN = {
    WrongShift: "is logit_shift right",
    NoPositions: "without its padding scores .* apart",
    ShowsHidden: "tokens that are hidden move the scores",
    IgnoresPadding: "without its padding scores .* apart",
    MayWriteTheMask: "the mask id 1 lies in .* and could be written",
    HidesThePrompt: "a visible token behind the scored one",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_policy_is_told_what_is_wrong(broken):
    model, policy, rows = shifted() if broken is WrongShift else bert()
    with pytest.raises(AssertionError, match=f"{broken.__name__}, task 'text': .*{BROKEN[broken]}"):
        check_policy(broken(model.config, policy.processor), model, rows)


class ShowsTheAnswer(UniformNoisePolicy):
    def inputs(self, canvas, hidden=None, noisy_ids=None):
        return super().inputs(canvas, hidden)


class DrawsItsOwnNoise(UniformNoisePolicy):
    def inputs(self, canvas, hidden=None, noisy_ids=None):
        noise = torch.randint_like(canvas.ids, 1, self.config.vocab_size)
        return super().inputs(canvas, hidden, torch.where(hidden, noise, canvas.ids))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (ShowsTheAnswer, "tokens that are hidden move the scores"),
        (DrawsItsOwnNoise, "off the softmax of the full logits"),
    ],
)
def test_a_broken_policy_without_a_mask_id_is_told(broken, message):
    model, policy, rows = uniform_noise()
    with pytest.raises(AssertionError, match=message):
        check_policy(broken(model.config, policy.processor), model, rows)


def test_block_causal_is_told_from_bidirectional():
    model, policy, rows = bert()
    with pytest.raises(AssertionError, match="of a later block moves the score"):
        check_policy(policy, model, rows, block_length=BLOCK)
    model, policy, rows = block_causal()
    with pytest.raises(AssertionError, match="a visible token behind the scored one"):
        check_policy(policy, model, rows)


class ForgetsTheMask(MMaDAPolicy):
    """Attends the padding before a caption."""

    def inputs(self, canvas, hidden=None, noisy_ids=None):
        inputs = super().inputs(canvas, hidden, noisy_ids)
        return {**inputs, "attention_mask": torch.ones_like(canvas.attention_mask)}


class HidesTheImageToMake(MMaDAPolicy):
    def inputs(self, canvas, hidden=None, noisy_ids=None):
        return super().inputs(canvas, canvas.fill_mask, noisy_ids)


class GuidesByAnotherCaption(MMaDAPolicy):
    """The twin in the stacked inputs is not the one that ``guidance_canvas`` gives."""

    def guided_inputs(self, canvas, hidden, noisy_ids=None, twins=None):
        return super().guided_inputs(canvas, hidden, noisy_ids, [canvas])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (ForgetsTheMask, "without its padding scores"),
        (HidesTheImageToMake, "a visible token behind the scored one"),
        (GuidesByAnotherCaption, "guided log-probabilities are .* off"),
    ],
)
def test_a_broken_policy_of_images_is_told(broken, message):
    model, policy, _ = mmada()
    wrong = broken(model.config, policy.processor)
    with pytest.raises(AssertionError, match=message):
        check_policy(wrong, model, prompts(3), task="t2i", padding=model.config.special_token_ids["ipad"])


# ---- names ----


def test_policies_are_found_by_name_path_model_type_or_class():
    model, policy, _ = mmada()
    assert resolve_policy("mmada") is policy_class_of(model) is ListedMMaDA is type(policy)
    assert policy_class_of(llada()[0]) is LLaDAPolicy
    assert policy_class_of(bert()[0]) is example.BertPolicy
    assert policy_class_of(model, "unigrpo.models.llada.policy:LLaDAPolicy") is LLaDAPolicy
    for name, message in (("mmadaa", "unknown"), ("no.such:Thing", "imported"), ("unigrpo.models:Nope", "imported")):
        with pytest.raises(ValueError, match=message):
            resolve_policy(name)
    with pytest.raises(ValueError, match="no policy is known for Linear"):
        policy_class_of(torch.nn.Linear(1, 1))

"""MMaDA-Parallel-M against its public code, number for number; its rows; that it keeps the promises of a policy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from unigrpo import load_policy
from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.config.denoising_presets import objectives_of
from unigrpo.errors import CheckpointError
from unigrpo.models import (
    MMaDAConfig,
    MMaDAParallelMConfig,
    MMaDAParallelMForMaskedDiffusion,
    MMaDAPolicy,
    load_model,
)
from unigrpo.models.nearest import config_of, family_of
from unigrpo.samplers import MaskGIT, SemiAutoregressive
from unigrpo.samplers.base import signed_guidance
from unigrpo.samplers.parallel import write_in_parallel
from unigrpo.samplers.parity import PublicImageSampler, PublicTextSampler
from unigrpo.testing import check_policy
from unigrpo.testing.likelihood import check_draws, check_gradient, check_guidance, check_hidden_ids, check_scores
from unigrpo.testing.policy import emerge, maskgit, sampled, semi_autoregressive
from unigrpo.types import TokenSpace, keyed_generator

from ..algorithm.test_denoising import loss
from ..support.tiny import prompts, tiny_config_fields
from ..support.tiny_decoders import family_golden
from ..support.tiny_parallel import (
    IDS,
    OFFSET,
    SPECIAL,
    edits,
    recorded_parallel,
    recorded_tokenizer,
    tiny_parallel,
)
from ..support.tolerances import assert_rounding


pytestmark = pytest.mark.golden

LENGTHS = {"max_completion_length": 13, "image_tokens": 20}
"""Of the recorded rows: 14 places a text with its bos, 20 codes a picture."""


def recorded() -> dict[str, torch.Tensor]:
    return load_file(family_golden("mmada_parallel_m") / "golden.safetensors")


@pytest.mark.smoke
@torch.no_grad()
def test_logits_match_the_public_code_without_its_mask():
    (model, _), arrays = recorded_parallel(), recorded()
    assert_rounding(model(arrays["loss.input_ids"]).logits, arrays["logits_no_mask"])


# ---- which family a file is of ----


def test_a_published_checkpoint_is_of_this_family_when_it_is_named_so():
    """Its files say what MMaDA's say. Saved again they say which of the two it was."""
    folder = str(family_golden("mmada_parallel_m"))
    assert family_of(folder) == "mmada"
    fields = {"special_token_ids": SPECIAL, "image_token_offset": OFFSET}
    assert type(config_of(folder, **fields)) is MMaDAConfig
    assert type(config_of(folder, "mmada_parallel_m", **fields)) is MMaDAParallelMConfig
    # Of any other type transformers warns.
    assert MMaDAParallelMConfig.get_config_dict(folder)[0]["model_type"] == "mmada_parallel_m"
    opened = load_policy(
        folder,
        policy="mmada_parallel_m",
        processing_class=recorded_tokenizer(),
        device="cpu",
        bos_token_id=120,
        **fields,
    )
    assert isinstance(opened.model, MMaDAParallelMForMaskedDiffusion)
    assert MMaDAParallelMConfig().special_token_ids == {**MMaDAConfig().special_token_ids, "interleave": 126095}


def test_what_was_saved_opens_by_itself_and_not_as_mmada(tmp_path):
    model, policy = tiny_parallel()
    model.save_pretrained(tmp_path)
    policy.processor.save_pretrained(tmp_path)
    assert family_of(str(tmp_path)) == "mmada_parallel_m"
    again = load_policy(str(tmp_path), device="cpu")
    assert type(again.policy) is type(policy) and again.model.config.special_token_ids["interleave"] == 175
    ids = torch.arange(6)[None]
    assert torch.equal(load_model(str(tmp_path))(ids).logits, model(ids).logits)
    with pytest.raises(CheckpointError, match="this is a mmada_parallel_m checkpoint, opened as mmada"):
        load_policy(str(tmp_path), policy="mmada")


# ---- rows ----


def words(ids: torch.Tensor) -> str:
    return " ".join(f"w{own}" for own in ids.tolist())


def recorded_row(arrays) -> dict:
    prompt = arrays["gen.input_ids"][0]
    return {"prompt": words(prompt[24:32]), "image_codes": prompt[2:22] - OFFSET}


def test_rows_are_the_recorded_ones():
    (_, policy), arrays = recorded_parallel(), recorded()
    row = recorded_row(arrays)
    drawn = [SPECIAL["soi"], *[IDS["mask"]] * 20, SPECIAL["eoi"], IDS["bos"], *[IDS["mask"]] * 13]
    expected = torch.cat([arrays["gen.input_ids"], torch.tensor([drawn])], dim=1)
    without = torch.cat([arrays["gen.uncond_input_ids"], torch.tensor([drawn])], dim=1)
    thought = policy.encode([row], "thought", **LENGTHS)
    picture = policy.encode([{**row, "thought_ids": torch.full((13,), IDS["mask"])}], "picture", **LENGTHS)
    for own, places in ((thought, slice(60, 73)), (picture, slice(38, 58))):
        assert torch.equal(own.ids, expected) and bool(own.attention_mask.all())
        assert own.fill_mask[0].nonzero().squeeze(1).tolist() == list(range(73))[places]
        assert torch.equal(policy.guidance_canvas(own).ids, without)
        imageless = torch.where(torch.arange(73) < 22, without, expected)
        assert torch.equal(policy.imageless_canvas(own).ids, imageless)
    longer = policy.encode([row], "thought", **LENGTHS, max_prompt_length=20)
    assert longer.ids.shape[1] == 79 and longer.ids[0, 23:43].tolist() == [*expected[0, 23:37], *[IDS["eos"]] * 6]
    assert torch.equal(policy.imageless_canvas(longer).ids[:, 22:], longer.ids[:, 22:])


def test_a_row_to_train_on_is_the_recorded_one():
    """Of the second recorded row, whose text is not padded."""
    (_, policy), arrays = recorded_parallel(), recorded()
    noisy, labels = arrays["loss.input_ids"][1], arrays["loss.labels"][1]
    clean = torch.where(labels == -100, noisy, labels)
    row = {"prompt": words(clean[24:36]), "image_codes": clean[2:22] - OFFSET, "edited_codes": clean[38:58] - OFFSET}
    used = len(policy.processor.encode_prompt(row["prompt"], "r2i"))
    canvas = policy.encode_thought(row, clean[60:68].tolist(), used + 13)
    assert torch.equal(canvas.ids[0], clean)
    places = canvas.fill_mask[0].nonzero().squeeze(1).tolist()
    assert places == [*range(38, 58), *range(60, 73)]
    without = policy.guidance_canvas(canvas).ids[0]
    assert torch.equal(without[:37], arrays["gen.uncond_input_ids"][0]) and torch.equal(without[37:], clean[37:])


def test_an_instruction_with_marks_in_it_moves_nothing():
    """A prompt may spell a mark's id; the layout's come first."""
    (_, policy), arrays = recorded_parallel(), recorded()
    row = {
        **recorded_row(arrays),
        "prompt": words(torch.tensor([SPECIAL["eoi"], 5, SPECIAL["soi"], SPECIAL["interleave"]])),
    }
    picture = policy.encode([{**row, "thought_ids": torch.full((13,), SPECIAL["soi"])}], "picture", **LENGTHS)
    for own in (policy.encode([row], "thought", **LENGTHS), picture):
        twin = policy.guidance_canvas(own).ids[0]
        assert torch.equal(twin[:37], recorded()["gen.uncond_input_ids"][0]) and torch.equal(
            twin[37:], own.ids[0, 37:]
        )


def test_errors():
    (_, policy), arrays = recorded_parallel(), recorded()
    row = recorded_row(arrays)
    with pytest.raises(
        ValueError, match=r"show \[0\] codes of a picture to edit, and one of 20 is made: give each row an 'image'"
    ):
        policy.encode([{"prompt": "w1"}], "thought", **LENGTHS)
    with pytest.raises(ValueError, match=r"show \[20\] codes .* one of 16 is made"):
        policy.encode([row], "thought", max_completion_length=13, image_tokens=16)
    with pytest.raises(ValueError, match="prompt of 13 tokens is longer than the 12 that fit"):
        policy.encode([{**row, "prompt": "w1 " * 13}], "thought", **LENGTHS)
    with pytest.raises(ValueError, match="thinks while it edits: give rows with a picture to edit task 'r2i'"):
        policy.encode([row], "i2i", image_tokens=20)
    with pytest.raises(ValueError, match="give the one to make as 'edited_image'"):
        policy.encode_thought(row, [1], 20)
    with pytest.raises(ValueError, match="special_token_ids lacks 'interleave'"):
        MMaDAParallelMConfig(special_token_ids=tiny_config_fields()["special_token_ids"])


# ---- what is written, in parallel ----

WRITTEN = {
    "greedy_text0_image4": (0.0, 4.0, 0.0),
    "greedy_text2.5_image4": (2.5, 4.0, 0.0),
    "sampled_text0_image3.5": (0.0, 3.5, 1.0),
}
"""Guidance of text (away from the prompt) and picture, temperature of the picture."""


@pytest.mark.parametrize("case", WRITTEN)
def test_text_and_picture_are_what_the_public_code_writes(case):
    """All 12 steps. The public code draws texts from the whole vocabulary; it leaves a mask in its last row, but not in its codes."""
    (model, policy), arrays = recorded_parallel(), recorded()
    away, toward, temperature = WRITTEN[case]
    row = recorded_row(arrays)
    thought = policy.encode([row], "thought", **LENGTHS)
    thought = replace(thought, token_space=TokenSpace(start=0, stop=model.config.vocab_size))
    picture = policy.encode([{**row, "thought_ids": torch.full((13,), IDS["mask"])}], "picture", **LENGTHS)
    samplers = (
        PublicTextSampler(
            steps=12, block_length=13, temperature=0.0, stop="never", guidance_scale=away, guidance_direction="away"
        ),
        PublicImageSampler(steps=5, temperature=temperature, guidance_scale=toward, remask_temperature=temperature),
    )
    stream = torch.Generator().manual_seed(41015)
    text, image = write_in_parallel(model, policy, [thought, picture], samplers, generators=[[stream], [stream]])
    step_map, fill = torch.maximum(text.step_map, image.step_map), thought.fill_mask | picture.fill_mask
    found = text.canvas.ids.masked_fill(fill & (step_map >= torch.arange(12)[:, None]), IDS["mask"])
    assert torch.equal(found, arrays[f"gen.{case}.history"].long())
    assert torch.equal(text.canvas.ids[:, 59:], arrays[f"gen.{case}.text_ids"])
    assert torch.equal(image.completions[0][None], arrays[f"gen.{case}.image_codes"])


# ---- the losses of fine-tuning ----


def test_losses_of_the_public_code():
    """Its text loss is a sum over rows, divided by the places of a text with its bos; its picture loss a mean over codes and both marks."""
    (model, policy), arrays = recorded_parallel(), recorded()
    noisy, labels = arrays["loss.input_ids"], arrays["loss.labels"]
    clean, place = torch.where(labels == -100, noisy, labels), torch.arange(73).expand(2, -1)
    hidden, law = noisy == IDS["mask"], objectives_of("mmada_parallel_m")["picture"].ratio
    assert [law(own) for own in arrays["loss.t"].tolist()] == pytest.approx(
        arrays["loss.mask_prob"].tolist(), abs=2**-23
    )
    assert torch.equal(hidden[:, 38:58], arrays["loss.image_masked"].bool())
    assert torch.equal(hidden[:, 59:], arrays["loss.text_masked"].bool())
    trained = {"thought": place >= 60, "picture": (place > 37) & (place < 58)}
    found, ratios = {}, arrays["loss.mask_prob"].double()
    for span, own in trained.items():
        # One draw hides codes and words, and each of the two losses reads what the other hides as hidden.
        other_hidden = torch.where(own, clean, noisy)
        found[span] = loss(model, policy, objectives_of("mmada_parallel_m")[span], other_hidden, noisy, own, ratios)
    text, image = found["thought"] * 2 * 13 / 14, found["picture"] * 20 / 22
    assert text.item() == pytest.approx(arrays["loss.text_no_mask"].item(), rel=1e-5)
    assert image.item() == pytest.approx(arrays["loss.image_no_mask"].item(), rel=1e-5)
    (text + image).backward()
    gradient = model.model.transformer.blocks[0].q_proj.weight.grad
    assert_rounding(gradient, arrays["loss.grad_q0_text_plus_image_no_mask"], 1e-4)


# ---- promises ----


@pytest.mark.parametrize("task", ["text", "mmu", "t2i"])
def test_layouts_that_are_mmadas_conform(task):
    model, policy = tiny_parallel()
    rows = edits(3, 16) if task == "mmu" else prompts(3)
    padding = policy.config.special_token_ids["ipad"] if task == "t2i" else None
    check_policy(policy, model, rows, task=task, padding=padding)
    canvas = policy.encode(rows, task, **({"image_tokens": 16} if task == "t2i" else {"max_completion_length": 4}))
    assert torch.equal(policy.guidance_canvas(canvas).ids, MMaDAPolicy.guidance_canvas(policy, canvas).ids)


@pytest.mark.parametrize("span", ["thought", "picture"])
def test_spans_conform(span):
    """All rows are as long, so that ``check_policy``, which looks for padding, is taken apart."""
    model, policy = tiny_parallel()
    rows = [{**row, "thought_ids": torch.full((8,), policy.mask_token_id)} for row in edits(3, 8)]
    for sampler in (semi_autoregressive,) if span == "thought" else (emerge, maskgit):
        rollout = sampled(policy, model, rows, span, sampler)
        for check in (check_scores, check_draws, check_guidance, check_hidden_ids, check_gradient):
            check(policy, model, rollout, 0.7)


@pytest.mark.parametrize("scale", [0.0, 1.5, (1.5, 0.5)])
def test_what_one_forward_wrote_has_the_likelihood_of_joint_noise(scale):
    """Both spans in one step: sampling and likelihood, with all of both hidden, are one law, guided or not."""
    model, policy = tiny_parallel()
    hidden_thought = torch.full((6,), policy.mask_token_id)
    rows, lengths = edits(3, 16), {"max_completion_length": 6, "image_tokens": 16}
    both = [
        policy.encode(rows, "thought", **lengths),
        policy.encode([{**row, "thought_ids": hidden_thought} for row in rows], "picture", **lengths),
    ]
    first, second = scale if isinstance(scale, tuple) else (scale, 0.0)
    samplers = (
        SemiAutoregressive(steps=1, block_length=6, stop="never", guidance_scale=first, guidance_direction="away"),
        MaskGIT(steps=1, guidance_scale=first, image_guidance_scale=second),
    )
    streams = [[keyed_generator(span, row) for row in range(3)] for span in ("thought", "picture")]
    found = write_in_parallel(model, policy, both, samplers, generators=streams)
    hidden = both[0].fill_mask | both[1].fill_mask
    for own, sampler in zip(found, samplers, strict=True):
        target, law = own.canvas.fill_mask, signed_guidance(sampler) or None
        scores = score_tokens(model, policy, own.canvas, hidden, target, guidance_scale=law)
        assert (scores.logps - own.sampling_logps)[target].abs().max() < 2e-4
        assert (own.sampling_logps[target] < -0.1).any()

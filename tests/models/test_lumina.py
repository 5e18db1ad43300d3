"""Lumina-DiMOO against its public code, number for number; its layouts; that it keeps the promises of a policy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from unigrpo.config.denoising_presets import objectives_of
from unigrpo.models.lumina import LuminaConfig, layouts
from unigrpo.samplers.parity import PublicLuminaSampler, PublicTextSampler
from unigrpo.testing import check_policy
from unigrpo.types import TokenSpace

from ..algorithm.test_denoising import loss
from ..support.tiny_decoders import family_golden
from ..support.tiny_lumina import CODES, FIELDS, MASK, OFFSET, PAD, SPECIAL, lumina_rows, lumina_tokenizer, tiny_lumina
from ..support.tolerances import assert_rounding


pytestmark = pytest.mark.golden

GRID = (4, 6)
ASKED = [{"role": "system", "content": ""}, {"role": "user", "content": "w30 w48 w74 w72 w52"}]
"""The recorded prompt: its system text is empty."""


def recorded() -> dict[str, torch.Tensor]:
    return load_file(family_golden("lumina_dimoo") / "golden.safetensors")


@pytest.mark.smoke
@torch.no_grad()
def test_logits_match_the_public_code_with_padding_attended_and_a_row_alone():
    arrays = recorded()
    ids, mask = arrays["input_ids"], arrays["attention_mask"].bool()
    attends, _ = tiny_lumina(attn_mask_mode="none")
    assert_rounding(attends(ids, attention_mask=mask).logits, arrays["logits_no_mask"])
    masked, _ = tiny_lumina()
    assert_rounding(masked(ids, attention_mask=mask).logits[1, :38], arrays["logits_row1_alone"][0])


def test_a_published_checkpoint_is_known_by_its_architecture():
    from unigrpo import load_policy
    from unigrpo.models import LuminaForMaskedDiffusion
    from unigrpo.models.nearest import config_of, family_of

    folder = str(family_golden("lumina_dimoo"))
    assert family_of(folder) == "lumina_dimoo" and isinstance(config_of(folder), LuminaConfig)
    opened = load_policy(folder, processing_class=lumina_tokenizer(), device="cpu", **FIELDS)
    assert isinstance(opened.model, LuminaForMaskedDiffusion)
    assert opened.policy.token_space("t2i") == TokenSpace(start=OFFSET, stop=OFFSET + CODES)
    assert LuminaConfig().vocab_size == 126356 + 8192 == LuminaConfig().image_token_offset + 8192


def encoded(policy, task: str, **lengths):
    arrays = recorded()
    row = {"prompt": ASKED}
    if task != "t2i":
        start = arrays[f"{task}.prompt"][0].tolist().index(SPECIAL["boi"]) + 1
        image = arrays[f"{task}.prompt"][0, start : start + 28].reshape(4, 7)[:, :6]
        row |= {"image_codes": image.flatten() - OFFSET, "image_grid": GRID}
    return policy.encode([row], task, **lengths)


def test_canvases_are_the_public_layouts():
    """Of the recorded prompts; the row without a caption has no gap, and its picture stays in place."""
    (_, policy), arrays = tiny_lumina(), recorded()
    canvas = encoded(policy, "t2i", image_grid=GRID)
    assert torch.equal(canvas.ids, arrays["t2i.prompt"])
    assert torch.equal(canvas.fill_mask, arrays["t2i.prompt"] == MASK)
    twin = policy.guidance_canvas(canvas)
    without = torch.cat([arrays["t2i.uncond_prompt"], arrays["t2i.prompt"][:, 9:]], dim=1)
    assert torch.equal(twin.ids[twin.attention_mask][None], without)
    assert twin.attention_mask[0].tolist() == [False] * 4 + [True] * 37
    asked = encoded(policy, "mmu", max_completion_length=16)
    assert torch.equal(asked.ids[:, :40], arrays["mmu.prompt"]) and bool((asked.ids[:, 40:] == MASK).all())
    hidden = policy.guidance_canvas(asked)
    assert bool((hidden.ids == MASK).all())


def test_the_canvas_of_an_edit_and_its_twins_are_the_public_layouts():
    """The row without the instruction keeps the picture, the row without the picture the instruction; the answer stays in place."""
    (_, policy), arrays = tiny_lumina(), recorded()
    canvas = encoded(policy, "i2i", image_grid=GRID)
    assert torch.equal(canvas.ids, arrays["i2i.prompt"])
    assert torch.equal(canvas.fill_mask, arrays["i2i.prompt"] == MASK)
    finished = replace(canvas, ids=canvas.ids.masked_fill(canvas.fill_mask, OFFSET + 3))
    for own in (canvas, finished):
        twins = policy.guidance_twins(own, (2.5, 4.0))
        for twin, prefix in zip(twins, ("i2i.uncond_text", "i2i.uncond_image"), strict=True):
            expected = torch.cat([arrays[prefix], own.ids[:, 39:]], dim=1)
            assert torch.equal(twin.ids[twin.attention_mask][None], expected)
            assert twin.attention_mask[0].tolist() == [False] * (71 - expected.shape[1]) + [True] * expected.shape[1]
            assert torch.equal(twin.fill_mask, own.fill_mask)
    with pytest.raises(ValueError, match="no row of task 't2i' without the prompt's picture"):
        policy.imageless_canvas(encoded(policy, "t2i", image_grid=GRID))


def test_the_row_without_a_caption_is_the_same_in_a_batch():
    _, policy = tiny_lumina()
    rows = lumina_rows("t2i", 3)
    together = policy.guidance_canvas(policy.encode(rows, "t2i", image_grid=(2, 3)))
    found = [ids[real] for ids, real in zip(together.ids, together.attention_mask, strict=True)]
    empty = policy.encode([{"prompt": ""}], "t2i", image_grid=(2, 3))
    assert all(torch.equal(own, empty.ids[0]) for own in found)
    assert bool((together.ids[~together.attention_mask] == PAD).all())


def test_a_picture_of_any_aspect_has_a_newline_behind_every_row():
    _, policy = tiny_lumina()
    for grid in ((1, 5), (3, 2), (2, 7)):
        canvas = policy.encode([{"prompt": "w2"}], "t2i", image_grid=grid)
        ids = canvas.ids[0, -layouts.length(grid) - 1 : -1]
        assert ids[0] == SPECIAL["boi"] and ids[-1] == SPECIAL["eoi"]
        lines = ids[1:-1].reshape(grid[0], grid[1] + 1)
        assert bool((lines[:, -1] == SPECIAL["newline"]).all()) and bool((lines[:, :-1] == MASK).all())
        codes = torch.arange(grid[0] * grid[1])
        canvas.ids[canvas.fill_mask] = codes + OFFSET
        assert policy.decode(canvas, canvas.fill_mask)[0].tolist() == codes.tolist()


# ---- trajectories and the loss ----

DRAWN = {
    "g0_T0": {"guidance_scale": 0.0, "temperature": 0.0, "remask_temperature": 0.0},
    "g4_T0": {"guidance_scale": 4.0, "temperature": 0.0, "remask_temperature": 0.0},
    "g2_T1": {"guidance_scale": 2.0, "temperature": 1.0, "remask_temperature": 1.0},
}


def trajectory(rollout, steps: int) -> torch.Tensor:
    """The ids before each step."""
    later = rollout.canvas.fill_mask[0] & (rollout.step_map[0] >= torch.arange(steps)[:, None])
    return rollout.canvas.ids.masked_fill(later, MASK)


@pytest.mark.parametrize("case", DRAWN)
def test_pictures_are_what_the_public_sampler_draws(case):
    (model, policy), arrays = tiny_lumina(), recorded()
    sampler = PublicLuminaSampler(steps=6, remask_noise_decay="constant", **DRAWN[case])
    stream = torch.Generator().manual_seed(41012)
    rollout = sampler(model, policy, encoded(policy, "t2i", image_grid=GRID), generators=[stream])
    assert torch.equal(trajectory(rollout, 6), arrays[f"t2i.{case}.history"].long())
    assert torch.equal(rollout.completions[0] + OFFSET, arrays[f"t2i.{case}.out"][0])


def test_edits_are_what_the_public_sampler_draws():
    (model, policy), arrays = tiny_lumina(), recorded()
    scales = {"guidance_scale": 2.5, "image_guidance_scale": 4.0}
    greedy = {"temperature": 0.0, "remask_temperature": 0.0, "remask_noise_decay": "constant"}
    sampler, canvas = PublicLuminaSampler(steps=6, **greedy, **scales), encoded(policy, "i2i", image_grid=GRID)
    rollout = sampler(model, policy, canvas, generators=[torch.Generator()])
    assert torch.equal(rollout.completions[0] + OFFSET, arrays["i2i.out"][0])


def test_answers_are_what_the_public_sampler_writes():
    (model, policy), arrays = tiny_lumina(), recorded()
    policy.decode = lambda canvas, counts: [""]
    canvas = encoded(policy, "mmu", max_completion_length=16)
    canvas = replace(canvas, token_space=TokenSpace(start=0, stop=model.config.vocab_size))
    sampler = PublicTextSampler(steps=8, block_length=8, temperature=0.0, stop="never")
    rollout = sampler(model, policy, canvas, generators=[torch.Generator()])
    assert torch.equal(rollout.canvas.ids, arrays["mmu.out"])
    assert torch.equal(trajectory(rollout, 8), arrays["mmu.history"].long())


@pytest.mark.parametrize("task", ["t2i", "mmu"])
def test_the_loss_of_fine_tuning(task):
    (model, policy), arrays = tiny_lumina(attn_mask_mode="none"), recorded()
    noisy, labels = arrays["loss.input_ids"], arrays["loss.labels"]
    hidden = labels != -100
    clean = torch.where(hidden, labels, noisy)
    value = loss(model, policy, objectives_of("lumina")[task], clean, noisy, hidden, hidden.double().mean(dim=1))
    assert value.item() == pytest.approx(arrays["loss.value"].item(), rel=1e-5)
    value.backward()
    assert_rounding(model.model.transformer.blocks[0].q_proj.weight.grad, arrays["loss.grad_q0"], 1e-4)


# ---- promises ----


@pytest.mark.parametrize("mode", ["bool", "none"])
@pytest.mark.parametrize("task", ["t2i", "mmu", "i2i"])
def test_policy_conforms(task, mode):
    model, policy = tiny_lumina(attn_mask_mode=mode)
    assert policy.attends_padding == (mode == "none")
    check_policy(policy, model, lumina_rows(task, 3, GRID), task=task, padding=PAD if mode == "bool" else 0)


def test_attended_padding_stands_on_the_right_and_knows_no_guidance():
    _, policy = tiny_lumina(attn_mask_mode="none")
    canvas = policy.encode(lumina_rows("t2i", 3), "t2i", image_grid=GRID)
    for ids, real in zip(canvas.ids, canvas.attention_mask, strict=True):
        count = int(real.sum())
        assert bool(real[:count].all()) and ids[count - 1] == SPECIAL["answer_end"] and not bool(ids[count:].any())
    edit = policy.encode(lumina_rows("i2i", 3, GRID), "i2i", image_grid=GRID)
    for way, own in (
        (policy.guidance_canvas, canvas),
        (policy.guidance_canvas, edit),
        (policy.imageless_canvas, edit),
    ):
        with pytest.raises(ValueError, match="attn_mask_mode='none' reads padding"):
            way(own)


def test_errors():
    model, policy = tiny_lumina()
    asked = {"prompt": "w1 w2", "image_codes": torch.arange(24), "image_grid": GRID}
    with pytest.raises(ValueError, match="task='text' is not supported: Lumina-DiMOO"):
        policy.encode([asked], "text", max_completion_length=4)
    with pytest.raises(ValueError, match=r"an image of 4 x 6 codes leaves no room .* of 30 tokens"):
        policy.encode([asked], "mmu", max_completion_length=4, max_prompt_length=30)
    with pytest.raises(ValueError, match=r"an image of 4 x 6 codes leaves no room .* of 30 tokens"):
        policy.encode([asked], "i2i", image_grid=GRID, max_prompt_length=30)
    with pytest.raises(ValueError, match="23 codes do not fill a picture of 4 x 6"):
        policy.encode([{**asked, "image_codes": torch.arange(23)}], "mmu", max_completion_length=4)
    with pytest.raises(ValueError, match=r"messages of \['user', 'assistant'\].*tuned on one user message"):
        policy.processor.chat_text([{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}])
    with pytest.raises(ValueError, match="the tokenizer has 141 tokens, and image codes are the ids from 140 on"):
        tokenizer = lumina_tokenizer()
        tokenizer.add_tokens(["more"])
        type(policy)(model.config, tokenizer)
    with pytest.raises(ValueError, match="exceeds vocab_size=188"):
        tiny_lumina(codebook_size=64)
    with pytest.raises(ValueError, match="special_token_ids lacks"):
        LuminaConfig(special_token_ids={"boi": 1})

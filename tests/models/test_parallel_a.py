"""MMaDA-Parallel-A against its public code, number for number; its layout; that it keeps the promises of a policy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from unigrpo import load_policy
from unigrpo.config.denoising_presets import objectives_of
from unigrpo.models import LuminaForMaskedDiffusion, MMaDAParallelAForMaskedDiffusion, MMaDAParallelAPolicy
from unigrpo.models.nearest import family_of
from unigrpo.samplers.parity import PublicImageSampler, PublicParallelTextSampler, write_as_ti2ti
from unigrpo.testing import check_policy
from unigrpo.types import Canvas, TokenSpace

from ..algorithm.test_denoising import loss
from ..support.images import picture
from ..support.tiny_decoders import family_golden
from ..support.tiny_lumina import (
    FIELDS,
    MASK,
    OFFSET,
    PAD,
    SPECIAL,
    Cells,
    lumina_rows,
    lumina_tokenizer,
    tiny_parallel_a,
)
from ..support.tolerances import assert_rounding


pytestmark = pytest.mark.golden

GRID = (4, 5)
PREFIX, TEXT = 35, 62
"""Tokens of the recorded prompt, and where its text begins."""


def recorded() -> dict[str, torch.Tensor]:
    return load_file(family_golden("mmada_parallel_a") / "golden.safetensors")


@torch.no_grad()
def test_logits_are_the_public_codes_with_padding_attended():
    model, _ = tiny_parallel_a(attn_mask_mode="none")
    assert_rounding(model(recorded()["loss.input_ids"]).logits, recorded()["logits_no_mask"])


def test_the_published_files_are_lumina_dimoos_until_one_says_otherwise(tmp_path):
    folder = str(family_golden("mmada_parallel_a"))
    assert family_of(folder) == "lumina_dimoo"
    options = {"processing_class": lumina_tokenizer(), "device": "cpu", **FIELDS}
    assert type(load_policy(folder, **options).model) is LuminaForMaskedDiffusion
    opened = load_policy(folder, policy="mmada_parallel_a", **options)
    assert isinstance(opened.policy, MMaDAParallelAPolicy)
    opened.model.save_pretrained(tmp_path)
    assert family_of(str(tmp_path)) == "mmada_parallel_a"
    again = load_policy(str(tmp_path), processing_class=lumina_tokenizer(), device="cpu", image_tokenizer=Cells())
    assert isinstance(again.model, MMaDAParallelAForMaskedDiffusion) and isinstance(again.policy, MMaDAParallelAPolicy)
    asked = {"task": "r2i", "images": picture(0), "max_completion_length": 8, "image_size": [32, 48], "steps": 8}
    scales = {"guidance_scale": 1.0, "image_guidance_scale": 2.0}
    (answer,) = again.generate("w3 w4", r2i_decoding="parallel", block_length=8, **asked, **scales)
    assert isinstance(answer.thought, str) and answer.picture.size == (48, 32)


# ---- the layout ----


def test_the_row_is_the_public_layout():
    """Behind a prompt of Lumina-DiMOO: the picture with a newline after each row of codes, the text, the end of the answer."""
    (_, policy), arrays = tiny_parallel_a(), recorded()
    row = {"prompt": "w30 w48", "image_codes": torch.arange(20), "image_grid": GRID}
    lengths = {"max_completion_length": 12, "image_grid": GRID}
    thought = policy.encode([row], "thought", **lengths)
    behind = arrays["gen.input_ids"][:, PREFIX:]
    assert torch.equal(thought.ids[:, -behind.shape[1] :], behind)
    said = torch.arange(12)
    drawn = policy.encode([{**row, "thought_ids": said}], "picture", **lengths)
    assert torch.equal(drawn.ids[thought.fill_mask], said) and bool((drawn.ids[drawn.fill_mask] == MASK).all())
    assert torch.equal(thought.fill_mask ^ drawn.fill_mask, thought.ids == MASK)
    assert (int(thought.fill_mask.sum()), int(drawn.fill_mask.sum())) == (12, 20)
    edit = policy._caption(row, "thought", 100, "error")
    shown = [SPECIAL["boi"], *range(OFFSET, OFFSET + 5), SPECIAL["newline"]]
    start = edit.index(SPECIAL["boi"])
    assert edit[start : start + 7] == shown and edit[start - 2 : start] == [30, 48]


def test_rows_without_the_instruction_and_without_the_picture():
    _, policy = tiny_parallel_a()
    rows = [{"prompt": words, "image_codes": torch.arange(6), "image_grid": (2, 3)} for words in ("w30 w48", "w7")]
    canvas = policy.encode(rows, "thought", max_completion_length=4, image_grid=(2, 3))
    # A text may hold the tokens of the layout: those of the prompt count.
    canvas = replace(canvas, ids=canvas.ids.masked_fill(canvas.fill_mask, SPECIAL["answer_start"]))
    without, imageless = policy.guidance_twins(canvas, (1.0, 1.0))
    for place, count in enumerate((2, 1)):
        ids = canvas.ids[place][canvas.attention_mask[place]].tolist()
        at = ids.index(SPECIAL["boi"])
        empty = [*ids[: at - count], SPECIAL["uncondition"], *ids[at:]]
        assert without.ids[place][without.attention_mask[place]].tolist() == empty
        end = ids.index(SPECIAL["eoi"]) + 1
        assert imageless.ids[place][imageless.attention_mask[place]].tolist() == [*ids[:at], *ids[end:]]


def test_other_tasks_and_rows_without_a_picture_are_refused():
    _, policy = tiny_parallel_a()
    row = {"prompt": "w1", "image_codes": torch.arange(6), "image_grid": (2, 3)}
    lengths = {"max_completion_length": 4, "image_grid": (2, 3)}
    for task, own in (("i2i", row), ("t2i", row), ("thought", {"prompt": "w1"})):
        with pytest.raises(
            ValueError, match=f"task='{task}' is not supported without a picture to edit: MMaDA-Parallel-A"
        ):
            policy.encode([own], task, **lengths)
    with pytest.raises(ValueError, match="max_completion_length=None"):
        policy.encode([row], "thought", image_grid=(2, 3))


# ---- trajectories ----


class Recorded(MMaDAParallelAPolicy):
    """With the prompts that the public sampler was given to steer away from."""

    def guidance_canvas(self, canvas: Canvas) -> Canvas:
        return replace(canvas, ids=torch.cat([recorded()["gen.uncond_text_prefix"], canvas.ids[:, PREFIX:]], dim=1))

    def imageless_canvas(self, canvas: Canvas) -> Canvas:
        return replace(canvas, ids=torch.cat([recorded()["gen.uncond_image_prefix"], canvas.ids[:, PREFIX:]], dim=1))

    def decode(self, canvas: Canvas, completion_mask: torch.Tensor) -> list[torch.Tensor]:
        return [ids[fill] for ids, fill in zip(canvas.ids, canvas.fill_mask, strict=True)]


WRITTEN = {
    "greedy_nocfg": (0.0, 0.0, 0.0),
    "greedy_img4": (0.0, 4.0, 0.0),
    "greedy_text2_img4": (2.0, 4.0, 0.0),
    "sampled_img4": (0.0, 4.0, 1.0),
}
"""Scales of the instruction and of the picture, and the temperature of the codes."""


@pytest.mark.parametrize("case", WRITTEN)
def test_texts_and_pictures_are_what_the_public_sampler_writes(case):
    """One code is left masked there and filled at random: the last one may differ."""
    (model, policy), arrays = tiny_parallel_a(), recorded()
    policy, ids = Recorded(model.config, policy.processor), arrays["gen.input_ids"]
    place, whole = torch.arange(ids.shape[1])[None], TokenSpace(start=0, stop=model.config.vocab_size)
    shared = {"ids": ids, "attention_mask": torch.ones_like(ids, dtype=torch.bool)}
    canvases = [
        Canvas(fill_mask=(ids == MASK) & (place >= TEXT), task="thought", token_space=whole, **shared),
        Canvas(
            fill_mask=(ids == MASK) & (place < TEXT),
            task="picture",
            token_space=policy.token_space("picture"),
            **shared,
        ),
    ]
    scale, of_image, temperature = WRITTEN[case]
    samplers = [
        PublicParallelTextSampler(steps=10, block_length=12, temperature=0.0, stop="never"),
        PublicImageSampler(
            steps=4,
            guidance_scale=scale,
            image_guidance_scale=of_image,
            temperature=temperature,
            remask_temperature=temperature,
            remask_noise="gaussian",
            remask_noise_decay="linear",
        ),
    ]
    stream = torch.Generator().manual_seed(41020)
    text, drawn = write_as_ti2ti(model, policy, canvases, samplers, [[stream], [stream]])
    steps = torch.maximum(text.step_map, drawn.step_map)
    later = (ids == MASK) & (steps >= torch.arange(10)[:, None])
    assert torch.equal(drawn.canvas.ids.masked_fill(later, MASK), arrays[f"gen.{case}.history"].long())
    said = text.completions[0]
    assert said[said != MASK].tolist() == arrays[f"gen.{case}.text_ids"].tolist()
    differing = drawn.completions[0] - OFFSET != arrays[f"gen.{case}.image_codes_raw"]
    assert differing.sum() <= 1 and bool((drawn.step_map[0][canvases[1].fill_mask[0]][differing] == 9).all())


def test_the_loss_of_fine_tuning():
    """Recorded rows, the second of which is padded on the right with padding that is read."""
    (model, policy), arrays = tiny_parallel_a(attn_mask_mode="none"), recorded()
    objective = objectives_of("mmada_parallel_a")["r2i"]
    noisy, labels = arrays["loss.input_ids"], arrays["loss.labels"]
    hidden = labels != -100
    clean = torch.where(hidden, labels, noisy)
    places = {"loss.value": hidden, "loss.text_part": hidden & (clean < OFFSET)}
    for name, trained in places.items():
        own = torch.where(hidden & ~trained, noisy, clean)
        value = loss(model, policy, objective, own, noisy, trained, trained.double().mean(dim=1))
        assert value.item() == pytest.approx(arrays[name].item(), rel=1e-5), name
    codes, drawn = hidden & (clean >= OFFSET), arrays["loss.image_part_incl_visible_codes"].item()
    own = torch.where(hidden & ~codes, noisy, clean)
    value = loss(model, policy, objective, own, noisy, codes, codes.double().mean(dim=1))
    # There visible codes count as 0: the mean is over all 20 of each row.
    assert value.item() * int(codes.sum()) / 40 == pytest.approx(drawn, rel=1e-5)


def test_each_span_is_hidden_by_a_ratio_of_its_own():
    objective = objectives_of("mmada_parallel_a")["r2i"]
    trained = torch.ones(140, dtype=torch.bool)
    codes, short = torch.arange(140) >= 40, torch.arange(140) < 5
    parts = []
    for seed in range(40):
        drawn = objective.hide(trained, codes=codes, generator=torch.Generator().manual_seed(seed))
        parts.append((drawn.hidden[~codes].double().mean(), drawn.hidden[codes].double().mean()))
        assert drawn.share == int(drawn.hidden.sum()) and bool((drawn.weight == drawn.hidden.float()).all())
        few = objective.hide(short | codes, codes=codes, generator=torch.Generator().manual_seed(seed))
        assert bool(few.hidden[:5].all())
    text, picture = torch.tensor(parts).T
    # cos(pi/2 u) has the mean 2 / pi.
    assert abs(float(text.mean()) - 0.637) < 0.15 and abs(float(picture.mean()) - 0.637) < 0.15
    assert abs(float(torch.corrcoef(torch.stack([text, picture]))[0, 1])) < 0.5
    with pytest.raises(ValueError, match="spans='apart' with weight='1/p'"):
        replace(objective, weight="1/p")


# ---- promises ----


@pytest.mark.smoke
@pytest.mark.parametrize("mode", ["bool", "none"])
@pytest.mark.parametrize("task", ["thought", "picture"])
def test_policy_conforms(task, mode):
    model, policy = tiny_parallel_a(attn_mask_mode=mode)
    rows = [{**row, "thought_ids": torch.arange(20, 28)} for row in lumina_rows("i2i", 3, GRID)]
    check_policy(policy, model, rows, task=task, padding=PAD if mode == "bool" else 0)

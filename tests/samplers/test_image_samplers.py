"""MaskGIT against the public code's tokens, emerge against its law, and what both promise."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.models import MMaDAPolicy
from unigrpo.models.draw import choose_tokens
from unigrpo.samplers import MASK_SCHEDULES, Emerge, MaskGIT
from unigrpo.samplers.maskgit import image_positions
from unigrpo.samplers.parity import PublicImageSampler
from unigrpo.types import Canvas, keyed_generator

from ..support.tiny import golden, tiny_model


ARRAYS, META = golden("g3_t2i")
OFFSET, CODES = META["ids"]["n_tok"], META["ids"]["codebook"]
pytestmark = pytest.mark.golden

TEXTS = ["w3 w4 w5", "w10 w11 w12 w13 w14 w15 w16", "w7"]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def golden_canvas(policy: MMaDAPolicy, case: str) -> Canvas:
    """The recorded prompt as a canvas; written image tokens of the inpainting case are not holes."""
    ids = ARRAYS[f"{case}.input_ids"]
    return Canvas(
        ids=ids,
        fill_mask=(ids == policy.mask_token_id),
        attention_mask=ARRAYS[f"{case}.attention_mask"].bool(),
        task="t2i",
        token_space=policy.token_space("t2i"),
    )


@pytest.mark.smoke
@pytest.mark.parametrize("case", META["cases"])
def test_tokens_equal_the_public_codes(model, policy, case):
    settings = META["cases"][case]
    canvas = golden_canvas(policy, case)
    before = canvas.ids.clone()
    generator = torch.Generator().manual_seed(settings["generator_seed"])
    fill = PublicImageSampler(
        steps=settings["timesteps"],
        guidance_scale=settings["guidance_scale"],
        mask_schedule=settings["schedule"],
        remask_temperature=settings["temperature"],
        remask_noise_decay="compound",
    )
    rollout = fill(model, policy, canvas, generators=[generator] * len(canvas.ids))
    image = slice(-(META["num_vq_tokens"] + 1), -1)
    assert torch.equal(rollout.canvas.ids[:, image] - OFFSET, ARRAYS[f"{case}.out"])
    assert torch.equal(canvas.ids, before), "the caller's canvas is left alone"
    assert not (rollout.canvas.ids == policy.mask_token_id).any()
    for step, masked in enumerate(settings["masked_before_step"]):
        assert (canvas.fill_mask & (rollout.step_map >= step)).sum(1).tolist() == masked


def test_the_unconditional_twin_is_the_recorded_one(policy):
    canvas = golden_canvas(policy, "g35")
    twin = policy.guidance_canvas(canvas)
    assert torch.equal(twin.ids, ARRAYS["g35.uncond_step0"])
    assert torch.equal(twin.attention_mask, ARRAYS["g35.uncond_attention_mask"].bool())


@pytest.mark.parametrize("name", sorted(MASK_SCHEDULES))
def test_schedules_are_the_recorded_ones(name):
    own = torch.tensor([MASK_SCHEDULES[name](float(t)) for t in ARRAYS["schedule.t"]])
    assert (own - ARRAYS[f"schedule.{name}"]).abs().max() < 2e-6


class Uniform:
    """A policy whose model gives every code the same logits, so that only the sampler decides."""

    def __init__(self, policy):
        self.policy = policy

    def __call__(self, *, select, token_space, draw, **_):
        drawn = choose_tokens(torch.zeros(int(select.sum()), token_space.width), draw)
        return drawn._replace(tokens=drawn.tokens + token_space.start)

    def eval(self):
        return self


def blank(policy, rows: int = 1, tokens: int = 16) -> Canvas:
    return policy.encode([{"prompt": "w3"}] * rows, "t2i", image_tokens=tokens)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "sigmoid"])
def test_emerge_hides_what_the_schedule_says_on_average(policy, schedule):
    """The number of hidden tokens after step s is Binomial(N, k(s / T)): mean N k, variance N k (1 - k)."""
    rows, tokens, steps = 400, 64, 8
    canvas = blank(policy, rows, tokens)
    streams = [keyed_generator("emerge", row) for row in range(rows)]
    fill = Emerge(steps=steps, guidance_scale=0, mask_schedule=schedule)
    rollout = fill(Uniform(policy), policy, canvas, generators=streams)
    for step in range(steps):
        share = MASK_SCHEDULES[schedule]((step + 1) / steps)
        hidden = (canvas.fill_mask & (rollout.step_map > step)).sum(1).double()
        expected, variance = tokens * share, tokens * share * (1 - share)
        assert abs(float(hidden.mean()) - expected) <= 4 * math.sqrt(variance / rows) + 1e-9
        if variance > 1:
            assert float(hidden.var()) == pytest.approx(variance, rel=0.35)
    assert (rollout.step_map[canvas.fill_mask] >= 0).all()


class Leaning(Uniform):
    """The first code of two holes has 4 and 1 nats over all others."""

    def __call__(self, *, select, token_space, draw, **_):
        logits = torch.zeros(len(select), 2, token_space.width)
        logits[:, 0, 0], logits[:, 1, 0] = 4.0, 1.0
        drawn = choose_tokens(logits.flatten(0, 1), draw)
        return drawn._replace(tokens=drawn.tokens + token_space.start)


@pytest.mark.parametrize("noise", ["gumbel", "gaussian"])
def test_noise_of_the_confidence_has_its_law(policy, noise):
    """Which of two greedy codes is kept: a difference of Gumbel numbers is logistic, one of normal numbers normal, sqrt(2) as wide."""
    count, scale = 3000, 1.0
    canvas = blank(policy, count, 2)
    sampler = MaskGIT(
        steps=2,
        temperature=0.0,
        guidance_scale=0.0,
        remask_temperature=scale,
        remask_noise=noise,
        remask_noise_decay="constant",
    )
    streams = [keyed_generator(noise, row) for row in range(count)]
    writer = sampler.begin(policy, canvas, streams)
    next(sampler.advance(Leaning(policy), writer, streams))
    kept = (~writer.hidden)[canvas.fill_mask].view(count, 2)
    assert kept.sum(dim=1).tolist() == [1] * count
    others = CODES - 1
    lead = torch.tensor(4.0 - 1.0 - math.log((math.e**4 + others) / (math.e + others)))
    share = (lead / scale).sigmoid() if noise == "gumbel" else torch.special.ndtr(lead / (scale * 2**0.5))
    assert float(kept[:, 0].float().mean()) == pytest.approx(float(share), abs=0.02)


def test_the_public_sampler_needs_one_generator(model, policy):
    with pytest.raises(ValueError, match="the same one"):
        PublicImageSampler()(model, policy, blank(policy, 2), generators=[torch.Generator(), torch.Generator()])


@pytest.mark.parametrize(("steps", "hidden"), [(6, 511), (12, 511), (15, 511), (18, 511), (48, 511), (4, 391)])
def test_the_public_schedule_counts_in_fp32(steps, hidden):
    """Two thirds of the way the public code's ``torch.cos`` gives 0.49999997: 511 of 1024 codes, not 512."""
    done = (3 if steps == 4 else steps * 2 // 3) / steps
    share = PublicImageSampler(steps=steps)._share(done)
    public = torch.floor(1024 * torch.cos(torch.tensor(done) * math.pi * 0.5))
    assert math.floor(1024 * share) == int(public) == hidden
    exact = MaskGIT(steps=steps)._share(done)
    assert exact == MASK_SCHEDULES["cosine"](done)


def test_codes_of_an_image_in_the_prompt_are_not_drawn(model, policy):
    """The schedule counts the image that is drawn: an image to edit, in the prompt, changes no count."""
    plain, code = blank(policy), policy.token_space("t2i").start + 5
    start = int(plain.fill_mask[0].nonzero()[0])
    assert start > 1, "the image is not at the front"

    def with_image(own: torch.Tensor, value) -> torch.Tensor:
        return torch.cat([own[:, :1], torch.full((1, 6), value, dtype=own.dtype), own[:, 1:]], dim=1)

    edit = replace(
        plain,
        ids=with_image(plain.ids, code),
        fill_mask=with_image(plain.fill_mask, False),
        attention_mask=with_image(plain.attention_mask, True),
    )
    assert torch.equal(image_positions(edit), edit.fill_mask)
    for canvas in (plain, edit):
        rollout = MaskGIT(steps=8)(model, policy, canvas, generators=[keyed_generator("edit")])
        held = [int((canvas.fill_mask & (rollout.step_map >= step)).sum()) for step in range(9)]
        assert held == [16, 15, 14, 13, 11, 8, 6, 3, 0]
    # A code that is given inside the image is a part of it.
    given = replace(plain, ids=plain.ids.clone(), fill_mask=plain.fill_mask.clone())
    given.ids[0, start + 3], given.fill_mask[0, start + 3] = code, False
    assert torch.equal(image_positions(given), plain.fill_mask)


def test_padding_changes_nothing(model, policy):
    """Trimmed canvases and canvases padded to all text slots give the same images: the mask is true."""
    rows = [{"prompt": text} for text in TEXTS]
    short = policy.encode(rows, "t2i", image_tokens=16)
    full = policy.encode(rows, "t2i", image_tokens=16, trim_padding=False, max_prompt_length=40)
    assert short.ids.shape[1] < full.ids.shape[1] == 41 + 18
    for fill in (MaskGIT(steps=4), Emerge(steps=4)):
        streams = ([keyed_generator("pad", row) for row in range(3)] for _ in range(2))
        one, other = (fill(model, policy, own, generators=next(streams)).completions for own in (short, full))
        assert torch.equal(torch.stack(one), torch.stack(other))

    def logps(canvas: Canvas) -> torch.Tensor:
        codes, hidden = torch.arange(int(canvas.fill_mask.sum())) % CODES + OFFSET, canvas.fill_mask
        filled = replace(canvas, ids=canvas.ids.masked_scatter(hidden, codes))
        return score_tokens(model, policy, filled, hidden, hidden).logps[hidden]

    with torch.no_grad():
        assert (logps(short) - logps(full)).abs().max() < 1e-5

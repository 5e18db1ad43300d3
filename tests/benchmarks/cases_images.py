"""Text-to-image: the sampler with guidance, and the trunk without the padding of the text slots."""

from __future__ import annotations

import torch

from unigrpo.samplers import MaskGIT
from unigrpo.samplers.parity import PublicImageSampler
from unigrpo.types import Canvas, TokenSpace

from .bench import Bench, image_canvas, plain_stream, streams
from .expected import parts_of
from .measure import EXACT, EXACT_LAW, Result, compared, interleave
from .plain import Clock, image_rollout


GUIDANCE = 3.5


def draw(bench: Bench, canvas: Canvas, sampler: type[MaskGIT]):
    """The image of ``canvas``."""
    fill = sampler(steps=bench.sizes.image_steps, guidance_scale=GUIDANCE, remask_noise_decay="compound")
    return fill(bench.model, bench.policy, canvas, generators=streams(len(canvas.ids)))


def plain_draw(bench: Bench, canvas: Canvas, clock: Clock) -> torch.Tensor:
    """Ids of the same image from the plain sampler."""
    twin, space = bench.policy.guidance_canvas(canvas), bench.policy.token_space("t2i")
    return image_rollout(
        bench.plain,
        (canvas.ids, twin.ids),
        (canvas.attention_mask, twin.attention_mask),
        slice(space.start, space.stop),
        bench.sizes.image_tokens,
        steps=bench.sizes.image_steps,
        guidance_scale=GUIDANCE,
        clock=clock,
        generator=plain_stream(bench),
    )


def text_to_image(bench: Bench) -> list[Result]:
    """Guided MaskGIT whose caption fills all text slots, so that no padding is saved here."""
    sizes, clock = bench.sizes, Clock()
    canvas = image_canvas(bench, sizes.text_slots - 2, sizes.text_slots, sizes.image_tokens, trim=False)
    timed = interleave(
        {
            "plain": lambda: plain_draw(bench, canvas, clock),
            "reference": lambda: draw(bench, canvas, PublicImageSampler),
            "production": lambda: draw(bench, canvas, MaskGIT),
        },
        sizes.rounds,
    )
    plain = timed["plain"]
    same = torch.equal(timed["reference"].value.canvas.ids[canvas.fill_mask], plain.value.flatten())
    space = bench.policy.token_space("t2i")
    inside = space.contains(timed["production"].value.canvas.ids[canvas.fill_mask])
    parts = parts_of("t2i", clock, sum(plain.seconds), 1000 * plain.median / sizes.image_steps)
    limits = {"goal": 5.0, "floor": 3.5}
    note, checks = "ours: PublicImageSampler, the plain sampler's random numbers", {"tokens equal": same}
    extra = {"plain_parts": parts}
    reference = compared("t2i", EXACT, timed, "reference", checks=checks, note=note, extra=extra, **limits)
    note, checks = "ours: MaskGIT, draws for hidden positions alone", {"all codes": bool(inside.all())}
    return [reference, compared("t2i, production", EXACT_LAW, timed, "production", checks=checks, note=note, **limits)]


def trimmed_padding(bench: Bench) -> list[Result]:
    """The trunk over a short caption with and without the unused text slots, the head left out on both sides."""
    sizes = bench.sizes
    full, short = (
        image_canvas(bench, sizes.trimmed_caption, sizes.trimmed_slots, sizes.trimmed_image, trim)
        for trim in (False, True)
    )
    mask = full.attention_mask
    bias = mask[:, None, :, None] & mask[:, None, None, :] | torch.eye(mask.shape[1], dtype=torch.bool)
    request = {"select": short.fill_mask, "token_space": TokenSpace(start=0, stop=1)}

    @torch.no_grad()
    def plain() -> torch.Tensor:
        return bench.plain.hidden(full.ids, bias)

    @torch.no_grad()
    def ours(**more):
        return bench.model(**bench.policy.inputs(short), **request, **more)

    timed = interleave({"plain": plain, "ours": ours}, sizes.rounds)
    hidden = ours(output_hidden_states=True).hidden_states[-1]
    worst = float((hidden[short.fill_mask] - timed["plain"].value[full.fill_mask]).abs().max())
    lengths = {"plain": full.ids.shape[1], "ours": short.ids.shape[1]}
    found = {
        "checks": {"hidden states within 3e-4": worst < 3e-4},
        "note": f"{lengths['plain']} against {lengths['ours']} positions, a dense mask against none",
        "extra": {"positions": lengths, "largest_difference": worst},
    }
    return [compared("t2i trunk, padding trimmed", EXACT, timed, goal=1.8, floor=1.4, **found)]

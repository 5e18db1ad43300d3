"""Every sampler keeps the promises that training relies on: stop tokens, neighbours, randomness, records."""

from __future__ import annotations

import pytest

from unigrpo.models import MMaDAPolicy
from unigrpo.samplers import Block, Dream, Emerge, LeftToRight, MaskGIT, SemiAutoregressive
from unigrpo.testing import check_sampler

from ..models.test_conformance import bert, shifted
from ..support.tiny import prompts, tiny_model, tiny_processor
from ..support.tiny_decoders import tiny_decoder


BLOCKS = {"steps": 8, "block_length": 4}
QUICK = {"kv_cache": "dual", "confidence_threshold": 0.2, "guidance_scale": 1.5, "temperature": 0.7}

GOOD = {
    "text": (SemiAutoregressive(), {}),
    "greedy": (SemiAutoregressive(**BLOCKS, temperature=0.0), {}),
    "random order": (SemiAutoregressive(steps=4, block_length=8, temperature=0.7, remasking="random"), {}),
    "guided": (SemiAutoregressive(**BLOCKS, guidance_scale=1.5), {}),
    "early": (SemiAutoregressive(**BLOCKS, confidence_threshold=0.2, exit_entropy=1.0), {}),
    "never stops": (SemiAutoregressive(**BLOCKS, stop="never"), {"ends_at_stop": False}),
    "dual cache": (SemiAutoregressive(**BLOCKS, **QUICK), {"exact_steps": False}),
    "prefix cache": (SemiAutoregressive(**BLOCKS, **QUICK | {"kv_cache": "prefix"}), {"exact_steps": False}),
    "left to right": (LeftToRight(temperature=0.8), {}),
    "ends come last": (SemiAutoregressive(**BLOCKS, confidence_eos_eot_inf=True), {}),
    "dream": (Dream(steps=6), {}),
    "dream, by margin": (Dream(steps=6, alg="topk_margin", alg_temp=0.5, temperature=0.7, guidance_scale=1.5), {}),
    "dream, by probability": (Dream(steps=6, alg="maskgit_plus", temperature=0.0), {}),
    "dream, by chance": (Dream(steps=6, alg="origin", temperature=0.7), {}),
    "maskgit": (MaskGIT(steps=5, guidance_scale=2.0), {"task": "t2i"}),
    "maskgit, plain": (MaskGIT(steps=4, temperature=0.8, guidance_scale=0.0), {"task": "t2i"}),
    "maskgit, constant noise": (MaskGIT(steps=5, guidance_scale=4.0, remask_noise_decay="constant"), {"task": "t2i"}),
    "emerge": (Emerge(steps=5, guidance_scale=2.0), {"task": "t2i"}),
    "emerge, plain": (Emerge(steps=4, temperature=0.8, guidance_scale=0.0), {"task": "t2i"}),
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", GOOD)
def test_the_librarys_samplers_keep_their_promises(name):
    sampler, options = GOOD[name]
    check_sampler(sampler, **options)


@pytest.mark.parametrize("kind", ["text", "t2i", "shifted", "absolute positions"])
def test_on_a_model_policy_and_canvas_of_ones_own(kind):
    if kind in ("text", "t2i"):
        model, rows = tiny_model(), prompts(3)
        policy = MMaDAPolicy(model.config, tiny_processor())
        lengths = {"image_tokens" if kind == "t2i" else "max_completion_length": 16}
    else:
        model, policy, rows = (shifted if kind == "shifted" else bert)()
        lengths = {"max_completion_length": 8}
    canvas = policy.encode(rows, "t2i" if kind == "t2i" else "text", **lengths)
    sampler = MaskGIT(steps=5) if kind == "t2i" else SemiAutoregressive(**BLOCKS)
    check_sampler(sampler, model, policy, canvas)
    with pytest.raises(ValueError, match="together, or none"):
        check_sampler(sampler, model)


IN_BLOCKS = {
    "static": ({"steps": 5, "temperature": 0.7}, {}),
    "guided, sure ones at once": ({"order": "dynamic", "confidence_threshold": 0.1, "guidance_scale": 1.0}, {}),
    "by entropy": ({"order": "entropy", "entropy_bound": 3.0, "kv_cache": "none"}, {}),
    "from the left, greedy": ({"order": "sequential", "temperature": 0.0}, {}),
    "edited": ({"edit_threshold": 0.05, "post_steps": 2}, {"exact_steps": False, "ends_at_stop": False}),
}
"""What is edited may take a stop token back, so that its tail becomes padding with the block: see ``test_block``."""


@pytest.mark.parametrize(("name", "anchor"), zip(IN_BLOCKS, ["start", "prompt_end"] * 3, strict=False))
def test_the_block_sampler_keeps_its_promises_on_a_model_with_blocks(name, anchor):
    model, policy = tiny_decoder("blocks", block_anchor=anchor)
    canvas = policy.encode(prompts(3, (1, 9, 4)), max_completion_length=10)
    settings, options = IN_BLOCKS[name]
    check_sampler(Block(**{"steps": 10, **settings}), model, policy, canvas, **options)

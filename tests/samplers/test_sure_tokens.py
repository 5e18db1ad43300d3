"""Tokens whose probability rounds to 1 are still told apart, as fp64 arithmetic tells them."""

from __future__ import annotations

import pytest
import torch

from unigrpo.models import MMaDAPolicy
from unigrpo.models.mmada.modeling import MMaDAForMaskedDiffusion
from unigrpo.samplers import SemiAutoregressive
from unigrpo.samplers.parity import PublicTextSampler
from unigrpo.types import TokenSpace, keyed_generator

from ..support.tiny import tiny_model, tiny_processor


pytestmark = pytest.mark.golden

STEPS = 12
ROWS = [{"prompt": f"w{a} w{a + b} w{b}"} for a in (1, 20, 41) for b in (3, 8, 14, 30)]


def sure_model(scale: float) -> MMaDAForMaskedDiffusion:
    """The tiny model with ``scale`` times its logits: trained models are as sure as this."""
    plain = tiny_model()
    model = MMaDAForMaskedDiffusion(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    return model


def plain_decode(model, policy, canvas, rank, space: TokenSpace | None = None) -> torch.Tensor:
    """The sampler's law in a few lines: greedy, one block, every step commits the tokens that ``rank [L]`` puts first."""
    ids, space = canvas.ids.clone(), space or canvas.token_space
    for row in range(len(ids)):
        for step in range(STEPS):
            holes = (ids[row] == policy.mask_token_id) & canvas.fill_mask[row]
            inputs = {"input_ids": ids[row : row + 1], "attention_mask": canvas.attention_mask[row : row + 1]}
            with torch.no_grad():
                logits = model(**inputs).logits[0, :, space.start : space.stop]
            logits[:, [token - space.start for token in space.exclude]] = -torch.inf
            best = rank(logits, logits.argmax(dim=1)).masked_fill(~holes, -torch.inf)
            take = best.topk(-(-int(holes.sum()) // (STEPS - step))).indices
            ids[row, take] = logits.argmax(dim=1)[take] + space.start
    return ids


def remaining_mass(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Minus the log of all other tokens' probability, in fp64."""
    others = logits.double().scatter(1, tokens[:, None], -torch.inf)
    return logits.double().logsumexp(1) - others.logsumexp(1)


def fp64_probability(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The public code's confidence."""
    return logits.double().softmax(1).gather(1, tokens[:, None]).squeeze(1)


def fp32_probability(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(1).gather(1, tokens[:, None]).squeeze(1)


@pytest.mark.parametrize("scale", [1, 8, 12, 20])
def test_the_surest_tokens_are_committed_in_the_order_of_fp64(scale):
    model = sure_model(scale)
    policy = MMaDAPolicy(model.config, tiny_processor())
    policy.stop_token_ids = ()
    canvas = policy.encode(ROWS, max_completion_length=24)
    streams = [keyed_generator("sure", row) for row in range(len(ROWS))]
    sampler = {"steps": STEPS, "block_length": 24, "temperature": 0.0, "stop": "never"}
    own = SemiAutoregressive(**sampler)(model, policy, canvas, generators=streams)
    assert torch.equal(own.canvas.ids, plain_decode(model, policy, canvas, remaining_mass))
    if (
        scale < 20
    ):  # at 20 fp64's probabilities round to 1 as well: the public order is then the order of rounding errors
        everything = TokenSpace(start=0, stop=model.config.vocab_size)
        one_stream = streams[:1] * len(ROWS)
        public = PublicTextSampler(**sampler)(model, policy, canvas, generators=one_stream)
        assert torch.equal(public.canvas.ids, plain_decode(model, policy, canvas, fp64_probability, everything))
    else:
        lost = plain_decode(model, policy, canvas, fp32_probability)
        assert (lost != own.canvas.ids).any(dim=1).sum() >= 6, "the case is too easy: fp32 ranks it as well"

"""What the block sampler writes, against the exact law of every answer of a tiny block-causal model; see ``test_enumeration``.

The prompt of two tokens and the first hole are a block of three: it is half prompt. The law is enumerated from plain forwards, the
answers are drawn beside kept keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from unigrpo.models.decoder import A2DQwen3Config, A2DQwen3ForMaskedDiffusion
from unigrpo.samplers import Block

from .test_enumeration import (
    MASK,
    PAD,
    VOCABULARY,
    Choices,
    Law,
    TinyPolicy,
    advance,
    answers,
    best,
    laws,
    p_value,
    unsure,
)


SIZE, HOLES = 3, 4
BLOCKS = (range(0, 1), range(1, 4))


class BlockPolicy(TinyPolicy):
    block_size, supports_cache = SIZE, True


@pytest.fixture(scope="module")
def model() -> A2DQwen3ForMaskedDiffusion:
    config = A2DQwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=False,
        attention="block_causal",
        block_size=SIZE,
        mask_token_id=MASK,
        pad_token_id=PAD,
        eos_token_id=PAD,
    )
    return unsure(A2DQwen3ForMaskedDiffusion, config)


def sure(threshold: float) -> Callable[[int], Callable[[list[float]], Choices]]:
    """All tokens above the threshold, and the ``count`` most probable ones."""

    def select(count: int) -> Callable[[list[float]], Choices]:
        def choose(own: list[float]) -> Choices:
            ((first, _),) = best(count)(own)
            yield tuple(sorted({*first, *(j for j, p in enumerate(own) if p > threshold)})), 1.0

        return choose

    return select


def leftmost(count: int) -> Callable[[list[float]], Choices]:
    def choose(own: list[float]) -> Choices:
        yield tuple(range(min(count, len(own)))), 1.0

    return choose


def bounded(bound: float) -> Callable[[int], Callable[[list[float], list[list[float]]], Choices]]:
    """Holes in the order of their entropies, as long as those of the ones before add up to the bound at most."""

    def choose(own: list[float], laws: list[list[float]]) -> Choices:
        entropies = [-sum(p * math.log(p) for p in law if p) for law in laws]
        kept, total = [], 0.0
        for j in sorted(range(len(own)), key=lambda j: entropies[j]):
            if total <= bound:
                kept.append(j)
            total += entropies[j]
        yield tuple(kept), 1.0

    choose.reads_laws = True
    return lambda count: choose


def in_grid(given, counts: list[int], select, stop: bool = True) -> Law:
    """Both blocks, ``counts`` positions a step in a whole one, until it has no holes. An answer that ended has none."""
    law: Law = {(MASK,) * HOLES: 1.0}
    for places in BLOCKS:
        for count in counts:
            law = advance(law, given, places, select(count), stop)
    return law


CASES = {
    "static": (Block(steps=3), lambda given: in_grid(given, [2, 1], best), {}),
    "dynamic": (
        Block(steps=4, order="dynamic", confidence_threshold=0.3, temperature=0.7),
        lambda given: in_grid(given, [1, 1, 1], sure(0.3)),
        {"temperature": 0.7},
    ),
    "entropy": (
        Block(order="entropy", entropy_bound=0.9, temperature=0.5),
        lambda given: in_grid(given, [1, 1, 1], bounded(0.9)),
        {"temperature": 0.5},
    ),
    "sequential, guided": (
        Block(steps=3, order="sequential", guidance_scale=0.7),
        lambda given: in_grid(given, [2, 1], leftmost),
        {"guidance": 0.7},
    ),
    "of the likeliest": (
        Block(steps=4, temperature=1.5, top_k=3, order="sequential"),
        lambda given: in_grid(given, [1, 1, 1], leftmost),
        {"temperature": 1.5, "top_k": 3},
    ),
}


@pytest.fixture(scope="module")
def law_of(model) -> Callable[[str], Law]:
    return laws(model, CASES)


@pytest.mark.smoke
@pytest.mark.parametrize("name", CASES)
def test_answers_follow_the_enumerated_law(model, law_of, name):
    assert p_value(model, CASES[name][0], law_of(name), "text", BlockPolicy()) > 1e-3


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("static", Block(steps=3, order="sequential")),
        ("dynamic", Block(steps=4, temperature=0.7)),
        ("entropy", Block(order="entropy", entropy_bound=9.0, temperature=0.5)),
        ("sequential, guided", Block(steps=3, order="sequential")),
    ],
)
def test_another_samplers_answers_are_told_apart(model, law_of, name, other):
    assert p_value(model, other, law_of(name), "text", BlockPolicy()) < 1e-6


def test_what_is_recorded_is_the_law_that_answers_were_drawn_from(model, law_of):
    """One position a step from the left: an answer has one order, and its probability is the product of what was recorded."""
    law = law_of("of the likeliest")
    rollout = answers(model, CASES["of the likeliest"][0], HOLES, "text", rows=200, policy=BlockPolicy())
    recorded = rollout.sampling_logps.double().sum(dim=1).exp().tolist()
    expected = [law[state] for state in map(tuple, rollout.canvas.ids[:, -HOLES:].tolist())]
    assert recorded == pytest.approx(expected, rel=1e-4)

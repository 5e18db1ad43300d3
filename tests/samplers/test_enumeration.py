"""What samplers write, against the exact law of every possible answer, by a chi-square test over whole answers.

The law is enumerated from plain forwards of the model, one state at a time: every token at every hole, every choice of what is kept.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import cache, partial

import pytest
import torch

from unigrpo.models import DiffusionPolicy, LLaDAConfig, LLaDAForMaskedDiffusion
from unigrpo.samplers import Emerge, LeftToRight, MaskGIT, SemiAutoregressive
from unigrpo.types import Canvas, Rollout, TokenSpace, keyed_generator


PAD, STOP, MASK, VOCABULARY = 0, 2, 5, 9
PROMPT = (1, 4)
SPACES = {"text": TokenSpace(start=1, stop=6, exclude=(MASK,)), "t2i": TokenSpace(start=6, stop=9)}
ROWS = 2000

State = tuple[int, ...]
"""The answer so far; MASK is a hole."""

Law = dict[State, float]
Choices = Iterator[tuple[tuple[int, ...], float]]
"""Which of the drawn tokens are kept, with which probability."""


class TinyPolicy(DiffusionPolicy):
    mask_token_id, pad_token_id, stop_token_ids, linear_head = MASK, PAD, (STOP,), True

    def token_space(self, task):
        return SPACES[task]

    def encode(self, rows, task="text", **lengths):
        raise NotImplementedError

    def decode(self, canvas, completion_mask):
        return [""] * len(canvas.ids)


def unsure(kind, config):
    """Random weights: sure enough that what stands beside a hole matters, unsure enough that most answers are seen."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = kind(config).eval()
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data.normal_(0, 0.35)
        model.get_input_embeddings().weight.data.normal_(0, 1.0)
        model.get_output_embeddings().weight.data.normal_(0, 0.13)
    return model


@pytest.fixture(scope="module")
def model() -> LLaDAForMaskedDiffusion:
    config = LLaDAConfig(
        d_model=32,
        n_layers=2,
        n_heads=2,
        n_kv_heads=2,
        mlp_hidden_size=48,
        vocab_size=VOCABULARY,
        mask_token_id=MASK,
        pad_token_id=PAD,
        eos_token_id=PAD,
    )
    return unsure(LLaDAForMaskedDiffusion, config)


def cut(row: list[float], top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> list[float]:
    """The law ``row`` without its unlikely tokens, from the definitions; there are no ties."""
    order = sorted(range(len(row)), key=lambda token: -row[token])[: top_k or None]
    mass, nucleus, total = 0.0, [], sum(row[token] for token in order)
    for token in order:
        if mass < top_p * total:
            nucleus.append(token)
        mass += row[token]
    left = [token for token in nucleus if row[token] >= min_p * row[order[0]]]
    share = sum(row[token] for token in left)
    return [row[token] / share if token in left else 0.0 for token in range(len(row))]


def conditionals(
    model, task: str, temperature: float, guidance: float, **cuts: float
) -> Callable[[State], list[list[float]]]:
    """p(token | state) of each position of the answer, fp64 ``[n, V]`` as lists; a plain forward a state."""
    allowed = SPACES[task].contains(torch.arange(VOCABULARY))

    @cache
    @torch.no_grad()
    def given(state: State) -> list[list[float]]:
        ids = torch.tensor([[*PROMPT, *state], [*[MASK] * len(PROMPT), *state]])
        own, free = model(input_ids=ids).logits[:, len(PROMPT) :].double()
        logits = free + (guidance + 1) * (own - free)
        laws = (logits / temperature).masked_fill(~allowed, -math.inf).softmax(dim=1).tolist()
        return [cut(law, **cuts) for law in laws]

    return given


def advance(law: Law, given, places: range, choose: Callable[..., Choices], stop: bool = False) -> Law:
    """One step: a token is drawn at every hole of ``places``, and ``choose`` says which are kept, from their probabilities and, where
    it ``reads_laws``, from what they were drawn from.
    """
    after: Law = defaultdict(float)
    for state, share in law.items():
        holes = [place for place in places if state[place] == MASK]
        table = [given(state)[place] for place in holes]
        for tokens in itertools.product(*([token for token, p in enumerate(row) if p] for row in table)):
            own = [row[token] for row, token in zip(table, tokens, strict=True)]
            for kept, chance in choose(own, table) if hasattr(choose, "reads_laws") else choose(own):
                new = list(state)
                for j in kept:
                    new[holes[j]] = tokens[j]
                if stop and STOP in new:
                    end = new.index(STOP) + 1
                    new[end:] = [PAD] * (len(new) - end)
                after[tuple(new)] += share * math.prod(own) * chance
    return after


def best(count: int) -> Callable[[list[float]], Choices]:
    """The ``count`` most probable tokens."""

    def choose(own: list[float]) -> Choices:
        yield tuple(sorted(range(len(own)), key=lambda j: -own[j])[:count]), 1.0

    return choose


def any_of(count: int) -> Callable[[list[float]], Choices]:
    """Any ``count`` of the tokens."""

    def choose(own: list[float]) -> Choices:
        sets = list(itertools.combinations(range(len(own)), min(count, len(own))))
        yield from ((kept, 1 / len(sets)) for kept in sets)

    return choose


def gumbel_best(count: int, scale: float) -> Callable[[list[float]], Choices]:
    """The first ``count`` by log p + ``scale`` times Gumbel noise: draws without putting back, in proportion to p^(1 / scale)."""

    def choose(own: list[float]) -> Choices:
        masses = [p ** (1 / scale) for p in own]
        for order in itertools.permutations(range(len(own)), count):
            chance, left = 1.0, sum(masses)
            for j in order:
                chance, left = chance * masses[j] / left, left - masses[j]
            yield order, chance

    return choose


def each_with(chance: float) -> Callable[[list[float]], Choices]:
    """Each token by itself."""

    def choose(own: list[float]) -> Choices:
        for kept in itertools.product((False, True), repeat=len(own)):
            share = math.prod(chance if one else 1 - chance for one in kept)
            if share:
                yield tuple(j for j, one in enumerate(kept) if one), share

    return choose


def in_blocks(given, length: int, steps: int, block: int, select=best, stop: bool = True) -> Law:
    """Blocks from the left, their steps split evenly; each row's holes of a block are split evenly over its steps."""
    law, blocks = {(MASK,) * length: 1.0}, -(-length // block)
    for number in range(blocks):
        places = range(number * block, min((number + 1) * block, length))
        rounds = steps // blocks + (number < steps % blocks)
        groups: dict[int, Law] = defaultdict(dict)
        for state, share in law.items():
            groups[sum(state[place] == MASK for place in places)][state] = share
        law = defaultdict(float)
        for holes, group in groups.items():
            for step in range(rounds):
                count = holes // rounds + (step < holes % rounds)
                if count:
                    group = advance(group, given, places, select(count), stop)
            for state, share in group.items():
                law[state] += share
    return law


def maskgit(given, length: int, steps: int, scale: float = 1.0) -> Law:
    law = {(MASK,) * length: 1.0}
    for step in range(steps):
        done = (step + 1) / steps
        left = next(iter(law)).count(MASK)
        again = max(min(math.floor(length * math.cos(math.pi / 2 * done)), left - 1), 1) if step < steps - 1 else 0
        noise = scale * (1 - done)
        choose = gumbel_best(left - again, noise) if noise else best(left - again)
        law = advance(law, given, range(length), choose)
    return law


def emerge(given, length: int, steps: int) -> Law:
    law = {(MASK,) * length: 1.0}
    for step in range(steps):
        now, then = (math.cos(math.pi / 2 * u / steps) for u in (step, step + 1))
        law = advance(law, given, range(length), each_with(1 - then / now if step < steps - 1 else 1.0))
    return law


def answers(
    model, sampler, length: int, task: str, rows: int = ROWS, policy: DiffusionPolicy | None = None
) -> Rollout:
    """``rows`` answers of ``length`` holes."""
    ids = torch.tensor([[*PROMPT, *[MASK] * length]]).expand(rows, -1).clone()
    fill = torch.zeros_like(ids, dtype=torch.bool)
    fill[:, len(PROMPT) :] = True
    real = torch.ones_like(fill)
    canvas = Canvas(ids=ids, fill_mask=fill, attention_mask=real, task=task, token_space=SPACES[task])
    generators = [keyed_generator("law", row) for row in range(rows)]
    return sampler(model, policy or TinyPolicy(), canvas, generators=generators)


def p_value(model, sampler, law: Law, task: str, policy: DiffusionPolicy | None = None) -> float:
    """The chance of answers as far from ``law`` as those of ``sampler``; 0 for an answer that it excludes."""
    rollout = answers(model, sampler, len(next(iter(law))), task, policy=policy)
    seen = Counter(map(tuple, rollout.canvas.ids[:, len(PROMPT) :].tolist()))
    assert sum(law.values()) == pytest.approx(1)
    if any(not law.get(state) for state in seen):
        return 0.0
    # Answers that are expected fewer than five times are one cell.
    cells = [(seen[state], share * ROWS) for state, share in law.items() if share * ROWS >= 5]
    rest = ROWS - sum(own for own, _ in cells), ROWS - sum(expected for _, expected in cells)
    if rest[1] >= 5:
        cells.append(rest)
    assert len(cells) > 8
    statistic = sum((own - expected) ** 2 / expected for own, expected in cells)
    half = torch.tensor([(len(cells) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def text(**settings) -> SemiAutoregressive:
    return SemiAutoregressive(**{"steps": 2, "block_length": 3, **settings})


CASES = {
    "two at a time": (text(stop="never"), lambda given: in_blocks(given, 3, 2, 3, stop=False), {}),
    "ends at a stop token": (text(), lambda given: in_blocks(given, 3, 2, 3), {}),
    "blocks": (text(steps=3, block_length=2), lambda given: in_blocks(given, 4, 3, 2), {}),
    "all at once": (text(steps=1, stop="never"), lambda given: in_blocks(given, 3, 1, 3, stop=False), {}),
    "any order": (
        text(remasking="random", temperature=0.6),
        lambda given: in_blocks(given, 3, 2, 3, any_of),
        {"temperature": 0.6},
    ),
    "guided": (text(guidance_scale=0.7), lambda given: in_blocks(given, 3, 2, 3), {"guidance": 0.7}),
    "left to right": (LeftToRight(temperature=1.3), lambda given: in_blocks(given, 3, 3, 1), {"temperature": 1.3}),
    "of the likeliest, any order": (
        text(remasking="random", temperature=1.5, top_k=3, min_p=0.6),
        lambda given: in_blocks(given, 3, 2, 3, any_of),
        {"temperature": 1.5, "top_k": 3, "min_p": 0.6},
    ),
    "of the likeliest, left to right": (
        LeftToRight(temperature=1.3, top_p=0.8),
        lambda given: in_blocks(given, 3, 3, 1),
        {"temperature": 1.3, "top_p": 0.8},
    ),
    "of the likeliest codes": (
        Emerge(steps=3, guidance_scale=0, temperature=2.0, top_k=2, top_p=0.9),
        lambda given: emerge(given, 4, 3),
        {"task": "t2i", "temperature": 2.0, "top_k": 2, "top_p": 0.9},
    ),
    "maskgit": (MaskGIT(steps=3, guidance_scale=0), lambda given: maskgit(given, 4, 3), {"task": "t2i"}),
    "maskgit, guided": (
        MaskGIT(steps=3, guidance_scale=0.7, temperature=1.2, remask_temperature=2.0),
        lambda given: maskgit(given, 4, 3, 2.0),
        {"task": "t2i", "guidance": 0.7, "temperature": 1.2},
    ),
    "maskgit, by confidence": (
        MaskGIT(steps=3, guidance_scale=0, remask_temperature=0.0),
        lambda given: maskgit(given, 4, 3, 0.0),
        {"task": "t2i"},
    ),
    "emerge": (Emerge(steps=3, guidance_scale=0), lambda given: emerge(given, 4, 3), {"task": "t2i"}),
    "emerge, guided": (
        Emerge(steps=2, guidance_scale=0.7, temperature=1.2),
        lambda given: emerge(given, 4, 2),
        {"task": "t2i", "guidance": 0.7, "temperature": 1.2},
    ),
}


def laws(model, cases) -> Callable[[str], Law]:
    """The law of each of ``cases``, enumerated once."""

    @cache
    def enumerated(name: str) -> Law:
        _, law, given = cases[name]
        return law(conditionals(model, **{"task": "text", "temperature": 1.0, "guidance": 0.0, **given}))

    return enumerated


@pytest.fixture(scope="module")
def law_of(model) -> Callable[[str], Law]:
    return laws(model, CASES)


@pytest.mark.smoke
@pytest.mark.parametrize("name", CASES)
def test_answers_follow_the_enumerated_law(model, law_of, name):
    assert p_value(model, CASES[name][0], law_of(name), CASES[name][2].get("task", "text")) > 1e-3


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("ends at a stop token", text(temperature=0.6)),
        ("ends at a stop token", text(remasking="random")),
        ("ends at a stop token", text(steps=3)),
        ("two at a time", text()),
        ("guided", text()),
        ("maskgit", MaskGIT(steps=3, guidance_scale=0, remask_temperature=0.0)),
        ("emerge", Emerge(steps=1, guidance_scale=0)),
        ("of the likeliest, any order", text(remasking="random", temperature=1.5, top_k=3)),
        ("of the likeliest, left to right", LeftToRight(temperature=1.3, top_p=0.7)),
    ],
)
def test_another_samplers_answers_are_told_apart(model, law_of, name, other):
    assert p_value(model, other, law_of(name), CASES[name][2].get("task", "text")) < 1e-6


@pytest.mark.parametrize("name", ["left to right", "of the likeliest, left to right"])
def test_what_is_recorded_is_the_law_that_answers_were_drawn_from(model, law_of, name):
    law = law_of(name)
    rollout = answers(model, CASES[name][0], 3, "text", rows=300)
    recorded = rollout.sampling_logps.double().sum(dim=1).exp().tolist()
    expected = [law[state] for state in map(tuple, rollout.canvas.ids[:, len(PROMPT) :].tolist())]
    assert recorded == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "kind",
    [partial(text, steps=6, block_length=6), partial(MaskGIT, steps=3, guidance_scale=0.7, remask_temperature=0.0)],
)
@pytest.mark.parametrize("only", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_drawing_the_likeliest_alone_is_greedy_and_ranks_as_it_does(model, kind, only):
    task = "t2i" if kind.func is MaskGIT else "text"
    drawn, greedy = (answers(model, kind(**own), 6, task, rows=20) for own in (only, {"temperature": 0.0}))
    assert torch.equal(drawn.canvas.ids, greedy.canvas.ids) and torch.equal(drawn.step_map, greedy.step_map)
    assert not drawn.sampling_logps.any() and greedy.sampling_logps.any()

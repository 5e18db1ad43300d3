"""Block diffusion beside kept keys: equal to none, the orders, editing, where an answer ends, and who cannot have it."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from unigrpo.algorithm.noising import StructuredNoising, TrajectoryNoising
from unigrpo.config.build import build_algorithm, held_out_sampler
from unigrpo.models.blocks import blocks_of
from unigrpo.rollout.generate_options import sampler_of
from unigrpo.rollout.sample import check_prompt
from unigrpo.samplers import Block, SemiAutoregressive
from unigrpo.samplers.block import within_bound
from unigrpo.testing.rollouts import difference, streams

from ..support.configs import config
from ..support.tiny_decoders import tiny_decoder


SIZE = 4
ROWS = [{"prompt": "w1 w2"}, {"prompt": "w9 w3 w2 w1 w2 w3 w4 w5 w6"}, {"prompt": "w1 w2 w3 w5 w6"}]
"""Prompts of 7, 14 and 10 tokens: three places in a block, and left padding."""


def world(length: int = 14, **fields):
    model, policy = tiny_decoder("blocks", **fields)
    return model, policy, policy.encode(ROWS, max_completion_length=length)


def fill(model, policy, canvas, **settings):
    sampler = Block(**{"steps": int(canvas.fill_mask.sum(dim=1).max()), **settings})
    return sampler(model, policy, canvas, generators=streams(len(canvas.ids)))


# ---- kept keys ----

KEPT = {
    "drawn": {"temperature": 0.7, "steps": 7},
    "sure ones at once": {"order": "dynamic", "confidence_threshold": 0.2},
    "guided": {"guidance_scale": 1.0, "order": "entropy", "entropy_bound": 3.0},
    "edited": {"edit_threshold": 0.05, "post_steps": 3},
}


class Columns:
    """Counts the columns of each row that a model's forwards compute."""

    def __init__(self, model) -> None:
        self.counts: list[int] = []
        self.hook = model.register_forward_pre_hook(self.keep, with_kwargs=True)

    def keep(self, module, arguments, kwargs) -> None:
        cache = kwargs.get("cache")
        self.counts.append(kwargs["input_ids"].shape[1] if cache is None else cache.span.shape[1])


@pytest.mark.smoke
@pytest.mark.parametrize("shift", [0, 1], ids=["", "shifted"])
@pytest.mark.parametrize("anchor", ["start", "prompt_end"])
@pytest.mark.parametrize("name", KEPT)
def test_kept_keys_change_nothing_and_spare_what_is_finished(name, anchor, shift):
    model, policy, canvas = world(block_anchor=anchor, logit_shift=shift)
    policy.stop_token_ids = () if name == "edited" else tuple(range(100, 140))
    plain = fill(model, policy, canvas, **KEPT[name], kv_cache="none")
    columns = Columns(model)
    kept = fill(model, policy, canvas, **KEPT[name])
    columns.hook.remove()
    assert not difference(plain, kept, 1e-5)
    assert columns.counts[0] > 2 * SIZE + shift >= max(columns.counts[1:])
    if name == "edited":
        assert int(kept.edits.sum()) > 10
    else:
        assert len(set(plain.completion_mask.sum(dim=1).tolist())) > 1, "rows leave one by one"


def test_a_forward_computes_what_is_new_of_each_row():
    model, policy, canvas = world()
    policy.stop_token_ids = ()
    columns = Columns(model)
    fill(model, policy, canvas, block_length=SIZE)
    columns.hook.remove()
    prompt = canvas.ids.shape[1] - 14
    # A grid that begins with the answer: the rows finish their blocks together.
    assert columns.counts == [prompt + 4, 4, 4, 4, *[8, 4, 4, 4] * 2, 6, 2]


# ---- orders ----


def test_positions_a_step_are_those_of_a_whole_block():
    """Also in a block that is half prompt, or cut off; every row has its own grid."""
    model, policy, canvas = world(length=10, block_anchor="start")
    policy.stop_token_ids = ()
    rollout = fill(model, policy, canvas, steps=5)
    blocks = blocks_of(canvas, SIZE, "start")
    found = []
    for row in range(3):
        held = canvas.fill_mask[row]
        own, steps = blocks[row][held], rollout.step_map[row][held]
        found.append(
            [
                [int((steps[own == block] == step).sum()) for step in steps[own == block].unique()]
                for block in own.unique()
            ]
        )
        assert steps.max() + 1 == sum(len(counts) for counts in found[-1]), "no step is left out"
    assert found == [[[1], [2, 2], [2, 2], [1]], [[2], [2, 2], [2, 2]], [[2], [2, 2], [2, 2]]]


def test_sequential_writes_from_the_left_and_dynamic_all_that_is_sure():
    model, policy, canvas = world()
    policy.stop_token_ids = ()
    steps = fill(model, policy, canvas, order="sequential").step_map[canvas.fill_mask].view(3, -1)
    assert torch.equal(steps, torch.arange(14).expand(3, -1))
    space = canvas.token_space
    logits = model(**policy.inputs(canvas), select=canvas.fill_mask, token_space=space).logits.view(3, 14, -1)
    first = logits.softmax(-1).amax(-1)[:, :SIZE].detach()
    bar = float(first.median())
    sure = fill(model, policy, canvas, order="dynamic", confidence_threshold=bar, temperature=0.0)
    surest = fill(model, policy, canvas, temperature=0.0)
    for rollout, expected in (
        (sure, (first > bar) | (first == first.amax(1, keepdim=True))),
        (surest, first == first.amax(1, keepdim=True)),
    ):
        written = (rollout.step_map[canvas.fill_mask].view(3, -1) == 0)[:, :SIZE]
        assert torch.equal(written, expected)
    assert int((sure.step_map == 0).sum()) > 3


@pytest.mark.parametrize(
    ("bound", "chosen"),
    [(0.0, [[3], [0]]), (0.3, [[2, 3], [0]]), (0.31, [[1, 2, 3], [0]]), (10.0, [[0, 1, 2, 3], [0, 1]])],
)
def test_entropies_add_up_to_the_bound_but_for_the_largest(bound, chosen):
    entropy = torch.tensor([[2.0, 0.5, 0.2, 0.1, 0.0], [1.0, 2.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    holes = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]).bool()
    assert [own.nonzero().squeeze(1).tolist() for own in within_bound(entropy, holes, bound)] == chosen


# ---- editing ----


@torch.no_grad()
def edited_by_hand(model, policy, canvas, threshold: float, most: int) -> tuple[list[int], list[int], list[int]]:
    """Ids, step of the last writing and number of edits of a row's answer: one at a time, greedy, with a full forward each."""
    ids, steps, edits = canvas.ids[0].clone(), {}, {}
    answer, blocks, step = canvas.fill_mask[0], blocks_of(canvas, SIZE, policy.block_anchor)[0], 0
    space = canvas.token_space
    for block in blocks[answer].unique().tolist():
        here = [at for at in answer.nonzero().squeeze(1).tolist() if blocks[at] == block]
        checks = 0
        while True:
            holes = [at for at in here if at not in steps]
            checks += not holes
            if checks > most:
                break
            own = replace(canvas, ids=ids[None])
            logits = model(
                **policy.inputs(own, answer[None] & torch.tensor([[at not in steps for at in range(len(ids))]]))
            ).logits[0]
            logits[:, list(space.exclude)] = -torch.inf
            best, tokens = logits[:, space.start : space.stop].softmax(-1).max(-1)
            changes = [at for at in here if at in steps and best[at] > threshold and tokens[at] != ids[at]]
            if holes:
                changes.append(max(holes, key=lambda at: best[at]))
            for at in changes:
                edits[at] = edits.get(at, -1) + 1
                ids[at], steps[at] = tokens[at], step
            step += 1
            if not holes and not changes:
                break
    return tuple([table[at] for at in answer.nonzero().squeeze(1).tolist()] for table in (ids.tolist(), steps, edits))


@pytest.mark.parametrize("anchor", ["start", "prompt_end"])
def test_edits_are_those_of_plain_loops(anchor):
    model, policy, canvas = world(length=10, block_anchor=anchor)
    policy.stop_token_ids = ()
    settings = {"edit_threshold": 0.05, "post_steps": 3, "temperature": 0.0}
    rollout = fill(model, policy, canvas, **settings)
    for row in range(3):
        own, held = canvas.take(torch.tensor([row])), canvas.fill_mask[row]
        expected = edited_by_hand(model, policy, own, 0.05, 3)
        found = (rollout.canvas.ids, rollout.step_map, rollout.edits)
        assert [values[row][held].tolist() for values in found] == list(expected)
    assert int(rollout.edits.max()) > 1
    assert fill(model, policy, canvas).edits is None


def test_an_answer_with_edits_ends_with_its_block():
    """A stop token may be taken back while its block is written; later blocks are not begun."""
    model, policy, canvas = world()
    policy.stop_token_ids = ()
    settings = {"edit_threshold": 0.05, "post_steps": 3, "temperature": 0.0}
    free = fill(model, policy, canvas, **settings)
    held, written = canvas.fill_mask[0], free.canvas.ids[0][canvas.fill_mask[0]].tolist()
    place = next(at for at in range(SIZE, 2 * SIZE) if written.index(written[at]) == at)
    policy.stop_token_ids = (written[place],)
    ended = fill(model, policy, canvas.take(torch.tensor([0])), **settings)
    assert ended.canvas.ids[0][held].tolist() == written[: place + 1] + [policy.pad_token_id] * (14 - place - 1)
    assert ended.completion_mask[0][held].tolist() == [True] * (place + 1) + [False] * (14 - place - 1)
    assert not ended.edits[~ended.completion_mask].any()
    assert int(ended.step_map.max()) <= int(free.step_map[0][held][: 2 * SIZE].max())


def test_a_trajectory_with_edits_is_refused_and_other_noise_is_not():
    model, policy, canvas = world()
    rollout = fill(model, policy, canvas, edit_threshold=0.05)
    noise = {"num_iterations": 1, "num_samples": 1, "key": (0, 0), "rows": [0, 1, 2]}
    assert StructuredNoising()(rollout, **noise).target.any()
    with pytest.raises(ValueError, match=r"TrajectoryNoising scores each token .* set edit_threshold to none"):
        TrajectoryNoising()(rollout, **noise)
    assert TrajectoryNoising()(replace(rollout, edits=None), **noise).target.any()
    with pytest.raises(ValueError, match=r"noising='trajectory' .* edit_threshold=0.9 .* such as 'structured'"):
        config(sampler="block", edit_threshold=0.9, noising="trajectory")
    assert build_algorithm(config(sampler="block", edit_threshold=0.9), "text").sampler.edit_threshold == 0.9


# ---- settings ----


def test_the_samplers_settings():
    """A run's own, its held-out answers' and those that another sampler or model has."""
    settings = config(sampler="block", order="dynamic", steps=64).for_task("text")
    sampler = build_algorithm(config(sampler="block", order="dynamic", steps=64), "text").sampler
    assert sampler == Block(order="dynamic", steps=64) and (sampler.kv_cache, sampler.block_length) == ("exact", None)
    assert held_out_sampler(settings) == replace(
        sampler, temperature=0.0, confidence_threshold=None, entropy_bound=0.0
    )
    assert config(sampler="block", order="entropy").for_task("text").entropy_bound == 0.1
    assert held_out_sampler(config(sampler="block", order="entropy").for_task("text")).entropy_bound == 0
    assert config().for_task("text").kv_cache == "none"
    for sampler, kind in (("block", "dual"), ("semi_autoregressive", "exact")):
        with pytest.raises(ValueError, match=f"kv_cache='{kind}'"):
            config(sampler=sampler, kv_cache=kind)
    with pytest.raises(ValueError, match=r"eval_sampler\.kv_cache is not read"):
        config(sampler="block", eval_sampler={"name": "block", "kv_cache": "none"})
    with pytest.raises(ValueError, match="stop='block_end': choose"):
        Block(stop="block_end")


def test_a_model_that_does_not_fit_is_refused_before_anything_is_sampled():
    model, policy, canvas = world()
    row, args = {"prompt": "w1"}, {"sampler": "block", "max_completion_length": 12, "steps": 12}
    check_prompt(policy, config(**args), None, row, "rows[0]")
    for wrong, words in (
        ({"block_length": 8}, r"rows\[0\], task 'text': block_length=8 is not the block_size=4 of A2DQwen3Policy"),
        ({"steps": 2}, r"rows\[0\], task 'text': steps=2 is less than the 3 blocks of 4 positions"),
    ):
        with pytest.raises(ValueError, match=words):
            check_prompt(policy, config(**{**args, **wrong}), None, row, "rows[0]")
    with pytest.raises(ValueError, match=r"task 'text': eval_denoising_steps=2 is less .* raise eval_denoising_steps"):
        check_prompt(policy, config(**args, eval_denoising_steps=2), None, row, "rows[0]", held_out=True)
    with pytest.raises(ValueError, match="steps=3 is less than the 4 blocks"):
        fill(model, policy, canvas, steps=3)
    other, full = tiny_decoder("a2d-qwen3")
    with pytest.raises(ValueError, match="A2DQwen3Policy's is full: set sampler='semi_autoregressive'"):
        fill(other, full, full.encode(ROWS, max_completion_length=14))


@pytest.mark.parametrize(
    ("anchor", "keys", "warned"),
    [
        ("prompt_end", {"sampler": "semi_autoregressive", "block_length": SIZE}, False),
        ("prompt_end", {"sampler": "semi_autoregressive", "block_length": 2 * SIZE}, True),
        ("start", {"sampler": "semi_autoregressive", "block_length": SIZE}, True),
        ("start", {"sampler": "left_to_right"}, False),
        ("prompt_end", {"sampler": "dream"}, True),
    ],
)
def test_samplers_that_write_against_masks_in_earlier_blocks_are_warned_of(anchor, keys, warned):
    policy = tiny_decoder("blocks", block_anchor=anchor)[1]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        check_prompt(policy, config(**keys, max_completion_length=8), None, {"prompt": "w1"}, "rows[0]")
    found = [str(own.message) for own in said if "earlier blocks of A2DQwen3Policy" in str(own.message)]
    assert len(found) == warned and all(own.endswith("set sampler='block'") for own in found)


def test_a_model_that_keeps_no_keys_writes_the_same():
    model, policy, canvas = world()
    expected = fill(model, policy, canvas)
    policy.supports_cache = False
    columns = Columns(model)
    assert not difference(fill(model, policy, canvas), expected, 1e-5)
    columns.hook.remove()
    assert set(columns.counts) == {canvas.ids.shape[1]}
    check_prompt(policy, config(sampler="block", max_completion_length=12), None, {"prompt": "w1"}, "rows[0]")


def test_one_position_a_step_from_the_left_is_what_left_to_right_blocks_write():
    """Of a grid that begins with the answer, with the other sampler's random numbers."""
    model, policy, canvas = world(length=12)
    own = fill(model, policy, canvas, order="static", steps=12)
    settings = {"steps": 12, "block_length": SIZE}
    other = SemiAutoregressive(**settings)(model, policy, canvas, generators=streams(3))
    assert not difference(replace(own, step_map=other.step_map), other, 1e-5)


def test_text_of_models_in_blocks_is_written_by_this_sampler_unless_another_is_asked_for():
    named = {"max_completion_length": 8, "steps": None, "temperature": None}
    for in_blocks, sampler in ((True, Block(steps=8, temperature=0.0)), (False, SemiAutoregressive)):
        fill, length = sampler_of("text", None, dict(named), None, {}, {}, (), in_blocks)
        assert (fill == sampler or type(fill) is sampler) and length == 8
    asked, _ = sampler_of("text", "left_to_right", dict(named), None, {}, {}, (), True)
    assert type(asked).__name__ == "LeftToRight"

"""Structured noising: the timestep rules, exact counts, and masks that depend on their key alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from unigrpo.algorithm.noising import NOISING, BlockNoising, StructuredNoising, TrajectoryNoising, timesteps
from unigrpo.algorithm.noising.base import Answer
from unigrpo.config.arguments import UniGRPOConfig
from unigrpo.config.build import build_algorithms
from unigrpo.types import Rollout, keyed_generator

from ..support.records import rollout
from ..support.tiny import golden


def draw(completions, rows=None, *, key=(0, 0), iterations=4, samples=1, prompt=3, **options):
    rows = list(range(len(completions))) if rows is None else rows
    return StructuredNoising(**options)(
        rollout(completions, prompt), num_iterations=iterations, num_samples=samples, key=key, rows=rows
    )


def rule(name: str, t1: int, updates: int, total: int = 1000) -> list[int]:
    return timesteps(name, t1, updates, total, generator=keyed_generator("test"))


def test_stratified_is_the_paper_example():
    assert rule("stratified", 100, 5) == [100, 300, 500, 700, 900]
    assert rule("stratified", 901, 5) == [901, 101, 301, 501, 701]
    assert rule("stratified", 1000, 4) == [1000, 250, 500, 750]
    assert rule("stratified", 7, 1) == [7]


def test_stratified_stays_in_range_and_spreads():
    for t1 in range(1, 101):
        steps = rule("stratified", t1, 7, 100)
        assert all(1 <= t <= 100 for t in steps)
        assert len(set(steps)) == 7
        ordered = sorted(steps)
        gaps = [b - a for a, b in zip(ordered, [*ordered[1:], ordered[0] + 100], strict=True)]
        assert set(gaps) <= {14, 15}


def test_paper_formula_example_and_golden_table():
    assert rule("paper_formula", 100, 5) == [100, 325, 550, 775, 1000]
    assert rule("paper_formula", 42, 1) == [42]
    table = golden("g7_rl")[0]["unigrpo.timesteps"].tolist()
    assert len(table) == 12
    for updates, t1, *steps in table:
        assert rule("paper_formula", t1, updates) == steps[:updates]


def test_random_keeps_the_first_and_covers_the_range():
    steps = rule("random", 5, 2001, 10)
    assert steps[0] == 5
    assert set(steps[1:]) == set(range(1, 11))
    shares = [steps[1:].count(t) / 2000 for t in range(1, 11)]
    assert max(abs(share - 0.1) for share in shares) < 0.03


def law(name: str, lowest: float, updates: int, total: int = 1000, *key: int) -> list[int]:
    """A rule that does not use t_1."""
    return timesteps(name, 7, updates, total, lowest, generator=keyed_generator("test", *key))


def test_truncated_hand_values():
    assert law("truncated", 0.8, 4) == [850, 900, 950, 999]
    assert law("truncated", 0.8, 1) == [999]
    assert law("truncated", 0.5, 2) == [750, 999]
    assert law("truncated", 0.0, 4) == [250, 500, 750, 999]
    assert law("truncated", 0.8, 4, 100) == [85, 90, 95, 99]
    assert law("truncated", 0.0, 3, 1) == [1, 1, 1]
    assert law("truncated", 0.7, 12)[:4] == [725, 750, 775, 800]


@pytest.mark.parametrize("lowest", [0.0, 0.3, 0.8])
def test_cosine_follows_its_law(lowest):
    """t / T = cos(pi u / 2) with u uniform: angles are uniform on (0, acos g), their mean ratio is sin(a) / a."""
    steps = torch.tensor(law("cosine", lowest, 20_000, 1_000_000), dtype=torch.float64) / 1_000_000
    angle = math.acos(lowest)
    assert float(steps.min()) >= lowest
    assert float(steps.max()) <= 1.0
    variance = 0.5 + math.sin(2 * angle) / (4 * angle) - (math.sin(angle) / angle) ** 2
    assert abs(float(steps.mean()) - math.sin(angle) / angle) < 4 * math.sqrt(variance / 20_000)
    quarter = float((steps > math.cos(angle / 4)).double().mean())
    assert abs(quarter - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 20_000)
    if not lowest:
        assert abs(float(steps.mean()) - 2 / math.pi) < 0.01


def test_every_cosine_timestep_is_at_least_one():
    assert min(law("cosine", 0.0, 5000, 10)) == 1


def test_the_rules_for_images_as_noise():
    """``truncated`` hides the same share in every row, ``cosine`` another in each; both never less than the lowest."""
    noise = draw([20, 30], timesteps="truncated")
    assert noise.hidden.sum(-1)[:, :, 0].tolist() == [[17, 18, 19, 20], [26, 27, 28, 30]]
    assert noise.mask_ratio[0, :, 0].tolist() == pytest.approx([0.85, 0.9, 0.95, 0.999])
    lower = draw([30] * 200, timesteps="cosine", mask_ratio_min=0.6)
    shares = lower.hidden.sum(-1).flatten()
    assert int(shares.min()) >= 18
    assert len(set(lower.mask_ratio.flatten().tolist())) > 200
    assert int(draw([30] * 200, timesteps="cosine").hidden.sum(-1).min()) < 6


def test_a_task_may_have_its_own_rule():
    overrides = {"t2i": {"timesteps": "truncated", "mask_ratio_min": 0.6}, "mmu": {"timesteps": "cosine"}}
    args = UniGRPOConfig("unused", use_cpu=True, report_to="none", task_overrides=overrides, num_timesteps=100)
    noising = {task: algorithm.noising for task, algorithm in build_algorithms(args).items()}
    assert noising["t2i"].row_timesteps(4, (0, 0, 3)) == [70, 80, 90, 99]
    assert noising["text"] == StructuredNoising(timesteps="stratified", num_timesteps=100)
    assert noising["mmu"] == StructuredNoising(timesteps="cosine", num_timesteps=100)
    default = {"t2i": {"timesteps": "truncated"}}
    args = UniGRPOConfig("unused", use_cpu=True, report_to="none", task_overrides=default)
    assert build_algorithms(args)["t2i"].noising.row_timesteps(4, (0, 0, 3)) == [850, 900, 950, 999]


def test_exact_count_and_only_completion_tokens():
    counts = [1, 2, 7, 12, 30]
    for t1 in (1, 40, 250, 333, 500, 777, 1000):
        noise = draw(counts, timestep_start=t1)
        steps = rule("stratified", t1, 4)
        completion = rollout(counts).completion_mask
        for b, count in enumerate(counts):
            for k, t in enumerate(steps):
                assert int(noise.hidden[b, k, 0].sum()) == max(1, round(count * t / 1000))
                assert not bool((noise.hidden[b, k, 0] & ~completion[b]).any())
        assert torch.equal(noise.mask_ratio[:, :, 0], torch.tensor([[t / 1000 for t in steps]] * len(counts)))


def test_scored_tokens_are_the_hidden_ones_with_weight_one():
    noise = draw([12, 5], samples=2)
    assert torch.equal(noise.target, noise.hidden)
    assert torch.equal(noise.weight, noise.hidden.float())
    assert noise.input_ids is None
    assert noise.hidden.shape == (2, 4, 2, 40)


def test_draws_share_the_timestep_but_not_the_mask():
    noise = draw([30], samples=3, timestep_start=100)
    counts = noise.hidden.sum(dim=-1)[0]
    assert torch.equal(counts, counts[:, :1].expand_as(counts))
    assert torch.equal(noise.mask_ratio, noise.mask_ratio[:, :, :1].expand_as(noise.mask_ratio))
    for k in range(4):
        masks = {tuple(noise.hidden[0, k, s].tolist()) for s in range(3)}
        assert len(masks) == 3


@pytest.mark.smoke
def test_key_alone_decides_the_mask():
    """Batch composition, order and left padding do not reach the draw."""
    together = draw([12, 30, 7], [4, 9, 2], key=(5, 1), samples=2)
    alone = draw([30], [9], key=(5, 1), samples=2)
    assert torch.equal(together.hidden[1], alone.hidden[0])
    padded = draw([30], [9], key=(5, 1), samples=2, prompt=8)
    assert torch.equal(padded.hidden[0, :, :, 8:38], alone.hidden[0, :, :, 3:33])


def padded_by(own: Rollout, count: int) -> Rollout:
    """The same rows behind ``count`` positions of padding."""

    def pad(values: torch.Tensor, fill: int | bool) -> torch.Tensor:
        return torch.nn.functional.pad(values, (count, 0), value=fill)

    canvas = replace(
        own.canvas,
        ids=pad(own.canvas.ids, 0),
        fill_mask=pad(own.canvas.fill_mask, False),
        attention_mask=pad(own.canvas.attention_mask, False),
    )
    masks = {"completion_mask": pad(own.completion_mask, False), "step_map": pad(own.step_map, -1)}
    return replace(own, canvas=canvas, sampling_logps=pad(own.sampling_logps, 0), **masks)


@pytest.mark.parametrize("name", sorted(NOISING))
def test_padding_moves_no_rows_noise(name):
    """Of every scheme, with prompt tokens hidden too: padding is neither hidden nor drawn for."""
    own = rollout([12], prompt=9)
    own = replace(own, step_map=torch.where(own.completion_mask, torch.arange(40) // 3, -1))
    alone, behind = (
        NOISING[name](p_mask_prompt=0.5)(rows, num_iterations=2, num_samples=2, key=(5, 1), rows=[9])
        for rows in (own, padded_by(own, 6))
    )
    assert alone.hidden[..., :9].any() and not behind.hidden[..., :6].any()
    for field in ("hidden", "target", "weight"):
        assert torch.equal(getattr(behind, field)[..., 6:], getattr(alone, field))


@pytest.mark.parametrize("change", [{"key": (6, 1)}, {"key": (5, 2)}, {"rows": [10]}])
def test_another_key_gives_another_mask(change):
    base = draw([30], **{"rows": [9], "key": (5, 1), "timestep_start": 500})
    other = draw([30], **{"rows": [9], "key": (5, 1), "timestep_start": 500, **change})
    assert not torch.equal(base.hidden, other.hidden)


@pytest.mark.parametrize("name", sorted(set(NOISING) - {"autoregressive", "trajectory"}))
def test_every_update_has_masks_of_its_own(name):
    """Of every scheme that draws; the order of writing is one for all updates."""
    noise = NOISING[name](p_mask_prompt=0.3)(rollout([30]), num_iterations=4, num_samples=2, key=(0, 0), rows=[0])
    assert len({tuple(masks.flatten().tolist()) for masks in noise.hidden[0]}) == 4


def test_updates_have_different_masks_at_equal_ratio():
    noise = draw([30], iterations=8, timesteps="random", timestep_start=1, num_timesteps=2)
    halves = [tuple(mask.tolist()) for mask in noise.hidden[0, :, 0] if mask.sum() == 15]
    assert len(halves) >= 2
    assert len(set(halves)) == len(halves)


def test_first_timestep_is_uniform_and_differs_between_rows():
    noising = StructuredNoising(num_timesteps=10)
    first = [noising.row_timesteps(1, (0, 0, row))[0] for row in range(2000)]
    assert set(first) == set(range(1, 11))
    assert max(abs(first.count(t) / 2000 - 0.1) for t in range(1, 11)) < 0.03
    assert noising.row_timesteps(3, (0, 0, 1)) == noising.row_timesteps(3, (0, 0, 1))


def test_positions_are_hidden_uniformly():
    counts = torch.zeros(10)
    for row in range(600):
        counts += draw([10], [row], iterations=1, timestep_start=300).hidden[0, 0, 0, 3:13].float()
    assert counts.sum() == 600 * 3
    assert (counts / 600 - 0.3).abs().max() < 0.08


def test_one_update_of_the_record():
    noise = draw([30, 12], samples=2)
    second = noise.at(1)
    assert torch.equal(second.hidden, noise.hidden[:, 1:2])
    assert torch.equal(second.mask_ratio, noise.mask_ratio[:, 1:2])


def test_a_trajectory_hides_the_tail_until_the_stop_token_is_written():
    """Order of writing 1 0 3 2, the stop token at place 3: the sampler made the tail padding when it wrote it, in step 2."""
    completion = torch.tensor([0, 1, 1, 1, 1, 0, 0]).bool()
    fill = torch.tensor([0, 1, 1, 1, 1, 1, 1]).bool()
    steps = torch.tensor([-1, 1, 0, 3, 2, -1, -1])
    answer = Answer(completion=completion, fill=fill, prompt=~fill, step_map=steps)
    draws = TrajectoryNoising().draws(answer, 0, 1, 0, (0,))
    assert [draw.hidden.long().tolist() for draw in draws] == [
        [0, 1, 1, 1, 1, 1, 1],
        [0, 1, 0, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, 1, 1],
        [0, 0, 0, 1, 0, 0, 0],
    ]
    merged = TrajectoryNoising(trajectory_shrink=3).draws(answer, 0, 1, 0, (0,))
    assert [draw.hidden.long().tolist() for draw in merged] == [[0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0, 0]]


def test_a_trajectory_in_blocks_takes_a_step_of_each_at_once():
    """Blocks of three, the first half prompt, the stop token first in the last; tails of its block alone are as the sampler saw them."""
    completion = torch.tensor([0, 1, 1, 1, 1, 1, 1, 0, 0, 0]).bool()
    fill = torch.tensor([0, 1, 1, 1, 1, 1, 1, 1, 1, 1]).bool()
    steps = torch.tensor([-1, 1, 0, 4, 3, 2, 5, -1, -1, -1])
    block = torch.tensor([-1, 0, 0, 1, 1, 1, 2, 2, 2, 3])
    answer = Answer(completion=completion, fill=fill, prompt=~fill, step_map=steps, block=block)
    draws = TrajectoryNoising().draws(answer, 0, 1, 0, (0,))
    assert [draw.target.long().tolist() for draw in draws] == [
        [0, 0, 1, 0, 0, 1, 1, 0, 0, 0],
        [0, 1, 0, 0, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
    ]
    assert [draw.hidden.long().tolist()[:9] for draw in draws] == [
        [0, 1, 1, 1, 1, 1, 1, 1, 1],
        [0, 1, 0, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0, 0],
    ]
    merged = TrajectoryNoising(trajectory_shrink=2).draws(answer, 0, 1, 0, (0,))
    assert [draw.target.long().tolist() for draw in merged] == [
        [0, 1, 1, 0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
    ]


def test_each_block_has_timesteps_of_its_own():
    """Exact counts in every block, one token at least, whose chances are the weights'; the first block is as long as its share."""
    completion = torch.arange(24) >= 2
    answer = Answer(
        completion=completion,
        fill=completion,
        prompt=~completion,
        step_map=torch.zeros(24, dtype=torch.int64),
        block=torch.where(completion, torch.arange(24) // 8, -1),
    )
    noising = StructuredNoising(noise_per="block", num_timesteps=8)
    seen = set()
    for row in range(20):
        (draw_,) = noising.draws(answer, 0, 1, 1, (0, 0, row))
        t = [noising.row_timesteps(1, (0, 0, row, number))[0] for number in range(3)]
        counts = [max(round(n * own / 8), 1) for n, own in zip((6, 8, 8), t, strict=True)]
        assert [int(own.sum()) for own in (draw_.hidden[:8], draw_.hidden[8:16], draw_.hidden[16:])] == counts
        assert not draw_.hidden[:2].any() and torch.equal(draw_.hidden, draw_.target)
        chances = draw_.probability[[2, 8, 16]].tolist()
        assert chances == pytest.approx([n / own for n, own in zip(counts, (6, 8, 8), strict=True)])
        assert draw_.ratio == pytest.approx(sum(own * n for own, n in zip(t, (6, 8, 8), strict=True)) / 8 / 22)
        seen.add(tuple(t))
    assert len(seen) > 15


def test_block_noise_of_a_model_in_blocks_follows_its_grid():
    """Blocks that begin before the answer: the noised one has a hidden token, all later ones are hidden whole, earlier ones not at all."""
    completion = torch.arange(12) >= 3
    grid = torch.where(completion, torch.arange(12) // 4, -1)
    answer = Answer(
        completion=completion, fill=completion, prompt=~completion, step_map=torch.zeros(12).long(), block=grid
    )
    whole = set()
    for row in range(20):
        (draw_,) = BlockNoising(block_length=32).draws(answer, 0, 1, 1, (0, 0, row))
        first = int(grid[draw_.hidden].min())
        assert draw_.hidden[grid > first].all()
        whole.add(first)
    assert whole == {0, 1, 2}

"""More blocks than steps is found before training, for the text tasks a run has; pictures have no blocks."""

from __future__ import annotations

import pytest

from unigrpo import UniGRPOConfig
from unigrpo.config.build import check_task_sampler, held_out_sampler
from unigrpo.samplers import Block, SemiAutoregressive


BASE = {"output_dir": "unused", "use_cpu": True, "report_to": "none"}
EIGHT = Block(temperature=0.0, block_length=8, **Block.exact_decoding)
EIGHT_ELSEWHERE = SemiAutoregressive(temperature=0.0, block_length=8)


def test_more_blocks_than_steps_is_refused_with_the_cure():
    args = UniGRPOConfig(**BASE, steps=4, block_length=4, max_completion_length=64)
    with pytest.raises(
        ValueError, match=r"rows\[1\], task 'text': steps=4 is less than the 16 blocks .* raise steps or"
    ):
        check_task_sampler(args, "text", "rows[1]")
    check_task_sampler(args, "t2i", "rows[2]")
    args = UniGRPOConfig(**BASE, task_overrides={"mmu": {"steps": 2}})
    check_task_sampler(args, "text", "rows[0]")
    with pytest.raises(ValueError, match=r"task 'mmu': steps=2 is less than the 8 blocks"):
        check_task_sampler(args, "mmu", "rows[0]")

    check_task_sampler(UniGRPOConfig(**BASE, steps=16, block_length=4, max_completion_length=64), "text", "rows[0]")


@pytest.mark.smoke
def test_held_out_steps_count_too():
    args = UniGRPOConfig(**BASE, eval_denoising_steps=4)
    with pytest.raises(
        ValueError, match=r"eval_denoising_steps=4 is less than the 8 blocks .* raise eval_denoising_steps"
    ):
        check_task_sampler(args, "text", "rows[0]", held_out=True)


@pytest.mark.parametrize(
    ("sampler", "held_out", "keys", "expected"),
    [
        ("block", "semi_autoregressive", {}, SemiAutoregressive(temperature=0.0)),
        ("semi_autoregressive", "block", {}, Block(temperature=0.0, **Block.exact_decoding)),
        ("left_to_right", "block", {}, Block(temperature=0.0, **Block.exact_decoding)),
        ("semi_autoregressive", "block", {"block_length": 8, "kv_cache": "dual"}, EIGHT),
        ("block", "semi_autoregressive", {"block_length": 8, "kv_cache": "none"}, EIGHT_ELSEWHERE),
    ],
)
def test_another_held_out_sampler_has_its_own_defaults(sampler, held_out, keys, expected):
    settings = UniGRPOConfig(**BASE, sampler=sampler, eval_sampler=held_out, **keys).for_task("text")
    assert held_out_sampler(settings) == expected

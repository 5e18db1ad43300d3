"""More blocks than steps is found before training, for the text tasks a run has; pictures have no blocks."""

from __future__ import annotations

import pytest

from unigrpo import UniGRPOConfig
from unigrpo.config.build import check_task_sampler


BASE = {"output_dir": "unused", "use_cpu": True, "report_to": "none"}


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

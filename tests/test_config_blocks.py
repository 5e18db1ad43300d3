"""More blocks than steps is found at construction, for text; images have no blocks."""

from __future__ import annotations

import pytest

from unigrpo import UniGRPOConfig


BASE = {"output_dir": "unused", "use_cpu": True, "report_to": "none"}


def test_more_blocks_than_steps_is_refused_with_the_cure():
    with pytest.raises(ValueError, match=r"steps=4 is less than the 16 blocks .* raise steps or block_length"):
        UniGRPOConfig(**BASE, steps=4, block_length=4, max_completion_length=64)
    with pytest.raises(ValueError, match=r"task_overrides\.mmu\.steps=2 is less than the 8 blocks"):
        UniGRPOConfig(**BASE, task_overrides={"mmu": {"steps": 2}})


def test_steps_equal_to_blocks_and_few_image_steps_are_fine():
    assert UniGRPOConfig(**BASE, steps=16, block_length=4, max_completion_length=64).steps == 16
    assert UniGRPOConfig(**BASE, task_overrides={"t2i": {"steps": 4}}).for_task("t2i").steps == 4

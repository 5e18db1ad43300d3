"""Folders of tiny models, made once a module."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..support.images import tiny_tokenizer
from ..support.tiny import tiny_llada, tiny_model, tiny_processor
from ..support.tiny_decoders import tiny_decoder
from ..support.tiny_lumina import random_lumina
from ..support.tiny_parallel import tiny_parallel
from ..support.tiny_scorers import save_clip, save_image_reward


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(path)
    tiny_processor().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tiny_models(tiny_path, tmp_path_factory) -> dict[str, Path]:
    """Folders of a tiny policy, image tokenizer, CLIP and ImageReward."""
    folder = tmp_path_factory.mktemp("tiny_models")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    save_clip(folder / "clip")
    save_image_reward(folder / "image_reward")
    for name, (model, processor) in families().items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return {"policy": tiny_path, **{own.name: own for own in folder.iterdir()}}


def families() -> dict:
    """Model and processor of each other family that a recipe is for, by its name."""
    decoders = {"Dream": tiny_decoder("dream"), "a2d-qwen3": tiny_decoder("a2d-qwen3")}
    decoders |= {"sdar": tiny_decoder("sdar"), "llada2_moe": tiny_decoder("llada2")}
    found = {name: (model, policy.processor) for name, (model, policy) in decoders.items()}
    parallel, described = tiny_parallel()
    found["mmada_parallel_m"] = (parallel, described.processor)
    return {**found, "llada": (tiny_llada(), tiny_processor()), "lumina_dimoo": random_lumina()}

"""A run whose image tokenizer and reward models wait on the CPU takes the same steps, and measures the same."""

from __future__ import annotations

import json

from unigrpo.data.image_codes import ImageCodec
from unigrpo.rewards.clip import ClipScore
from unigrpo.runs.cli import main
from unigrpo.runs.recipe import load_recipe

from ..support.recipes import ROOT, SMALL, replaced_data, replaced_models, replaced_sizes


def test_an_offloaded_run_is_the_same_run(tiny_models, tmp_path, monkeypatch):
    file, rows, kinds = str(ROOT / "recipes" / "image_mmada_8b_lora.yaml"), {}, []
    recipe = load_recipe(file)
    small = [*SMALL, "image_size=32", "lora.r=4", *replaced_sizes(recipe), *replaced_models(recipe, tiny_models)]
    small += replaced_data(recipe, tmp_path, {"datasets": 2, "eval_datasets": 2})
    encode, score = ImageCodec.decode, ClipScore.__call__

    def decoding(codec, *arguments):
        kinds.append(("tokenizer", codec.offload))
        return encode(codec, *arguments)

    def scoring(reward, *arguments, **columns):
        kinds.append(("scorer", reward.offload))
        return score(reward, *arguments, **columns)

    monkeypatch.setattr(ImageCodec, "decode", decoding)
    monkeypatch.setattr(ClipScore, "__call__", scoring)
    for offload in ("false", "true"):
        out = tmp_path / offload
        keys = [f"offload_image_tokenizer={offload}", f"offload_reward_models={offload}", f"output_dir={out}"]
        assert main(["train", file, *small, *keys]) == 0
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        untimed = ("loss", "grad_norm", "kl", "reward", "rewards/clip_score/mean", "rewards/image_reward/mean")
        rows[offload] = [{key: line[key] for key in untimed if key in line} for line in lines]
        assert set(kinds) == {("tokenizer", offload == "true"), ("scorer", offload == "true")}
        kinds.clear()
        assert main(["evaluate", file, *small, *keys]) == 0
        assert (out / "images_evaluated.png").exists()
        assert set(kinds) == {("tokenizer", offload == "true"), ("scorer", offload == "true")}
        kinds.clear()
    assert rows["true"] == rows["false"]
    assert sum("loss" in row for row in rows["true"]) == 2 and any(
        "rewards/clip_score/mean" in row for row in rows["true"]
    )

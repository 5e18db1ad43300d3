"""Greedy trajectories of SDAR, LLaDA2 and dllm's BD3LM sampler, as their public code walked them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from unigrpo.models import POLICIES
from unigrpo.samplers import Block

from ..models.test_family_goldens import canvas_of, opened, walked
from ..support.tiny_decoders import decoder_tokenizer, family_golden


pytestmark = pytest.mark.golden

GREEDY = {"temperature": 0.0, "stop": "never"}


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return load_file(family_golden("block_trajectories.safetensors"))


def sdar() -> tuple[Any, Any]:
    """SDAR's weights in a Qwen3, which is the same network in fp32."""
    kind = POLICIES["a2d-qwen3"]
    published = json.loads((family_golden("sdar") / "config.json").read_text())
    of_code = ("architectures", "auto_map", "attn_implementation", "model_type", "torch_dtype", "rope_scaling")
    fields = {key: value for key, value in published.items() if key not in of_code}
    model = kind.model_class(kind.model_class.config_class(**fields, attention="block_causal", dtype="float32"))
    model.load_state_dict(load_file(family_golden("sdar") / "model.safetensors"))
    return model.eval(), kind(model.config, decoder_tokenizer())


SDAR = {
    "static": {"steps": 14},
    "static_2steps": {"steps": 7},
    "sequential": {"steps": 14, "order": "sequential"},
    "dynamic": {"steps": 14, "order": "dynamic", "confidence_threshold": 0.17},
}


@pytest.mark.smoke
@pytest.mark.parametrize("case", SDAR)
def test_greedy_sdar_writes_what_the_public_code_writes(case, recorded):
    """The prompt of ten tokens ends inside a block of four."""
    model, policy = sdar()
    canvas = canvas_of(policy, recorded["sdar.gen.prompt"], 14)
    found = walked(model, policy, Block(**SDAR[case], **GREEDY), canvas)[:, 0]
    assert torch.equal(found[-1], recorded[f"sdar.gen.{case}.out"][0])
    before = torch.cat([canvas.ids, found[:-1]])
    starts = (before == policy.mask_token_id).int().argmax(dim=1) // 4 * 4
    blocks = torch.stack([ids[start : start + 4] for ids, start in zip(before, starts.tolist(), strict=True)])
    assert torch.equal(blocks, recorded[f"sdar.gen.{case}.block_history"].long())


@pytest.mark.parametrize("name", ["a2d_qwen2", "a2d_qwen3"])
@pytest.mark.parametrize(
    ("case", "settings"), [("bd3lm", {"steps": 16}), ("bd3lm_cfg", {"steps": 8, "guidance_scale": 1.0})]
)
def test_greedy_bd3lm_writes_what_the_public_code_writes(name, case, settings, recorded):
    """Row by row, which there are padded to whole blocks. Up to a drawn mask id, which stays a hole there, and to a written padding
    id, which it no longer attends to.
    """
    blocks = {"attention": "block_causal", "block_size": 8, "block_anchor": "prompt_end"}
    model, _ = opened(name, mask_token_id=147, **blocks)
    policy, compared = POLICIES[model.config.model_type](model.config, decoder_tokenizer()), 0
    for row in (0, 1):
        prompt = recorded[f"{name}.gen.prompt{row}"]
        found = walked(model, policy, Block(**settings, **GREEDY), canvas_of(policy, prompt[None], 16))[:, 0]
        history = recorded[f"{name}.gen.{case}.history"].long()[:, row, 8 - len(prompt) : 24]
        answer = history[:, len(prompt) :]
        holes = (answer == 147).sum(dim=1) + (answer == -1).sum(dim=1)
        drawn_masks = holes[1:] != holes[0] - torch.arange(1, len(holes)) * (16 // settings["steps"])
        odd = drawn_masks | (answer[1:] == model.config.pad_token_id).any(dim=1)
        same = int(odd.int().argmax()) if odd.any() else len(odd)
        assert torch.equal(found[:same], history[1 : same + 1].masked_fill(history[1 : same + 1] == -1, 147))
        compared += same
    assert compared >= (18 if case == "bd3lm" else 16)


LLADA2 = {
    "gen20.steps_full": {"steps": 21, "order": "dynamic", "confidence_threshold": 0.95},
    "gen20.steps_half": {"steps": 10, "order": "dynamic", "confidence_threshold": 0.95},
    "gen20.threshold_low": {"steps": 21, "order": "dynamic", "confidence_threshold": 0.2},
    "gen21.edit": {
        "steps": 21,
        "order": "dynamic",
        "confidence_threshold": 0.2,
        "edit_threshold": 0.2,
        "post_steps": 4,
    },
    "gen21.no_edit": {
        "steps": 21,
        "order": "dynamic",
        "confidence_threshold": 0.2,
        "edit_threshold": 1.0,
        "post_steps": 1,
    },
}


class Seen:
    """The ids that each forward of a model reads."""

    def __init__(self, model: Any) -> None:
        self.ids: list[torch.Tensor] = []
        model.register_forward_pre_hook(
            lambda module, _, kwargs: self.ids.append(kwargs["input_ids"][0].clone()), with_kwargs=True
        )


@pytest.mark.parametrize("case", LLADA2)
@pytest.mark.parametrize("name", [own for own in ("llada2_moe",) if own in POLICIES])
def test_greedy_llada2_writes_what_the_public_code_writes(name, case, recorded):
    """Every forward reads what it read there, those that only edit too. Behind the prompt of 11 tokens the public code fills 21
    places, which end a block of eight, and gives 19 of them.
    """
    model, _ = opened(name, mask_token_id=151, block_size=8)
    policy, seen = POLICIES[name](model.config, decoder_tokenizer()), Seen(model)
    canvas = canvas_of(policy, recorded["llada2_moe.gen.prompt"], 21)
    policy.decode = lambda canvas, counts: [""]
    stream = torch.Generator().manual_seed(0)
    rollout = Block(**LLADA2[case], **GREEDY)(model, policy, canvas, generators=[stream])
    history = recorded[f"llada2_moe.{case}.history"].long()
    assert len(seen.ids) == len(history)
    for ids, window in zip(seen.ids, history, strict=True):
        assert torch.equal(ids[window >= 0], window[window >= 0])
    assert torch.equal(rollout.canvas.ids[0, 11:30], recorded[f"llada2_moe.{case}.out"][0])
    assert case != "gen21.edit" or int(rollout.edits.sum()) > 10

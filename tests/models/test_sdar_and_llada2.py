"""Block-causal families: SDAR's norms, LLaDA2's experts under their published names, and what their public code trips over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, Qwen2Tokenizer
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from unigrpo.errors import CheckpointError
from unigrpo.models import LLaDA2MoeForMaskedDiffusion, load_model
from unigrpo.models.adapters import add_adapter, merged
from unigrpo.models.decoder import DecoderProcessor, SDARForMaskedDiffusion
from unigrpo.models.decoder.sdar import WideRMSNorm
from unigrpo.rollout.generate import load_policy

from ..support.hostile import edit_json
from ..support.tiny_decoders import decoder_tokenizer, family_golden, tiny_decoder


FIELDS = {"sdar": {}, "llada2_moe": {"mask_token_id": 151, "block_size": 8}}
"""What the recorded checkpoints do not say of themselves."""

FAMILIES = tuple(FIELDS)
EXACT = 3e-5
"""Logits of these checkpoints, about 7 at most, from one order of sums to another."""

golden = pytest.mark.golden


def opened(name: str, **fields):
    """A recorded checkpoint in eval mode, and the arrays beside it."""
    arrays = load_file(family_golden(name) / "golden.safetensors")
    return AutoModel.from_pretrained(family_golden(name), **{**FIELDS[name], **fields}).eval(), arrays


@pytest.fixture
def folder(tmp_path):
    """A function that copies a recorded checkpoint, with a tokenizer."""

    def copy(name: str) -> Path:
        shutil.copytree(family_golden(name), tmp_path / name, ignore=shutil.ignore_patterns("golden*"))
        decoder_tokenizer().save_pretrained(tmp_path / name)
        return tmp_path / name

    return copy


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().abs().max())


# ---- the public code's numbers ----

RECORDED = [
    ("sdar", "logits_block_causal", {}),
    ("sdar", "logits_block_causal_bs8", {"block_size": 8}),
    ("sdar", "logits_full_attention", {"attention": "full"}),
    ("llada2_moe", "logits_block_causal", {}),
]


@golden
@pytest.mark.smoke
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize(("name", "recorded", "fields"), RECORDED)
@torch.no_grad()
def test_logits_match_the_public_code(name, recorded, fields, kernel):
    """Without a mask too: there LLaDA2's own code is causal under one kernel and sees everything under the other."""
    model, arrays = opened(name, attn_implementation=kernel, **fields)
    assert model.config._attn_implementation == kernel
    assert off(model(arrays["input_ids"]).logits, arrays[recorded]) < EXACT


@golden
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_padded_rows_match_the_public_code(name, kernel):
    """It lays blocks over columns; here they begin with a row, wherever padding puts it, unless ``block_origin`` says another place.

    A mask of rows with padding is no causal one, as it is in LLaDA2's own code, nor is it the other way round under ``eager``.
    """
    model, arrays = opened(name, attn_implementation=kernel)
    ids, mask = arrays["padded.input_ids"], arrays["padded.attention_mask"]
    real, pads = mask.bool(), (1 - mask).sum(dim=1)
    positions, recorded = torch.arange(ids.shape[1]), "padded.logits_block_causal_{}_positions"
    found = model(ids, attention_mask=mask, position_ids=positions).logits[real]
    assert off(found, arrays[recorded.format("arange")][real]) < EXACT
    logical = arrays[recorded.format("logical")]
    found = model(ids, attention_mask=mask, block_origin=-pads).logits
    assert off(found[real], logical[real]) < EXACT
    own = model(ids, attention_mask=mask).logits
    whole = pads % model.config.block_size == 0
    assert whole.tolist() == [True, False, True]
    assert off(own[whole][real[whole]], logical[whole][real[whole]]) < EXACT
    assert off(own[1][real[1]], model(ids[1:2, pads[1] :]).logits[0]) < EXACT
    assert off(own[1][real[1]], logical[1][real[1]]) > 1
    if name == "llada2_moe":
        assert off(found[real], arrays["quirk.logits_2d_mask_is_causal"][real]) > 1


@golden
@torch.no_grad()
def test_experts_are_chosen_as_by_the_public_code():
    model, arrays = opened("llada2_moe")
    routed = routers(model)
    model(arrays["input_ids"])
    for layer, (logits, _, chosen) in routed.items():
        assert off(logits.view(3, 32, 8), arrays[f"router.layer{layer}.logits"]) < 1e-5
        recorded = arrays[f"router.layer{layer}.topk"].long()
        assert torch.equal(chosen.sort().values.view(3, 32, 2), recorded.sort().values)
    assert sorted(routed) == [1, 2]


def routers(model) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """What the routers of the next forward return, by layer."""
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for index, layer in enumerate(model.model.layers):
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.register_forward_hook(lambda _, __, output, index=index: found.update({index: output}))
    return found


# ---- precision ----


def test_sdars_norms_round_once():
    """Qwen3's round before the weight too."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 32, generator=generator).bfloat16()
    norms = [kind(32, eps=1e-6).bfloat16() for kind in (WideRMSNorm, Qwen3RMSNorm)]
    for norm in norms:
        norm.weight.data = 1 + torch.randn(32, generator=generator).bfloat16() / 8
    norms[1].weight = norms[0].weight
    exact = hidden.double() / (hidden.double().square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
    exact = (exact * norms[0].weight.double()).bfloat16()
    same = [float((norm(hidden) == exact).double().mean()) for norm in norms]
    assert same[0] > 0.999 and same[1] < 0.9
    kinds = {type(part) for part in tiny_decoder("sdar")[0].modules() if isinstance(part, Qwen3RMSNorm)}
    assert kinds == {WideRMSNorm}


@golden
@torch.no_grad()
def test_bf16_logits_are_nearer_to_the_public_codes_than_with_qwen3s_norms():
    model, arrays = opened("sdar", dtype=torch.bfloat16)
    recorded = load_file(family_golden("sdar") / "golden_bf16.safetensors")["logits_block_causal"]
    errors = []
    for _ in range(2):
        errors.append(float((model(arrays["input_ids"]).logits - recorded).square().mean().sqrt()))
        for part in model.modules():
            if isinstance(part, WideRMSNorm):
                part.__class__ = Qwen3RMSNorm
    assert errors[0] < 0.01 * float(recorded.abs().max()) and errors[0] < 0.75 * errors[1]


@torch.no_grad()
def test_experts_are_chosen_in_fp32_whatever_else_is_not():
    model, _ = tiny_decoder("llada2")
    gate, hidden = model.model.layers[1].mlp.gate, torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    exact = hidden.double() @ gate.weight.double().T
    for cast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
            logits, weights, _ = gate(hidden)
        assert logits.dtype == weights.dtype == torch.float32 and off(logits, exact) < 1e-5
    half = model.bfloat16().model.layers[1].mlp.gate
    assert off(half(hidden)[0], hidden.double() @ half.weight.double().T) < 1e-5


# ---- experts ----


def test_gradients_reach_all_experts_in_both_modes_under_every_kernel():
    """LLaDA2's own code has none in eval mode."""
    found = []
    for kernel in ("grouped_mm", "eager", "batched_mm"):
        for training in (True, False):
            model, arrays = opened("llada2_moe", experts_implementation=kernel)
            assert model.config._experts_implementation == kernel
            ids = arrays["input_ids"]
            model.train(training)(ids, labels=ids).loss.backward()
            found.append({name: own.grad for name, own in model.named_parameters()})
    assert all(bool(own.any()) for own in found[0].values())
    experts = found[0]["model.layers.1.mlp.experts.gate_up_proj"]
    assert bool(experts.flatten(1).any(dim=1).all())
    for other in found[1:]:
        for name, own in found[0].items():
            torch.testing.assert_close(other[name], own, rtol=1e-4, atol=1e-5 * float(own.abs().max()))


@torch.no_grad()
def test_the_experts_bias_chooses_and_does_not_weigh():
    model, arrays = opened("llada2_moe")
    ids = arrays["input_ids"]
    before = model(ids).logits
    for layer in model.model.layers[1:]:
        layer.mlp.gate.e_score_correction_bias += 0.5
    assert off(model(ids).logits, before) < EXACT
    model.model.layers[1].mlp.gate.e_score_correction_bias[0] += 1
    assert off(model(ids).logits, before) > 1
    assert not any("bias" in name for name, _ in model.named_parameters())


ATTENTION = {f"self_attn.{part}_proj" for part in "qkvo"}
REACHED = ATTENTION | {f"mlp.{of}{part}_proj" for of in ("", "shared_experts.") for part in ("gate", "up", "down")}
ROUTED = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
LORAS = {
    "all-linear": ({}, REACHED),
    "experts": ({"target_parameters": ROUTED}, {"mlp.experts", "mlp.experts.base_layer"}),
    "both": (
        {"target_modules": "all-linear", "target_parameters": ROUTED},
        REACHED | {"mlp.experts", "mlp.experts.base_layer"},
    ),
}


@pytest.mark.parametrize("kind", LORAS)
def test_lora_reaches_linear_layers_and_experts_by_their_parameters(tmp_path, kind):
    """Not the router and not the routed experts, unless ``target_parameters`` names them; it reopens and merges."""
    options, reached = LORAS[kind]
    base, arrays = opened("llada2_moe")
    ids = arrays["input_ids"]
    model = add_adapter(base, LoraConfig(r=4, init_lora_weights=False, **options))
    adapted = {name.split(".lora_A")[0].split(".", 5)[5] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert adapted == reached
    model.train()(ids, labels=ids).loss.backward()
    assert all(own.grad is not None and bool(own.grad.any()) for own in model.parameters() if own.requires_grad)
    expected = model.eval()(ids).logits
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(opened("llada2_moe")[0], tmp_path / "adapter").eval()
    assert off(again(ids).logits, expected) < EXACT
    merged(again).save_pretrained(tmp_path / "merged")
    assert off(load_model(tmp_path / "merged")(ids).logits, expected) < 3 * EXACT


# ---- files ----


def test_files_have_the_published_tensors_byte_for_byte(tmp_path):
    model, _ = opened("llada2_moe")
    model.save_pretrained(tmp_path)
    saved, published = (load_file(at / "model.safetensors") for at in (tmp_path, family_golden("llada2_moe")))
    assert saved.keys() == published.keys()
    assert all(torch.equal(saved[name], own) and saved[name].dtype == own.dtype for name, own in published.items())
    fresh, _ = opened("llada2_moe", attention="full")
    for own in fresh.parameters():
        own.data.zero_()
    fresh.load_state_dict(published)
    assert all(torch.equal(fresh.state_dict()[name], own) for name, own in model.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh.load_state_dict({name: own for name, own in published.items() if "layers.1.attention" not in name})


LOST = ["attention.query_key_value.weight", "mlp.gate.expert_bias", "mlp.experts.3.up_proj.weight"]
FURTHER = ["layers.46.mlp.gate.weight", "layers.1.mlp.experts.8.down_proj.weight"]


@pytest.mark.parametrize("name", [*LOST, "mlp.experts.3.", *FURTHER])
def test_every_tensor_has_its_place_and_every_place_its_tensor(folder, name):
    """Glm's class would read over a layer 46."""
    file = folder("llada2_moe") / "model.safetensors"
    weights = load_file(file)
    if name in FURTHER:
        weights[f"model.{name}"] = torch.zeros(48, 20)
    else:
        weights = {own: value for own, value in weights.items() if f"layers.1.{name}" not in own}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"does not fit the model: (missing|unknown|shapes) \['model\.layers\.(1|46)\."
    ):
        load_policy(str(file.parent), device="cpu", **FIELDS["llada2_moe"])


# ---- what configurations say ----


def test_kernels_that_sdar_names_are_not_taken(folder):
    """Its ``config.json`` asks for flex_attention, which takes no such masks."""
    at = folder("sdar")
    assert json.loads((at / "config.json").read_text())["attn_implementation"] == "flex_attention"
    assert load_policy(str(at), device="cpu").model.config._attn_implementation == "sdpa"
    assert opened("sdar")[0].config._attn_implementation == "sdpa"


def test_an_answer_ends_with_the_turn_and_is_drawn_as_asked(folder):
    """SDAR's ``config.json`` names the end of a text alone, and its ``generation_config.json`` asks for top-k and top-p."""
    at = folder("sdar")
    found = load_policy(str(at), device="cpu")
    assert set(found.policy.stop_token_ids) >= {123, 148}
    assert (found.policy.block_size, found.policy.block_anchor, found.policy.mask_token_id) == (4, "start", 149)
    asked = json.loads((at / "generation_config.json").read_text())
    assert asked["top_k"] == 20
    answers = []
    for _ in range(2):
        answers.append(load_policy(str(at), device="cpu").generate(["w1 w2", "w3"], max_completion_length=8, seed=0))
        edit_json(at / "generation_config.json", temperature=0.01, top_k=1, eos_token_id=[5])
    assert answers[0] == answers[1]


def test_a_mask_id_is_known_by_the_published_vocabulary_given_or_refused(folder):
    config = LLaDA2MoeForMaskedDiffusion.config_class
    assert config().mask_token_id == 156895 and config(vocab_size=156).mask_token_id is None
    at = folder("llada2_moe")
    assert load_policy(str(at), device="cpu").policy.mask_token_id == 149, "the tokenizer's"
    assert load_policy(str(at), device="cpu", mask_token_id=151).policy.mask_token_id == 151
    text = (at / "tokenizer.json").read_text()
    (at / "tokenizer.json").write_text(text.replace("<|mask|>", "<|hole|>"))
    (at / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match="names a mask id: give model_init_kwargs mask_token_id"):
        load_policy(str(at), device="cpu")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score_function": "softmax"}, "score_function='softmax' is not implemented for llada2_moe: 'sigmoid' is"),
        ({"use_qkv_bias": True}, "use_qkv_bias=True is not implemented"),
        ({"rotary_dim": 64}, "rotary_dim=64 is not partial_rotary_factor=0.5 of head_dim=16"),
        ({"use_sliding_window": True}, "use_sliding_window=True is not implemented"),
        ({"block_size": 0}, "block_size=0 with attention='block_causal'"),
    ],
)
def test_a_switch_that_no_checkpoint_has_is_refused(folder, fields, message):
    """``sliding_window``, which is there and unused, is not."""
    at = folder("llada2_moe")
    edit_json(at / "config.json", **fields)
    with pytest.raises(ValueError, match=message):
        load_policy(str(at), device="cpu")


def test_sdars_tokenizer_is_read_without_its_code(tmp_path, mark):
    """Its class in the folder has the name of the one in transformers."""
    (tmp_path / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(["a", "b", "ab", "Ġ"])}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    plain = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|MASK|>")
    added = {str(4 + i): {"content": name, "special": True, **plain} for i, name in enumerate(names)}
    settings = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "pad_token": "<|endoftext|>"}
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_qwen2.Qwen2Tokenizer", None]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "tokenization_qwen2.py").write_text(f"open({str(mark)!r}, 'w').write('run')")
    processor = DecoderProcessor.from_pretrained(tmp_path)
    assert isinstance(processor.tokenizer, Qwen2Tokenizer)
    config = SDARForMaskedDiffusion.config_class(vocab_size=8, hidden_size=8, num_hidden_layers=1, mask_token_id=None)
    policy = type(tiny_decoder("sdar")[1])(config, processor)
    assert (policy.mask_token_id, policy.stop_token_ids[-1]) == (7, 6)
    assert policy.token_space("text").exclude == (7,)


@pytest.mark.parametrize(
    ("kind", "fields", "count"),
    [
        (SDARForMaskedDiffusion, {}, 4_411_424_256),
        (
            SDARForMaskedDiffusion,
            {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
            2_031_739_904,
        ),
        (
            SDARForMaskedDiffusion,
            {"hidden_size": 4096, "intermediate_size": 12288},
            8_190_735_360,
        ),
        (LLaDA2MoeForMaskedDiffusion, {}, 16_255_643_392),
    ],
)
def test_sizes_are_those_of_the_published_checkpoints(kind, fields, count):
    """The experts' biases counted too."""
    with torch.device("meta"):
        assert sum(own.numel() for own in kind(kind.config_class(**fields)).state_dict().values()) == count

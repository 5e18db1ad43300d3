"""The image tokenizer against the public code's arrays and layout."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from unigrpo.models.magvit import MagvitV2, MagvitV2Config

from ..support.images import tiny_tokenizer
from ..support.tiny import GOLDENS, golden


pytestmark = pytest.mark.golden


@pytest.mark.smoke
def test_codes_and_decodes_are_the_references():
    arrays, meta = golden("g5_magvit")
    model = tiny_tokenizer()
    assert sum(p.numel() for p in model.parameters()) == meta["n_params"]
    logits = model(arrays["image"])
    assert (logits - arrays["encoder_out"]).abs().max() < 1e-4
    assert torch.equal(model.encode(arrays["image"]), arrays["code"])
    assert (model.decode(arrays["code"], 64, 64) - arrays["decoded"]).abs().max() < 1e-4
    first = model.decode(torch.arange(16)[None], 64, 64)
    assert (first - arrays["decoded_codes_0_15"]).abs().max() < 1e-4
    entries = model.quantize.signs(torch.arange(64)).T.reshape(1, 6, 8, 8)
    assert torch.equal(entries, arrays["codebook_entries"])
    assert torch.equal(logits.sign(), arrays["quantized"].sign())


def test_an_image_that_is_not_square():
    arrays, _ = golden("g5_magvit")
    model = tiny_tokenizer()
    assert torch.equal(model.encode(arrays["rect_image"]), arrays["rect_code"])
    assert (model.decode(arrays["rect_code"], 32, 64) - arrays["rect_decoded"]).abs().max() < 1e-4


def test_the_default_shape_is_the_published_one():
    keys = json.loads((GOLDENS / "g5_magvit_real_keys.json").read_text())
    with torch.device("meta"):
        model = MagvitV2(MagvitV2Config())
    own = {
        name: [list(value.shape), str(value.dtype).removeprefix("torch.")]
        for name, value in model.state_dict().items()
    }
    assert own == keys["state_dict"] and len(own) == 382
    assert sum(p.numel() for p in model.parameters()) == 95_387_004
    assert sum(p.numel() for p in model.encoder.parameters()) == keys["n_params_encoder"]
    assert model.factor == 16 and model.config.codebook_size == 8192


def test_zero_is_a_zero_bit_and_channel_0_the_highest():
    model = tiny_tokenizer()
    logits = -torch.ones(1, 6, 1, 3)
    logits[0, 0, 0, 0] = 1.0
    logits[0, 5, 0, 1] = 1.0
    logits[0, :, 0, 2] = 0.0
    assert model.quantize.codes(logits).tolist() == [[32, 1, 0]]


def test_chunks_change_nothing():
    arrays, _ = golden("g5_magvit")
    model = tiny_tokenizer()
    many = arrays["image"].repeat(3, 1, 1, 1)[:5]
    codes = model.encode(many)
    assert torch.equal(codes, torch.cat([model.encode(one[None]) for one in many]))
    assert (model.decode(codes, 64, 64)[4] - arrays["decoded"][0]).abs().max() < 1e-4


def test_autocast_flips_no_bit():
    arrays, _ = golden("g5_magvit")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tiny_tokenizer().encode(arrays["image"]), arrays["code"])


def test_bad_sizes_and_codes_are_named():
    model = tiny_tokenizer()
    with pytest.raises(ValueError, match=r"height=40 must be a multiple of 16"):
        model.encode(torch.zeros(1, 3, 40, 32))
    with pytest.raises(ValueError, match=r"width=0"):
        model.decode(torch.zeros(1, 0, dtype=torch.int64), 16, 0)
    with pytest.raises(ValueError, match=r"3 codes do not fill .* which has 4"):
        model.decode(torch.zeros(1, 3, dtype=torch.int64), 32, 32)
    with pytest.raises(ValueError, match=r"\[0, 64\], outside \[0, 64\)"):
        model.decode(torch.tensor([[0, 64]]), 16, 32)


def test_saving_and_loading(tmp_path):
    arrays, _ = golden("g5_magvit")
    tiny_tokenizer().save_pretrained(tmp_path)
    again = MagvitV2.from_pretrained(tmp_path)
    assert torch.equal(again.encode(arrays["image"]), arrays["code"]) and not again.training
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    bias = weights.pop("encoder.conv_in.bias")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing \['encoder.conv_in.bias'\]"):
        MagvitV2.from_pretrained(tmp_path)
    save_file({**weights, "encoder.conv_in.bias": bias, "extra": bias.clone()}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"unknown \['extra'\]"):
        MagvitV2.from_pretrained(tmp_path)


def test_a_published_pytorch_file_loads(tmp_path):
    """The published folder names no model type and may hold a pickled state dict, read with weights_only."""
    arrays, _ = golden("g5_magvit")
    model = tiny_tokenizer()
    fields = {
        key: value for key, value in model.config.to_dict().items() if key not in ("model_type", "architectures")
    }
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "MAGVITv2", **fields}))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert torch.equal(MagvitV2.from_pretrained(tmp_path).encode(arrays["image"]), arrays["code"])

"""aMUSEd's VQModel behind the codec. Needs diffusers: ``pip install 'unigrpo[lumina]'``; what needs none is tested without."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from unigrpo.data.image_codes import ImageCodec, load_tokenizer, tokenizer_config, tokenizer_without_weights
from unigrpo.data.pictures import to_pixels
from unigrpo.errors import CheckpointError
from unigrpo.models.amused import AmusedVQ, AmusedVQConfig
from unigrpo.models.magvit.modeling import images_at_once
from unigrpo.runs.counting import counted

from ..support.tiny_lumina import CODES, tiny_lumina


SIZES = {"block_out_channels": [8] * 5, "layers_per_block": 1, "latent_channels": 8, "num_vq_embeddings": CODES}
REST = {"norm_num_groups": 4, "mid_block_add_attention": False, "lookup_from_codebook": True, "act_fn": "silu"}
BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 5, "up_block_types": ["UpDecoderBlock2D"] * 5}


def test_a_folder_is_known_by_its_configuration(tmp_path):
    """By itself, or as the folder ``vqvae`` of a checkpoint; its sizes need no diffusers."""
    said = {"_class_name": "VQModel", "_diffusers_version": "0.30.0", **SIZES, **REST, **BLOCKS}
    (tmp_path / "vqvae").mkdir()
    (tmp_path / "vqvae" / "config.json").write_text(json.dumps(said))
    for folder in (tmp_path, tmp_path / "vqvae"):
        config = tokenizer_config(str(folder))
        assert isinstance(config, AmusedVQConfig) and (config.codebook_size, config.factor) == (CODES, 16)
    (tmp_path / "vqvae" / "config.json").write_text(json.dumps({**said, "layers_per_block": 10**6}))
    with pytest.raises(ValueError, match="layers_per_block=1000000: give 1 to 16"):
        tokenizer_config(str(tmp_path))
    assert (AmusedVQConfig().codebook_size, AmusedVQConfig().factor) == (8192, 16)


@pytest.fixture
def tokenizer() -> AmusedVQ:
    pytest.importorskip("diffusers", reason="pip install 'unigrpo[lumina]'")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = AmusedVQ(AmusedVQConfig(**SIZES, vq_model=REST)).eval()
        own.model.quantize.embedding.weight.data.normal_(std=own(torch.rand(1, 3, 64, 64)).std().item())
    return own


def pictures() -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    return [Image.fromarray(own) for own in values]


def test_codes_and_pixels_are_the_models_own(tokenizer):
    """It reads and draws numbers in [0, 1], rows of codes from the top; a code is the nearest entry of the codebook."""
    pixels = to_pixels(pictures())
    codes = tokenizer.encode(pixels)
    with torch.no_grad():
        latents = tokenizer.model.encode((pixels + 1) / 2).latents
        book = tokenizer.model.quantize.embedding.weight
        nearest = torch.cdist(latents.permute(0, 2, 3, 1).reshape(-1, 8), book).argmin(dim=1)
        drawn = tokenizer.model.decode(latents).sample * 2 - 1
    assert torch.equal(codes, nearest.reshape(2, 6)) and len(codes.unique()) > 3
    torch.testing.assert_close(tokenizer.decode(codes, 32, 48), drawn, rtol=1e-5, atol=1e-5)


def test_the_codec_takes_it(tokenizer):
    _, policy = tiny_lumina()
    codec = ImageCodec(tokenizer, policy)
    assert codec.grid([32, 48]) == (2, 3) and codec.count([32, 48]) == 6
    codes = codec.encode(pictures(), [32, 48], ["squash"] * 2)
    assert codec.shown({}, codes[0], [32, 48])["image_grid"] == (2, 3)
    assert [own.size for own in codec.decode(codes, [32, 48])] == [(48, 32)] * 2
    with pytest.raises(ValueError, match=r"image_size=\[40, 48\]: image height=40 must be a multiple of 16"):
        codec.count([40, 48])
    with pytest.raises(ValueError, match="5 codes do not fill"):
        tokenizer.decode(codes[0][None, :5], 32, 48)
    with pytest.raises(ValueError, match=rf"outside \[0, {CODES}\)"):
        tokenizer.decode(codes[0][None] + CODES, 32, 48)


def test_what_diffusers_saves_is_opened_to_the_last_tensor(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "vqvae")
    again = load_tokenizer(str(tmp_path))
    assert torch.equal(again.encode(to_pixels(pictures())), tokenizer.encode(to_pixels(pictures())))
    file = tmp_path / "vqvae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    lost = next(iter(weights))
    save_file({name: value for name, value in weights.items() if name != lost}, file)
    with pytest.raises(CheckpointError, match=lost.replace(".", r"\.")):
        load_tokenizer(str(tmp_path))
    file.unlink()
    with pytest.raises(CheckpointError, match=r"lacks vqvae/diffusion_pytorch_model\.safetensors"):
        load_tokenizer(str(tmp_path))


def test_its_memory_is_counted_without_weights(tokenizer):
    """The weights, and beside them more than the pixels of all pictures at once."""
    weights, most = counted(("amused", 32, 48), lambda: tokenizer_without_weights(tokenizer.config, 32, 48))
    assert weights == sum(own.numel() * 4 for own in tokenizer.parameters())
    assert most > images_at_once(32, 48) * 3 * 32 * 48 * 4


def test_without_diffusers_the_cure_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"pip install 'unigrpo\[lumina\]'"):
        AmusedVQConfig().build()

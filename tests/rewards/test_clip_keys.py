"""open_clip checkpoints as ``CLIPModel``: the golden, its mutations, and what is refused."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import CLIPModel

from unigrpo.rewards.clip import OpenClipConfig, load_open_clip_as_clip

from ..support.hostile import Payload
from ..support.tiny_scorers import CLIP, clip_inputs, clip_weights


pytestmark = pytest.mark.golden


def cosines(model):
    pixels, ids = clip_inputs()
    with torch.inference_mode():
        images = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        texts = F.normalize(model.get_text_features(input_ids=ids).pooler_output, dim=-1)
    return images @ texts.T


def config(kind="gelu", vision=(), text=(), **changes):
    made = json.loads(json.dumps(CLIP[kind]["config"]))
    made["vision_cfg"].update(vision)
    made["text_cfg"].update(text)
    return {**made, **changes}


def difference(kind, made=None, **arguments):
    model = load_open_clip_as_clip(made or config(kind), clip_weights(), **arguments)
    return (cosines(model) - torch.tensor(CLIP[kind]["cosine"])).abs().max().item()


def test_weights_and_inputs_are_the_golden_s():
    weights, (pixels, ids) = clip_weights(), clip_inputs()
    assert len(weights) == 62 and pixels.shape == (3, 3, 32, 32)
    assert ids[1].tolist() == [43, 77, 100, 25, 11, 93, 91, 31, 127, 0, 0, 0, 0, 0, 0, 0]
    for name, values in {
        "visual.class_embedding": [-0.07656814157962799, -0.16495271027088165],
        "token_embedding.weight": [0.6944360136985779, -0.6653240323066711],
        "visual.proj": [0.3768799901008606, 0.13541443645954132],
        "visual.conv1.weight": [-0.08380749076604843, -0.07501790672540665],
        "transformer.resblocks.0.attn.in_proj_weight": [-0.16921697556972504, -0.3151082694530487],
    }.items():
        assert weights[name].flatten()[:2].tolist() == values, name


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["gelu", "quick_gelu"])
def test_cosines_are_those_of_open_clip(kind):
    assert difference(kind) <= 1e-6


@pytest.mark.parametrize(("kind", "other"), [("gelu", "quick_gelu"), ("quick_gelu", "gelu")])
def test_the_other_activation_is_another_model(kind, other):
    assert difference(kind, config(other)) > 1e-4


@pytest.mark.parametrize(
    ("made", "arguments"),
    [(config(vision={"head_width": 16}), {}), (config(text={"heads": 2}), {}), (config(), {"eos_token_id": 5})],
)
def test_a_setting_that_weights_do_not_show_changes_the_cosines(made, arguments):
    assert difference("gelu", made, **arguments) > 1e-2


def test_q_and_k_keep_their_order():
    model = load_open_clip_as_clip(config(), clip_weights())
    for layer in model.vision_model.encoder.layers:
        query, key = layer.self_attn.q_proj, layer.self_attn.k_proj
        layer.self_attn.q_proj, layer.self_attn.k_proj = key, query
    assert (cosines(model) - torch.tensor(CLIP["gelu"]["cosine"])).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "model.bin", "model.pt"])
def test_a_checkpoint_file(tmp_path, name):
    weights = clip_weights()
    if name.endswith("safetensors"):
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, tmp_path / name)
    elif name.endswith("bin"):
        torch.save(weights, tmp_path / name)
    else:  # as training writes it
        wrapped = {f"module.{key}": tensor for key, tensor in weights.items()}
        torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps({"model_cfg": config(), "preprocess_cfg": {}}))
    model = load_open_clip_as_clip(tmp_path / "config.json", tmp_path / name)
    assert isinstance(model, CLIPModel) and not model.training
    assert (cosines(model) - torch.tensor(CLIP["gelu"]["cosine"])).abs().max() <= 1e-6


@pytest.mark.parametrize("content", [{"weight": Payload()}, Payload(), [1, 2], {"weight": 3}])
def test_a_file_with_anything_but_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt.*(plain tensors|state dict)"):
        load_open_clip_as_clip(config(), tmp_path / "model.pt")


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_open_clip_as_clip(config(), "nowhere.pt")


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("visual.ln_pre.weight", None, ["missing ['vision_model.pre_layrnorm.weight']"]),
        ("visual.layer1.0.conv1.weight", torch.ones(1), ["visual.layer1.0.conv1.weight", "open_clip"]),
        ("visual.trunk.norm.weight", torch.ones(1), ["visual.trunk.norm.weight", "timm"]),
        ("text.transformer.x.weight", torch.ones(1), ["text.transformer.x.weight"]),
        (
            "transformer.resblocks.9.ln_1.weight",
            torch.ones(36),
            ["unknown ['text_model.encoder.layers.9.layer_norm1.weight']"],
        ),
        ("ln_final.bias", torch.ones(7), ["final_layer_norm.bias is (7,) and must be (36,)"]),
    ],
)
def test_weights_that_do_not_fit_are_named(name, value, parts):
    weights = {**clip_weights(), name: value}
    with pytest.raises(ValueError) as error:
        load_open_clip_as_clip(config(), {key: own for key, own in weights.items() if own is not None})
    assert [part for part in parts if part not in str(error.value)] == []


@pytest.mark.parametrize(
    ("made", "part"),
    [
        (config(vision={"timm_model_name": "vit_base"}), "timm"),
        (config(vision={"layers": [3, 4, 6, 3]}), "ResNet"),
        (config(text={"hf_model_name": "roberta-base"}), "of the hub"),
        (config(text={"no_causal_mask": True}), "no_causal_mask=True"),
        (config(text={"norm_kwargs": {"eps": 1e-6}}), "norm_kwargs"),
        (config(vision={"pool_type": "avg"}), "pool_type='avg'"),
        (config(vision={"image_size": [32, 64]}), "image_size=[32, 64]"),
        (config(custom_text=True), "custom_text"),
        ({"vision_cfg": {}, "text_cfg": {}}, "'embed_dim'"),
        ("nowhere.json", "nowhere.json"),
    ],
)
def test_another_kind_of_model_is_refused(made, part):
    with pytest.raises(ValueError, match=re.escape(part)):
        OpenClipConfig.read(made)


def test_settings_that_mean_nothing_here_are_allowed():
    made = config(vision={"patch_dropout": 0.5, "pool_type": "tok"}, text={"norm_kwargs": {}, "pool_type": "argmax"})
    assert difference("gelu", made) <= 1e-6


def test_the_images_are_prepared_as_the_configuration_says():
    made = {"model_cfg": config(), "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "size": [32, 32]}}
    processor = OpenClipConfig.read(made).image_processor()
    assert list(processor.image_mean) == [0.5] * 3 and list(processor.image_std) == [0.25] * 3
    assert processor.crop_size["height"] == 32


@pytest.mark.parametrize(
    ("name", "value"), [("resize_mode", "squash"), ("interpolation", "bilinear"), ("mode", "L"), ("size", 64)]
)
def test_another_preparation_of_the_images_is_refused(name, value):
    made = OpenClipConfig.read({"model_cfg": config(), "preprocess_cfg": {name: value}})
    with pytest.raises(ValueError, match=name):
        made.image_processor()

"""``image_reward``: the golden and its mutations, preprocessing, loading the published files, rows."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessorPil

from unigrpo.models.checkpoint_files import load_strictly
from unigrpo.rewards._imagereward_model import ImageRewardModel, rename, text_config, vision_config
from unigrpo.rewards._preparation import middle
from unigrpo.rewards.imagereward import ImageReward

from ..support.hostile import Payload
from ..support.tiny_scorers import (
    IMAGE_REWARD,
    MED_CONFIG,
    Broken,
    image_reward_inputs,
    image_reward_weights,
    picture,
    save_image_reward,
)


pytestmark = pytest.mark.golden

HEADS = IMAGE_REWARD["vision"]["num_heads"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_image_reward(tmp_path_factory.mktemp("image_reward"))


def reward(folder, **arguments):
    arguments = {"tokenizer": str(folder / "bert"), "vision_heads": HEADS, "device": "cpu", **arguments}
    return ImageReward(str(folder), **arguments)


def build(folder, **changes):
    """The golden's model; ``changes`` of its configurations are named ``vision_...`` and ``text_...``."""
    weights = image_reward_weights()
    vision = vision_config(weights, HEADS)
    configs = {"vision": vision, "text": text_config(folder / "med_config.json", vision.hidden_size)}
    for name, value in changes.items():
        setattr(configs[name.partition("_")[0]], name.partition("_")[2], value)
    model = ImageRewardModel(*configs.values())
    load_strictly(model, rename(weights), "the golden")
    return model.eval()


def difference(model):
    with torch.inference_mode():
        scores = model(*image_reward_inputs())
    return (scores - torch.tensor(IMAGE_REWARD["scores"])).abs().max().item()


def test_weights_and_inputs_are_the_golden_s():
    weights, (pixels, ids, mask) = image_reward_weights(), image_reward_inputs()
    assert ids[0].tolist() == [55, 15, 20, 32, 5, 39, 54, 20, 10] and ids[3].tolist() == [57, 36, 20] + [0] * 6
    assert mask.sum(dim=1).tolist() == [9, 6, 4, 3]
    assert pixels.flatten()[:3].tolist() == [1.6905256509780884, -0.46593737602233887, 0.032820165157318115]
    anchors = {
        "blip.visual_encoder.cls_token": [-0.27185875177383423, -0.11460024118423462, -0.01319395937025547],
        "blip.text_encoder.embeddings.word_embeddings.weight": [1.2284855842590332, 0.20232735574245453],
        "blip.visual_encoder.patch_embed.proj.weight": [-0.017256824299693108, -0.06503798067569733],
        "blip.visual_encoder.norm.weight": [1.2583823204040527, 0.5624203681945801],
        "mlp.layers.7.weight": [0.14345622062683105, 0.4652273654937744],
    }
    for name, values in anchors.items():
        assert weights[name].flatten()[: len(values)].tolist() == values, name


@pytest.mark.smoke
def test_scores_are_those_of_the_original(folder):
    assert difference(build(folder)) <= 1e-5


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("text_num_attention_heads", 2),
        ("text_hidden_act", "gelu_new"),
        ("text_layer_norm_eps", 1e-5),
        ("vision_layer_norm_eps", 1e-5),
        ("vision_num_attention_heads", 2),
    ],
)
def test_a_wrong_setting_is_seen(folder, setting, value):
    assert difference(build(folder, **{setting: value})) > 1e-5


def test_every_published_name_has_its_place():
    weights = image_reward_weights()
    renamed = rename(weights)
    assert (len(weights), len(renamed)) == (101, 96)
    assert renamed["reward_head.7.weight"] is weights["mlp.layers.7.weight"]
    assert not [name for name in renamed if "position_ids" in name or "_proj." in name.replace("patch_proj", "")]


@pytest.mark.parametrize(
    ("size", "margin"), [((32 + margin, 32), margin) for margin in range(8)] + [((107, 32), 75), ((32, 107), 75)]
)
def test_crops_round_as_torchvision_does(size, margin):
    image = picture(0, size)
    offset = round(margin / 2)
    box = (offset, 0, offset + 32, 32) if size[0] > size[1] else (0, offset, 32, offset + 32)
    values = np.asarray(image.crop(box), dtype=np.float64) / 255
    expected = (values - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    assert np.abs(middle(image, 32).numpy() - expected.transpose(2, 0, 1)).max() < 1e-6
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    other = processor(image, return_tensors="pt")["pixel_values"][0]
    assert ((other - middle(image, 32)).abs().max().item() < 1e-5) == (margin not in (3, 7, 75))


@pytest.mark.parametrize("size", [(512, 512), (300, 201), (224, 337), (225, 226), (640, 479), (479, 640), (227, 224)])
def test_pixels_are_those_of_torchvision(size):
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    resize = transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC)
    steps = [resize, transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(mean, std)]
    assert torch.equal(middle(picture(0, size), 224), transforms.Compose(steps)(picture(0, size)))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_images_of_every_mode_become_rgb(mode):
    image = picture(0, (32, 32), mode)
    assert torch.equal(middle(image, 32), middle(image.convert("RGB"), 32))


def test_the_folder_as_published(folder):
    texts, images = ["a red cat", "the green hill of a dog"], [picture(0), picture(1, (50, 33))]
    model = build(folder)
    ids = {"a red cat": [2, 5, 6, 7, 3], "the green hill of a dog": [2, 10, 12, 13, 15, 5, 8, 3]}
    expected = []
    for text, image in zip(texts, images, strict=True):
        with torch.inference_mode():
            tokens = torch.tensor([ids[text]])
            expected.append(model(middle(image, 32)[None], tokens, torch.ones_like(tokens)).item())
    assert reward(folder)(texts, images) == pytest.approx(expected, abs=2e-5)
    assert abs(expected[0] - expected[1]) > 0.1


def test_texts_are_35_tokens_that_start_with_cls(folder):
    scorer = reward(folder)
    scorer(["a"], [picture(0)])
    ids, mask = scorer._scorer.tokens(["a cat", "dog " * 40, ""])
    assert ids.shape == mask.shape == (3, 35)
    assert ids[0].tolist() == [2, 5, 7, 3] + [0] * 31 and mask[0].tolist() == [1] * 4 + [0] * 31
    assert ids[1].tolist() == [2] + [8] * 33 + [3] and mask[1].all()
    assert ids[2].tolist() == [2, 3] + [0] * 33
    assert scorer._scorer.count_tokens(["a cat", "dog " * 40, ""]) == [4, 42, 2]


def test_long_texts_are_counted(folder):
    logged = {}
    with pytest.warns(UserWarning, match="36 tokens and only the first 35 count"):
        scores = reward(folder)(["dog " * 33, "dog " * 34], [picture(0)] * 2, log_metric=logged.__setitem__)
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert logged == {"image_reward/truncated_frac": 0.5, "image_reward/failed": 0.0}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_rows_of_several_tasks(folder, batch_size):
    alone = reward(folder)
    cat, dog = alone(["a cat"], [picture(0)])[0], alone(["the dog"], [picture(1)])[0]
    logged = {}
    with pytest.warns(UserWarning, match="cannot be processed"):
        scores = reward(folder, batch_size=batch_size)(
            ["a cat", "2+2", [{"role": "user", "content": "a very long text"}], "what?", "a cat"],
            [picture(0), "4", picture(1), "the dog", Broken()],
            images=[None, None, None, [picture(1)], None],
            reward_prompt=[None, None, "the dog", None, None],
            task=["t2i", "text", "t2i", "mmu", "t2i"],
            log_metric=logged.__setitem__,
        )
    assert scores[1] is None and scores[4] is None
    assert [scores[0], scores[2], scores[3]] == pytest.approx([cat, dog, dog], abs=2e-5)
    assert logged["image_reward/failed"] == 1.0


def test_half_precision_keeps_the_head_in_fp32(folder):
    scorer = reward(folder, dtype="bfloat16")
    half, whole = scorer(["a cat"], [picture(0)])[0], reward(folder)(["a cat"], [picture(0)])[0]
    model = scorer._scorer._model
    assert model.reward_head[0].weight.dtype == torch.float32 and model.text_encoder.dtype == torch.bfloat16
    assert half != whole and half == pytest.approx(whole, abs=2)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.gpu
def test_scores_on_cuda_are_those_on_the_cpu(folder):
    texts, images = ["a red cat", "the dog"], [picture(0), picture(1)]
    expected = reward(folder)(texts, images)
    assert reward(folder, device=None)(texts, images) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("name", "value"), [("vision_heads", 0), ("batch_size", -1), ("dtype", "half"), ("device", "x")]
)
def test_bad_arguments_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        ImageReward(**{name: value})


WEIGHTS = image_reward_weights()
HEAD, POSITIONS = "mlp.layers.7.weight", "blip.visual_encoder.pos_embed"


@pytest.mark.parametrize(
    ("removed", "added", "part"),
    [
        (HEAD, {"mlp.layers.9.weight": WEIGHTS[HEAD]}, "'mlp.layers.9.weight' is no weight"),
        ("blip.visual_encoder.norm.bias", {"blip.visual_encoder.nrm.bias": torch.ones(48)}, "nrm.bias"),
        (HEAD, {"blip.vision_proj.extra": WEIGHTS[HEAD]}, "missing ['reward_head.7.weight']"),
        (HEAD, {"blip.text_encoder.pooler.dense.weight": WEIGHTS[HEAD]}, "unknown ['text_encoder.pooler.dense.weight']"),
        (POSITIONS, {}, POSITIONS),
        (POSITIONS, {POSITIONS: torch.ones(1, 16, 48)}, "16 positions"),
        (None, {"payload": Payload()}, "not a file of plain tensors"),
        (None, {"epoch": 3}, "state dict"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(tmp_path, removed, added, part):
    folder = save_image_reward(tmp_path)
    kept = {name: tensor for name, tensor in WEIGHTS.items() if name != removed}
    torch.save({**kept, **added}, folder / "ImageReward.pt")
    with pytest.raises(ValueError, match=re.escape(part)):
        reward(folder)(["a"], [picture(0)])


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("num_attention_heads", None, "['num_attention_heads']"),
        ("vocab_size", 61, "word_embeddings.weight is (60, 36) and must be (61, 36)"),
        ("num_hidden_layers", 3, "text_encoder.encoder.layer.2."),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, name, value, part):
    folder = save_image_reward(tmp_path)
    made = {key: own for key, own in {**MED_CONFIG, name: value}.items() if own is not None}
    (folder / "med_config.json").write_text(json.dumps(made))
    with pytest.raises(ValueError, match=re.escape(part)):
        reward(folder)(["a"], [picture(0)])


def test_a_folder_without_its_files_and_a_wrong_number_of_heads(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no ImageReward\.pt"):
        ImageReward(str(tmp_path), device="cpu")(["a"], [picture(0)])
    with pytest.raises(ValueError, match=r"vision_heads=5.*48"):
        reward(folder, vision_heads=5)(["a"], [picture(0)])


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    from transformers import BertTokenizer

    BertTokenizer(vocab={f"word{index}": index for index in range(80)}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="at most 60 tokens"):
        reward(folder, tokenizer=str(tmp_path))(["a"], [picture(0)])

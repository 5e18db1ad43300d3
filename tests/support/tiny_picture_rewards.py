"""Tiny folders of PickScore, HPSv2, the aesthetic predictor and SigLIP, and the rows whose scores are golden."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPImageProcessorPil,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from unigrpo.rewards.aesthetics import Aesthetic
from unigrpo.rewards.clip import load_open_clip_as_clip
from unigrpo.rewards.preferences import HpsV2, PickScore
from unigrpo.rewards.siglip import SiglipScore

from .tiny_scorers import clip_weight, draw, picture


FILE = Path(__file__).parents[1] / "goldens" / "rewards" / "pictures_golden_tiny.json"
SIDE = 32
CLIP_CONFIG = {
    "embed_dim": 20,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 3, "layers": 2},
}
"""As HPSv2's, with its vocabulary and window."""

PICTURES = ((0, (32, 32)), (1, (64, 64)), (2, (50, 30)), (3, (20, 50)), (4, (90, 37)))
"""Seed and size of each; no margin is one where transformers and torchvision crop differently."""
TEXTS = ("a b", "c, D!", "f e d c b a", "a " * 90, "b")
SIGLIP_TEXTS = ("a b", "C d", "f e d c b a", "a " * 90, "b")


def golden():
    """What ``tests/goldens/rewards/make_pictures.py`` has computed."""
    return json.loads(FILE.read_text())


def rows():
    """The pictures of the golden."""
    return [picture(seed, size) for seed, size in PICTURES]


def clip_state(keys):
    """Weights under open_clip's names; ``keys``: name -> shape."""
    return {name: clip_weight(name, tuple(shape)) for name, shape in keys.items()}


def clip_letters():
    """CLIP's tokenizer with the few tokens that the texts have, under their published ids."""
    ids = {"a": 64, "!</w>": 256, ",</w>": 267, **{f"{letter}</w>": 320 + i for i, letter in enumerate("abcdef")}}
    return CLIPTokenizer(vocab={**ids, "<|startoftext|>": 49406, "<|endoftext|>": 49407}, merges=[])


def save_clip_h(folder, keys):
    """A ``CLIPModel`` folder, of the weights that HPSv2's file has."""
    load_open_clip_as_clip(CLIP_CONFIG, clip_state(keys)).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(folder)
    clip_letters().save_pretrained(folder)
    return str(folder)


def save_hps(folder, keys):
    """``HPS_v2.1_compressed.pt`` as it is published, its configuration and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": clip_state(keys)}, folder / "HPS_v2.1_compressed.pt")
    (folder / "config.json").write_text(json.dumps(CLIP_CONFIG))
    clip_letters().save_pretrained(folder / "tokenizer")
    return folder


def head_state(width):
    """The aesthetic head under its published names."""
    sizes = {0: (1024, width), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    made = {}
    for place, shape in sizes.items():
        values = draw(f"layers.{place}.weight", shape).astype(np.float64) * (1.5 / math.sqrt(shape[1]))
        made[f"layers.{place}.weight"] = torch.from_numpy(values.astype(np.float32))
        made[f"layers.{place}.bias"] = torch.from_numpy(np.float32(0.3) * draw(f"layers.{place}.bias", shape[:1]))
    return made


def siglip_config():
    """Two layers a tower."""
    tower = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
    ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    return SiglipConfig(
        text_config={**tower, **ends, "vocab_size": 12, "max_position_embeddings": 16, "projection_size": 24},
        vision_config={**tower, "image_size": SIDE, "patch_size": 8},
    )


def siglip_state():
    """Weights under transformers' names."""
    with torch.device("meta"):
        shapes = {name: tuple(own.shape) for name, own in SiglipModel(siglip_config()).state_dict().items()}
    return {name: _siglip_weight(name, shape) for name, shape in shapes.items() if "position_ids" not in name}


def _siglip_weight(name, shape):
    if name in ("logit_scale", "logit_bias"):
        return torch.tensor([2.3 if name == "logit_scale" else -1.5])
    values = draw(name, shape)
    if len(shape) == 1:
        values = np.float32(0.3) * values + np.float32("norm" in name and name.endswith("weight"))
    elif "embedding.weight" in name or "probe" in name:
        values = np.float32(0.5) * values
    else:
        values = (values.astype(np.float64) * (1.2 / math.sqrt(math.prod(shape[1:])))).astype(np.float32)
    # With the other sign every cosine of the golden is negative, and the score 0.
    return torch.from_numpy(-values if name.startswith("text_model.head") else values)


def siglip_words():
    """Small letters a to h, one token each, with an end and padding as SigLIP's."""
    words = ["<pad>", "</s>", "<unk>", *"abcdefgh"]
    made = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def save_siglip(folder):
    """A ``SiglipModel`` folder."""
    model = SiglipModel(siglip_config())
    model.load_state_dict(siglip_state(), strict=False)
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    siglip_words().save_pretrained(folder)
    return str(folder)


def save_all(folder):
    """``made(kind, **arguments)``: a reward of that name over tiny files under ``folder``, on the CPU."""
    keys = golden()["keys"]
    clip, hps, siglip = (
        save_clip_h(folder / "clip", keys),
        save_hps(folder / "hps", keys),
        save_siglip(folder / "siglip"),
    )
    torch.save(head_state(CLIP_CONFIG["embed_dim"]), folder / "aesthetic-model.pth")
    kinds = {
        "pick_score": (PickScore, clip, {"processor": None}),
        "hps_v2": (HpsV2, hps, {"config": hps / "config.json", "processor": hps / "tokenizer"}),
        "aesthetic": (Aesthetic, folder, {"clip": clip}),
        "siglip_score": (SiglipScore, siglip, {}),
    }

    def made(kind, **arguments):
        reward, model, own = kinds[kind]
        return reward(**{"model": str(model), "device": "cpu", **own, **arguments})

    return made

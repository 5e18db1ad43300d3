"""Tiny scorers: weights by formula for the goldens, and folders as the real ones are published."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from unigrpo.rewards.clip import ClipScore


GOLDENS = Path(__file__).parents[1] / "goldens" / "rewards"
IMAGE_REWARD = json.loads((GOLDENS / "imagereward_golden_tiny.json").read_text())
CLIP = json.loads((GOLDENS / "clip_golden_openclip_tiny.json").read_text())


def draw(name, shape):
    """float32 normal numbers that depend on the name alone."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def image_reward_weights():
    """The published names of the golden's model -> tensors."""
    return {name: _image_reward_weight(name) for name in IMAGE_REWARD["keys"]}


def _image_reward_weight(name):
    if name.endswith("position_ids"):
        return torch.arange(40)[None]
    shape, last = _image_reward_shape(name), name.rpartition(".")[2]
    values = draw(name, shape)
    if last == "weight" and ("norm" in name or "LayerNorm" in name):
        values = 1 + np.float32(0.3) * values
    elif last == "bias":
        values = np.float32(0.3) * values
    elif "embeddings" in name or "embed" in last:
        values = np.float32(0.5) * values
    else:
        values = (values.astype(np.float64) * (1.5 / math.sqrt(math.prod(shape[1:])))).astype(np.float32)
    return torch.from_numpy(values)


def _image_reward_shape(name):
    """Of 48 wide image tokens, 36 wide text tokens, 17 positions in an image, and 60 words."""
    exact = {
        "blip.visual_encoder.cls_token": (1, 1, 48),
        "blip.visual_encoder.pos_embed": (1, 17, 48),
        "blip.visual_encoder.patch_embed.proj.weight": (48, 3, 8, 8),
        "blip.text_encoder.embeddings.word_embeddings.weight": (60, 36),
        "blip.text_encoder.embeddings.position_embeddings.weight": (40, 36),
    }
    if name in exact:
        return exact[name]
    if name.startswith("mlp.layers."):
        sizes = {"0": (1024, 36), "2": (128, 1024), "4": (64, 128), "6": (16, 64), "7": (1, 16)}[name.split(".")[2]]
    elif name.startswith("blip.visual_encoder"):
        ends = {"qkv": (144, 48), "fc1": (192, 48), "fc2": (48, 192)}
        sizes = ends.get(name.split(".")[-2], (48, 48))
    elif "_proj." in name:
        sizes = (16, 48) if "vision_proj" in name else (16, 36)
    elif "crossattention.self.key" in name or "crossattention.self.value" in name:
        sizes = (36, 48)
    elif "intermediate.dense" in name:
        sizes = (72, 36)
    elif "output.dense" in name and "attention" not in name:
        sizes = (36, 72)
    else:
        sizes = (36, 36)
    return sizes[:1] if name.endswith("bias") or "norm" in name or "LayerNorm" in name else sizes


def image_reward_inputs():
    """Pixels ``[4, 3, 32, 32]``, ids and mask ``[4, 9]``."""
    state = np.random.RandomState(7)
    pixels = torch.from_numpy(state.standard_normal((4, 3, 32, 32)).astype(np.float32))
    ids = torch.from_numpy(state.randint(5, 60, size=(4, 9)).astype(np.int64))
    mask = torch.arange(9)[None] < torch.tensor([9, 6, 4, 3])[:, None]
    return pixels, ids * mask, mask.long()


MED_CONFIG = {
    "hidden_size": 36,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "vocab_size": 60,
    "max_position_embeddings": 40,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "encoder_width": 768,
}
WORDS = ["a", "red", "cat", "dog", "on", "the", "mat", "green", "hill", "photo", "of"]


def save_image_reward(folder):
    """``ImageReward.pt``, ``med_config.json`` and a tokenizer of few words, under ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(image_reward_weights(), folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(MED_CONFIG))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}).save_pretrained(folder / "bert")
    return folder


def clip_weights():
    """The open_clip names of the golden's model -> tensors; the same for both activations."""
    return {name: clip_weight(name, tuple(shape)) for name, shape in CLIP["gelu"]["keys"].items()}


def clip_weight(name, shape):
    """Of an open_clip name."""
    if name == "logit_scale":
        return torch.tensor(2.5)
    values = draw(name, shape)
    if len(shape) == 1:
        values = np.float32(0.3) * values + np.float32(name.endswith(".weight"))
    elif "embedding" in name:
        values = np.float32(0.5) * values
    else:
        projection = name in ("visual.proj", "text_projection")
        scale = 1 / math.sqrt(shape[0]) if projection else 1.2 / math.sqrt(math.prod(shape[1:]))
        values = (values.astype(np.float64) * scale).astype(np.float32)
    return torch.from_numpy(values)


def clip_inputs():
    """Pixels ``[3, 3, 32, 32]`` and ids ``[3, 16]``."""
    state = np.random.RandomState(11)
    pixels = torch.from_numpy(state.standard_normal((3, 3, 32, 32)).astype(np.float32))
    ids = torch.from_numpy(state.randint(1, 120, size=(3, 16)).astype(np.int64))
    for row, length in enumerate((16, 9, 5)):
        ids[row, length - 1] = 127
        ids[row, length:] = 0
    return pixels, ids


def clip_tokenizer():
    """Letters a to f, alone and at the end of a word, and ``ab``."""
    letters = "abcdef"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[("a", "b</w>")])


WINDOW = 8
"""Tokens that the tiny CLIP reads of a text."""


def save_clip(folder, seed=0, **text):
    """A CLIP folder as ``save_pretrained`` writes it; ``text`` changes the configuration of its text encoder."""
    torch.manual_seed(seed)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = clip_tokenizer()
    config = CLIPConfig(
        projection_dim=12,
        initializer_factor=20.0,  # With the usual one, every pair scores the same.
        vision_config={**tower, "image_size": 16, "patch_size": 4, "initializer_factor": 20.0},
        text_config={
            **tower,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": WINDOW,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "initializer_factor": 20.0,
            **text,
        },
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size).save_pretrained(folder)
    return str(folder)


def picture(seed, size=(20, 24), mode="RGB"):
    """Random pixels; ``size`` is width and height."""
    values = np.random.RandomState(seed).randint(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


class Log(dict):
    """A ``log_metric`` that remembers."""

    def __call__(self, name, value):
        self[name] = value


class Broken(Image.Image):
    """An image whose pixels cannot be read, as of a file that was cut off."""

    def __init__(self):
        super().__init__()
        self._size = (8, 8)
        self._mode = "RGB"

    def load(self):
        raise OSError("image file is truncated")


def clip(folder, **arguments):
    """``clip_score`` of the model there, on the CPU and without a floor."""
    return ClipScore(str(folder), **{"device": "cpu", "clamp_min": None, **arguments})


def clip_refused(match, folder, **arguments):
    """One score from there is an error."""
    with pytest.raises(ValueError, match=match):
        clip(folder, **arguments)(["a"], [picture(0)])

"""ImageReward on transformers' BLIP modules: architecture, names of the published weights, loading."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from ..models.checkpoint_files import MANY_LAYERS, check_fit, check_numbers, load_strictly, read_weights, reading


MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw rewards on the data that ImageReward was normalised with."""

REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""What ``med_config.json`` must say. transformers' defaults load just as well and score wrongly."""

_RENAMED = (
    (r"blip\.visual_encoder\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed", "vision_model.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.(weight|bias)", r"vision_model.embeddings.patch_embedding.\1"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.(.+)", r"vision_model.encoder.layers.\1.layer_norm\2.\3"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.(.+)", r"vision_model.encoder.layers.\1.self_attn.qkv.\2"),
    (
        r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.(.+)",
        r"vision_model.encoder.layers.\1.self_attn.projection.\2",
    ),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.mlp\.(fc[12])\.(.+)", r"vision_model.encoder.layers.\1.mlp.\2.\3"),
    (r"blip\.visual_encoder\.norm\.(.+)", r"vision_model.post_layernorm.\1"),
    (r"blip\.text_encoder\.(.+)", r"text_encoder.\1"),
    (r"mlp\.layers\.([02467])\.(.+)", r"reward_head.\1.\2"),
)
_DROPPED = re.compile(r"blip\.(?:vision|text)_proj\..+|.+\.position_ids")


def linear_head(width: int) -> nn.Sequential:
    """A chain of linear maps from an embedding to a number, of ImageReward and of the aesthetic predictor alike.

    The dropouts do nothing in eval mode and keep the indices of the published names.
    """
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )


class ImageRewardModel(nn.Module):
    """A text tower that reads an image tower, and a linear head on its first token.

    The head and the score are fp32 whatever the towers are.
    """

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        self.vision_model = BlipVisionModel(vision)
        self.text_encoder = BlipTextModel(text, add_pooling_layer=False)
        self.reward_head = linear_head(text.hidden_size)

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores ``[B]`` fp32 of ``pixels`` ``[B, 3, size, size]`` with ``input_ids`` ``[B, L]``; 1 in the mask is text."""
        image = self.vision_model(pixel_values=pixels.to(self.vision_model.dtype)).last_hidden_state
        hidden = self.text_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=image,
            encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.long, device=image.device),
        ).last_hidden_state
        reward = self.reward_head(hidden[:, 0].float()).squeeze(-1)
        return (reward - MEAN) / STD

    def set_dtype(self, dtype: torch.dtype) -> ImageRewardModel:
        """Casts the two towers."""
        self.vision_model.to(dtype)
        self.text_encoder.to(dtype)
        return self


def rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> names of ``ImageRewardModel``; projections that scoring does not use are left out.

    Raises:
        ValueError: a name that is not ImageReward's.
    """
    renamed = {}
    for name, tensor in weights.items():
        if _DROPPED.fullmatch(name):
            continue
        for pattern, target in _RENAMED:
            match = re.fullmatch(pattern, name)
            if match:
                renamed[match.expand(target)] = tensor
                break
        else:
            raise ValueError(f"{name!r} is no weight of ImageReward: is this file ImageReward.pt?")
    return renamed


def text_config(path: str | Path, encoder_width: int) -> BlipTextConfig:
    """The text tower that ``med_config.json`` describes, with cross-attention to an image tower of that width.

    Raises:
        ValueError: a size is missing in the file.
    """
    values = json.loads(Path(path).read_text(encoding="utf-8"))
    missing = [name for name in REQUIRED if name not in values]
    if missing:
        raise ValueError(f"{str(path)!r} has no {missing}: it must be the med_config.json beside ImageReward.pt")
    return BlipTextConfig(
        **{name: values[name] for name in REQUIRED},
        max_position_embeddings=values.get("max_position_embeddings", 512),
        hidden_act=values.get("hidden_act", "gelu"),
        layer_norm_eps=values.get("layer_norm_eps", 1e-12),
        encoder_hidden_size=encoder_width,
        is_decoder=True,  # This builds the cross-attention; the mask stays bidirectional.
        pad_token_id=values.get("pad_token_id", 0),
        bos_token_id=1,
        sep_token_id=2,
        eos_token_id=2,
    )


def vision_config(weights: Mapping[str, Tensor], heads: int) -> BlipVisionConfig:
    """The image tower of published weights. All sizes show in their shapes but the number of heads.

    Raises:
        ValueError: the image tower is missing or no ViT of square images, or ``heads`` does not divide its width.
    """
    names = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
    found = [weights.get(f"blip.visual_encoder.{name}") for name in names]
    if any(tensor is None for tensor in found):
        absent = [f"blip.visual_encoder.{name}" for name, tensor in zip(names, found, strict=True) if tensor is None]
        raise ValueError(f"the image tower has no {absent}: is this file ImageReward.pt?")
    patches, positions, mlp = found
    width, patch = patches.shape[0], patches.shape[-1]
    side = math.isqrt(positions.shape[1] - 1)
    if side * side != positions.shape[1] - 1:
        raise ValueError(f"the image tower has {positions.shape[1]} positions, which are no square of patches and one")
    if width % heads:
        raise ValueError(f"vision_heads={heads} does not divide the width of the image tower, {width}")
    layers = {name.split(".")[3] for name in weights if name.startswith("blip.visual_encoder.blocks.")}
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=mlp.shape[0],
        num_hidden_layers=len(layers),
        num_attention_heads=heads,
        image_size=side * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        attention_dropout=0.0,
    )


def load_image_reward(weights: str | Path, med_config: str | Path, vision_heads: int) -> ImageRewardModel:
    """The model in eval mode on the CPU, fp32.

    Raises:
        ValueError: the file is not ImageReward's, a weight is missing or unknown, or it is not safe to read.
    """
    published = read_weights(weights)
    what = f"{str(weights)!r} with {str(med_config)!r}"
    with reading(what):
        vision = vision_config(published, vision_heads)
        text = text_config(med_config, vision.hidden_size)
        named = rename(published)
        check_numbers(text.to_dict(), what, min(len(published), MANY_LAYERS))
        # Names and shapes are compared before anything of the declared size is allocated.
        with torch.device("meta"):
            check_fit(ImageRewardModel(vision, text), named, what)
        model = ImageRewardModel(vision, text)
    load_strictly(model, named, repr(str(weights)))
    return model.eval().requires_grad_(False)

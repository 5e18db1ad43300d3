"""open_clip checkpoints in transformers' ``CLIPModel``: names, shapes, and the settings that weights do not show."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from ..models.checkpoint_files import MANY_LAYERS, check_fit, check_numbers, load_strictly, read_weights, reading


VISION = {"image_size": 224, "layers": 12, "width": 768, "head_width": 64, "patch_size": 16, "mlp_ratio": 4.0}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0}
"""open_clip's defaults of the settings that ``CLIPModel`` has too."""

NEUTRAL = {
    "hf_tokenizer_name", "tokenizer_kwargs", "init_logit_scale", "patch_dropout", "pad_id", "eos_id", "output_tokens",
    "attn_pooler_queries", "attn_pooler_heads",
}  # fmt: skip
"""Settings of open_clip that do not change a score of a finished model, whatever they are."""

SAME = {
    "pool_type": ("tok", "argmax"),
    "proj_type": ("linear",),
    "pos_embed_type": ("learnable",),
    "block_type": ("default",),
}
"""Settings with the values that mean what ``CLIPModel`` does. Any other setting must be unset or off."""

_TOP = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",  # the spelling is transformers' own
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(?:in_proj_)?(weight|bias)")
_IN_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenClipConfig:
    """What an open_clip configuration says, its defaults filled in. ``preprocess``: its ``preprocess_cfg``."""

    embed_dim: int
    vision: dict[str, Any]
    text: dict[str, Any]
    quick_gelu: bool = False
    preprocess: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, source: str | Path | Mapping[str, Any]) -> OpenClipConfig:
        """From a JSON file, or from what is in it, with ``model_cfg`` around the model's part or without.

        Raises:
            ValueError: a model that is no ViT with CLIP's text encoder, or a setting that ``CLIPModel`` lacks.
        """
        if isinstance(source, str | Path):
            if not Path(source).is_file():
                raise ValueError(f"there is no open_clip configuration {str(source)!r}")
            with reading(f"open_clip configuration {str(source)!r}"):
                source = json.loads(Path(source).read_text(encoding="utf-8"))
        with reading("the open_clip configuration"):
            return cls._from_values(source)

    @classmethod
    def _from_values(cls, source: Mapping[str, Any]) -> OpenClipConfig:
        model = dict(source.get("model_cfg", source))
        preprocess = dict(source.get("preprocess_cfg", {}))
        model.pop("preprocess_cfg", None)
        for name in ("embed_dim", "vision_cfg", "text_cfg"):
            if name not in model:
                raise ValueError(f"an open_clip configuration has {name!r}, and this one has {sorted(model)}")
        vision, text = model.pop("vision_cfg"), model.pop("text_cfg")
        embed_dim, quick_gelu = model.pop("embed_dim"), bool(model.pop("quick_gelu", False))
        if "timm_model_name" in vision or "hf_model_name" in text or isinstance(vision.get("layers"), list):
            raise ValueError(
                "only a ViT with CLIP's own text encoder has a place in CLIPModel, not a ResNet nor a tower of timm "
                "or of the hub: use backend='open_clip'"
            )
        for part, known in ((model, {}), (vision, VISION), (text, TEXT)):
            _refuse_unknown({name: value for name, value in part.items() if name not in known})
        if not isinstance(vision.get("image_size", 224), int):
            raise ValueError(f"image_size={vision['image_size']!r} must be one number: CLIPModel reads squares")
        return cls(
            embed_dim=embed_dim,
            vision=VISION | {name: vision[name] for name in VISION if name in vision},
            text=TEXT | {name: text[name] for name in TEXT if name in text},
            quick_gelu=quick_gelu,
            preprocess=preprocess,
        )

    def clip_config(self, eos_token_id: int | None = None) -> CLIPConfig:
        """The same model for transformers. ``eos_token_id`` is the last token where it is None, as in open_clip."""
        vision, text = self.vision, self.text
        act = "quick_gelu" if self.quick_gelu else "gelu"
        last = text["vocab_size"] - 1
        return CLIPConfig(
            projection_dim=self.embed_dim,
            vision_config={
                "hidden_size": vision["width"],
                "intermediate_size": int(vision["width"] * vision["mlp_ratio"]),
                "num_hidden_layers": vision["layers"],
                "num_attention_heads": vision["width"] // vision["head_width"],
                "image_size": vision["image_size"],
                "patch_size": vision["patch_size"],
                "hidden_act": act,
                "projection_dim": self.embed_dim,
            },
            text_config={
                "hidden_size": text["width"],
                "intermediate_size": int(text["width"] * text["mlp_ratio"]),
                "num_hidden_layers": text["layers"],
                "num_attention_heads": text["heads"],
                "max_position_embeddings": text["context_length"],
                "vocab_size": text["vocab_size"],
                "hidden_act": act,
                "projection_dim": self.embed_dim,
                "bos_token_id": last - 1,
                "eos_token_id": last if eos_token_id is None else eos_token_id,
                "pad_token_id": 0,
            },
        )

    def image_processor(self) -> CLIPImageProcessorPil:
        """Resize of the shorter side, crop in the middle, normalise.

        Raises:
            ValueError: the images of this model are prepared in another way.
        """
        asked = {"interpolation": "bicubic", "resize_mode": "shortest", "mode": "RGB"} | self.preprocess
        for name, value in (("interpolation", "bicubic"), ("resize_mode", "shortest"), ("mode", "RGB")):
            if asked[name] != value:
                raise ValueError(f"{name}={asked[name]!r} of preprocess_cfg is not supported here, only {value!r}")
        size = self.vision["image_size"]
        if asked.get("size", size) not in (size, [size, size]):
            raise ValueError(f"preprocess_cfg has size={asked['size']!r} and the model reads {size} pixels")
        statistics = {f"image_{name}": list(asked[name]) for name in ("mean", "std") if name in asked}
        return CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}, **statistics
        )


def _refuse_unknown(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if value and name not in NEUTRAL and value not in SAME.get(name, ()):
            raise ValueError(f"{name}={value!r} of the open_clip configuration has no place in CLIPModel")


def convert_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An open_clip state dict under the names and in the shapes of ``CLIPModel``.

    Raises:
        ValueError: a name that a ViT with CLIP's text encoder has not got.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name == "attn_mask":  # a buffer
            continue
        stem, _, kind = name.rpartition(".")
        if name in _TOP:
            converted[_TOP[name]] = tensor
        elif name in _TRANSPOSED:
            converted[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif stem in _NORMS:
            converted[f"{_NORMS[stem]}.{kind}"] = tensor
        else:
            converted |= _convert_block(name, tensor)
    return converted


def _convert_block(name: str, tensor: Tensor) -> dict[str, Tensor]:
    match = _BLOCK.fullmatch(name)
    part = match[3] if match else None
    if part not in (*_IN_BLOCK, "attn"):
        raise ValueError(
            f"{name!r} is no weight of an open_clip ViT with CLIP's text encoder: ResNets, timm towers and text "
            "encoders of the hub have no place in CLIPModel; use backend='open_clip'"
        )
    layer = f"{'vision' if match[1] else 'text'}_model.encoder.layers.{match[2]}"
    if part != "attn":
        return {f"{layer}.{_IN_BLOCK[part]}.{match[4]}": tensor}
    pieces = zip("qkv", tensor.chunk(3), strict=True)
    return {f"{layer}.self_attn.{letter}_proj.{match[4]}": piece.contiguous() for letter, piece in pieces}


def load_open_clip_as_clip(
    config: OpenClipConfig | Mapping[str, Any] | str | Path,
    weights: Mapping[str, Tensor] | str | Path,
    *,
    eos_token_id: int | None = None,
) -> CLIPModel:
    """An open_clip model as a ``CLIPModel`` in eval mode on the CPU, without open_clip.

    Whether the activation is GELU or OpenAI's QuickGELU is ``quick_gelu`` of the configuration: weights do not show
    it, and OpenAI's own need it.

    Args:
        config: open_clip configuration, or its JSON file.
        weights: open_clip state dict, or its file (``.safetensors``, ``.bin``, ``.pt``).
        eos_token_id: the id that ends a text, where the embedding of a text is read; None is the last id.

    Raises:
        ValueError: another kind of model, missing or unknown weights, or another size than the configuration says.
    """
    source = "the state dict" if isinstance(weights, Mapping) else repr(str(weights))
    config = config if isinstance(config, OpenClipConfig) else OpenClipConfig.read(config)
    converted = convert_open_clip(weights if isinstance(weights, Mapping) else read_weights(weights))
    with reading(source):
        wanted = config.clip_config(eos_token_id)
        check_numbers(wanted.to_dict(), source, min(len(converted), MANY_LAYERS))
        # Names and shapes are compared before anything of the declared size is allocated.
        with torch.device("meta"):
            check_fit(CLIPModel(wanted), converted, source)
        model = CLIPModel(wanted)
    load_strictly(model, converted, source)
    return model.eval()

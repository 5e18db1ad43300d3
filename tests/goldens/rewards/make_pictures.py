"""Computes ``pictures_golden_tiny.json`` with the original packages. Run by hand, where they are installed.

Wants open_clip_torch and torchvision, and hpsv2, which pins an old protobuf, in a folder of its own: ``pip install --no-deps
--target FOLDER hpsv2 clint args requests urllib3 charset_normalizer ftfy``. Its wheel lacks CLIP's vocabulary: copy
``bpe_simple_vocab_16e6.txt.gz`` from open_clip's folder to ``FOLDER/hpsv2/src/open_clip``. Then::

    PYTHONPATH=.:FOLDER python -m tests.goldens.rewards.make_pictures
"""

from __future__ import annotations

import json
import sys
import tempfile
import types
from importlib.metadata import version
from pathlib import Path

import open_clip
import timm
import torch
from open_clip.model import CLIP, CustomTextCLIP
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from tests.support.tiny_picture_rewards import (
    CLIP_CONFIG,
    FILE,
    SIDE,
    SIGLIP_TEXTS,
    TEXTS,
    clip_state,
    head_state,
    rows,
    siglip_config,
    siglip_state,
    siglip_words,
)


class Published(nn.Module):
    """The head as christophschuhmann/improved-aesthetic-predictor describes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        drop = nn.Dropout
        chain = (nn.Linear(width, 1024), drop(0.2), nn.Linear(1024, 128), drop(0.2), nn.Linear(128, 64), drop(0.1))
        self.layers = nn.Sequential(*chain, nn.Linear(64, 16), nn.Linear(16, 1))


def tiny_clip() -> CLIP:
    config = {name: CLIP_CONFIG[name] for name in ("embed_dim", "vision_cfg", "text_cfg")}
    model = CLIP(**config).eval()
    model.load_state_dict(clip_state(clip_keys()), strict=False)
    return model


def clip_keys() -> dict[str, list[int]]:
    """Names and shapes of open_clip's weights of the tiny model."""
    made = CLIP(**{name: CLIP_CONFIG[name] for name in ("embed_dim", "vision_cfg", "text_cfg")})
    return {name: list(own.shape) for name, own in made.state_dict().items() if name != "attn_mask"}


def clip_pixels() -> torch.Tensor:
    prepare = open_clip.image_transform(SIDE, is_train=False, interpolation="bicubic", resize_mode="shortest")
    return torch.stack([prepare(image) for image in rows()])


def pick_scores() -> list[float]:
    """``exp(logit_scale)`` times the cosine, as yuvalkirstain/PickScore's README computes it."""
    model, tokenize = tiny_clip(), open_clip.SimpleTokenizer()
    images = model.encode_image(clip_pixels(), normalize=True)
    texts = model.encode_text(tokenize(list(TEXTS)), normalize=True)
    return (model.logit_scale.exp() * (images * texts).sum(dim=-1)).tolist()


def aesthetic_scores() -> list[float]:
    head = Published(CLIP_CONFIG["embed_dim"]).eval()
    head.load_state_dict(head_state(CLIP_CONFIG["embed_dim"]))
    embeds = tiny_clip().encode_image(clip_pixels())
    return head.layers(embeds / embeds.norm(dim=-1, keepdim=True)).squeeze(-1).tolist()


def hps_scores() -> tuple[list[float], list[list[int]]]:
    """What ``hpsv2.score`` says of each row, and the ids that it reads; its ViT-H/14 made tiny, nothing else changed."""
    sys.modules.setdefault("turtle", types.SimpleNamespace(forward=None))  # an import that it does not use
    from hpsv2 import img_score
    from hpsv2.src.open_clip import factory

    factory._MODEL_CONFIGS["ViT-H-14"] = CLIP_CONFIG
    create = img_score.create_model_and_transforms
    img_score.create_model_and_transforms = lambda name, pretrained, **options: create(name, None, **options)
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder, "weights.pt"))
        torch.save({"state_dict": tiny_clip().state_dict()}, weights)
        pairs = zip(rows(), TEXTS, strict=True)
        scores = [float(img_score.score(image, text, cp=weights)[0]) for image, text in pairs]
    ids = img_score.get_tokenizer("ViT-H-14")(list(TEXTS))
    return scores, [row[: int(row.argmax()) + 1].tolist() for row in ids]


@timm.models.register_model
def vit_tiny_siglip_of_the_golden(pretrained: bool = False, **kwargs) -> VisionTransformer:
    vision = siglip_config().vision_config
    return VisionTransformer(
        img_size=vision.image_size,
        patch_size=vision.patch_size,
        embed_dim=vision.hidden_size,
        depth=vision.num_hidden_layers,
        num_heads=vision.num_attention_heads,
        mlp_ratio=vision.intermediate_size / vision.hidden_size,
        act_layer="gelu_tanh",
        class_token=False,
        **{name: own for name, own in kwargs.items() if name in ("num_classes", "global_pool")},
    )


def open_clip_siglip() -> CustomTextCLIP:
    text = siglip_config().text_config
    model = CustomTextCLIP(
        embed_dim=text.hidden_size,
        init_logit_bias=0.0,
        vision_cfg={
            "image_size": SIDE,
            "timm_model_name": "vit_tiny_siglip_of_the_golden",
            "timm_pool": "map",
            "timm_proj": "none",
        },
        text_cfg={
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
    )
    model.load_state_dict(as_open_clip(siglip_state()))
    return model.eval()


def as_open_clip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' names of SigLIP -> open_clip's and timm's."""
    own = {name: tensor.clone() for name, tensor in weights.items()}
    made = {"logit_scale": own.pop("logit_scale")[0], "logit_bias": own.pop("logit_bias")[0]}
    made["visual.trunk.pos_embed"] = own.pop("vision_model.embeddings.position_embedding.weight")[None]
    made["visual.trunk.attn_pool.latent"] = own.pop("vision_model.head.probe")
    made["text.positional_embedding"] = own.pop("text_model.embeddings.position_embedding.weight")
    for kind in ("weight", "bias"):
        query, *others = own.pop(f"vision_model.head.attention.in_proj_{kind}").chunk(3)
        made[f"visual.trunk.attn_pool.q.{kind}"] = query
        made[f"visual.trunk.attn_pool.kv.{kind}"] = torch.cat(others)
        for side, block, joined in (
            ("vision", "visual.trunk.blocks", f"attn.qkv.{kind}"),
            ("text", "text.transformer.resblocks", f"attn.in_proj_{kind}"),
        ):
            for layer in range(2):
                parts = [own.pop(f"{side}_model.encoder.layers.{layer}.self_attn.{x}_proj.{kind}") for x in "qkv"]
                made[f"{block}.{layer}.{joined}"] = torch.cat(parts)
    pairs = {
        "vision_model.embeddings.patch_embedding": "visual.trunk.patch_embed.proj",
        "vision_model.post_layernorm": "visual.trunk.norm",
        "vision_model.head.attention.out_proj": "visual.trunk.attn_pool.proj",
        "vision_model.head.layernorm": "visual.trunk.attn_pool.norm",
        "vision_model.head.mlp": "visual.trunk.attn_pool.mlp",
        "vision_model.encoder.layers": "visual.trunk.blocks",
        "text_model.encoder.layers": "text.transformer.resblocks",
        "text_model.embeddings.token_embedding": "text.token_embedding",
        "text_model.final_layer_norm": "text.ln_final",
        "text_model.head": "text.text_projection",
    }
    inner = {
        "visual": {"layer_norm": "norm", "self_attn.out_proj": "attn.proj"},
        "text": {"layer_norm": "ln_", "self_attn": "attn", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"},
    }
    for name, tensor in own.items():
        start = next(start for start in pairs if name.startswith(start))
        new = name.replace(start, pairs[start])
        for old, word in inner[new.split(".")[0]].items():
            new = new.replace(old, word)
        made[new] = tensor
    return made


def siglip_cosines() -> list[float]:
    model = open_clip_siglip()
    options = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    prepare = open_clip.image_transform(SIDE, is_train=False, **options)
    texts = [text.lower() for text in SIGLIP_TEXTS]
    ids = siglip_words()(texts, padding="max_length", truncation=True, max_length=16, return_tensors="pt")["input_ids"]
    images = model.encode_image(torch.stack([prepare(image) for image in rows()]))
    return F.cosine_similarity(images, model.encode_text(ids)).tolist()


def main() -> None:
    with torch.inference_mode():
        hps, ids = hps_scores()
        made = {
            "packages": {name: version(name) for name in ("open_clip_torch", "hpsv2", "timm", "torch", "torchvision")},
            "keys": clip_keys(),
            "pick_score": pick_scores(),
            "hps_v2": hps,
            "hps_v2_ids": ids,
            "aesthetic": aesthetic_scores(),
            "siglip_cosine": siglip_cosines(),
        }
    FILE.write_text(json.dumps(made) + "\n")


if __name__ == "__main__":
    main()

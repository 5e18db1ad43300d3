"""Models of picture rewards on the hub: the commit that is loaded, and where a file of one lies."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.file_download import repo_folder_name


CLIP_L = "openai/clip-vit-large-patch14"
CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

REVISIONS = {
    "THUDM/ImageReward": "5736be03b2652728fb87788c9797b0570450ab72",
    "bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
    "google/siglip2-so400m-patch14-384": "e8e487298228002f3d8a82e0cd5c8ea9c567f57f",
    CLIP_H: "1c2b8495b28150b8a4922ee1c8edee224c284c0c",
    CLIP_L: "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "trl-lib/ddpo-aesthetic-predictor": "cf4bd10345610935a80a5d3be9a3133c50f121e4",
    "xswu/HPSv2": "697403c78157020a1ae59d23f111aa58ced35b0a",
    "yuvalkirstain/PickScore_v1": "a4e4367c6dfa7288a00c550414478f865b875800",
}
"""Commit of each model that a reward loads by default: what is measured today is measured with the same weights later."""

CLIP_L_SIZES = {
    "projection_dim": 768,
    "text_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
    },
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 768,
    },
}
"""Of OpenAI's ViT-L/14, to count its memory where it cannot be reached."""

CLIP_H_CONFIG = {
    "embed_dim": 1024,
    "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
}
"""open_clip's configuration of LAION's ViT-H/14, which PickScore and HPSv2 were tuned from. Its activation is GELU."""


def pinned(model: str, revision: str | None) -> str | None:
    """The revision to load: the one asked for, or the commit of ``REVISIONS``; None is the newest."""
    return REVISIONS.get(model) if revision is None else revision


def source_of(model: str, revision: str | None) -> str:
    """``id@commit`` of what is loaded, as far as it is known: without a revision the commit that the cache has."""
    if Path(model).exists() or model.count("/") != 1:
        return model
    revision = pinned(model, revision)
    if revision is None:
        folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=model, repo_type="model"))
        newest = folder / "refs" / "main"
        revision = newest.read_text().strip() if newest.is_file() else "main"
    return f"{model}@{revision}"


def published_file(model: str, name: str, revision: str | None) -> Path:
    """A file by its own path, in a folder, or on the hub.

    Raises:
        ValueError: the folder has no such file.
    """
    path = Path(model)
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / name).is_file():
            raise ValueError(f"the folder {model!r} has no {name}")
        return path / name
    return Path(hf_hub_download(model, name, revision=pinned(model, revision)))

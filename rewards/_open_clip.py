"""CLIP-type models of open_clip, which is imported when one of them is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn


def load_open_clip(model: str, pretrained: str | None, dtype: torch.dtype) -> OpenClip:
    """A model by open_clip's name, or by the path of a JSON file with its configuration, with its weights.

    Raises:
        ImportError: open_clip is not installed.
        ValueError: open_clip does not find the model or its weights.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(
            f"backend='open_clip' needs the package open_clip_torch ({error}): pip install \"unigrpo[openclip]\""
        ) from error
    if model.endswith(".json"):
        if not Path(model).is_file():
            raise ValueError(f"there is no open_clip configuration {model!r}")
        open_clip.add_model_config(Path(model))
        model = Path(model).stem
    try:
        loaded, preprocess = open_clip.create_model_from_pretrained(model, pretrained=pretrained)
        tokenizer = open_clip.get_tokenizer(model)
    except (RuntimeError, FileNotFoundError) as error:
        raise ValueError(
            f"open_clip cannot load model={model!r} with pretrained={pretrained!r}: {error}. "
            "open_clip.list_pretrained() has the names."
        ) from error
    return OpenClip(loaded.to(dtype), preprocess, tokenizer, dtype)


class OpenClip:
    """An open_clip model with its image transform and its tokenizer."""

    def __init__(self, model: nn.Module, preprocess: Any, tokenizer: Any, dtype: torch.dtype) -> None:
        self._model = model.eval().requires_grad_(False)
        self._preprocess, self._tokenizer, self._dtype = preprocess, tokenizer, dtype
        self._device = torch.device("cpu")
        self.window = tokenizer.context_length

    def pixels(self, image: Image.Image) -> Tensor:
        return self._preprocess(image.convert("RGB")).float()

    def count_tokens(self, texts: list[str]) -> list[int]:
        inner = getattr(self._tokenizer, "tokenizer", None)
        if inner is None:
            return [len(self._tokenizer.encode(text)) + 2 for text in texts]  # with the start and the end
        return [len(ids) for ids in inner(texts, padding=False, truncation=False, verbose=False)["input_ids"]]

    def embed_images(self, pixels: Tensor) -> Tensor:
        return self._model.encode_image(pixels.to(self._dtype))

    def embed_texts(self, texts: list[str]) -> Tensor:
        return self._model.encode_text(self._tokenizer(texts).to(self._device))

    def to(self, device: torch.device) -> None:
        self._model.to(device)
        self._device = device

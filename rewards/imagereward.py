"""ImageReward: how much people would like an image for a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, BlipTextConfig, BlipVisionConfig

from ..models.checkpoint_files import read_weights, reading
from ._image_text import DTYPES, ImageTextReward, Scorer
from ._imagereward_model import ImageRewardModel, load_image_reward, text_config, vision_config
from ._preparation import middle
from ._published import pinned, published_file


PUBLISHED = "THUDM/ImageReward"

VISION_SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 16,
}
TEXT_SIZES = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 30524,
    "encoder_hidden_size": 1024,
    "is_decoder": True,
}
"""Of ``PUBLISHED``, to count its memory where it cannot be reached."""

WEIGHTS, CONFIG = "ImageReward.pt", "med_config.json"

WINDOW = 35
"""Tokens of a text, ``[CLS]`` and ``[SEP]`` included."""


class ImageReward(ImageTextReward):
    """Score of ImageReward, normalised by its own constants; range any number, mostly in -2 to 2.

    Args:
        model: hub id, or a folder with ``ImageReward.pt`` and ``med_config.json``.
        tokenizer: hub id or folder of BERT's uncased tokenizer.
        vision_heads: attention heads of the image tower, which nothing in the files says.
        batch_size, device, dtype: see ``ImageTextReward``. Only float32 is compared with the original.
        revision: commit, tag or branch of ``model`` on the hub.

    Raises:
        ValueError: an argument is out of range.
    """

    __name__ = "image_reward"

    def __init__(
        self,
        model: str = PUBLISHED,
        *,
        tokenizer: str = "bert-base-uncased",
        vision_heads: int = 16,
        batch_size: int = 32,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        revision: str | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, device=device, dtype=dtype)
        if isinstance(vision_heads, bool) or not isinstance(vision_heads, int) or vision_heads < 1:
            raise ValueError(f"vision_heads must be a whole number of at least 1, got {vision_heads!r}")
        self.model, self.tokenizer, self.vision_heads, self.revision = str(model), tokenizer, vision_heads, revision

    def _files(self) -> tuple[Path, Path]:
        """Weights and configuration."""
        weights, config = (published_file(self.model, name, self.revision) for name in (WEIGHTS, CONFIG))
        return weights, config

    def _outline(self) -> tuple[nn.Module, Callable[[], Any]]:
        if Path(self.model).is_dir():
            weights, config = self._files()
            vision = vision_config(read_weights(weights), self.vision_heads)
            text = text_config(config, vision.hidden_size)
        elif self.model == PUBLISHED:
            vision, text = BlipVisionConfig(**VISION_SIZES), BlipTextConfig(**TEXT_SIZES)
        else:
            return super()._outline()
        with torch.device("meta"):
            model = ImageRewardModel(vision, text).set_dtype(DTYPES[self.dtype])
        rows, side = self.batch_size, vision.image_size

        def score() -> Tensor:
            ids = torch.zeros(rows, WINDOW, dtype=torch.int64)
            return model(torch.zeros(rows, 3, side, side), ids, torch.ones_like(ids))

        return model, score

    def _load(self) -> Scorer:
        model = load_image_reward(*self._files(), self.vision_heads).set_dtype(DTYPES[self.dtype])
        with reading(f"tokenizer={self.tokenizer!r}"):
            revision = pinned(self.tokenizer, None)
            tokenizer = AutoTokenizer.from_pretrained(self.tokenizer, revision=revision, trust_remote_code=False)
        return ImageRewardScorer(model, tokenizer)


class ImageRewardScorer:
    """The model with its tokenizer."""

    window = WINDOW

    def __init__(self, model: ImageRewardModel, tokenizer: Any) -> None:
        vocabulary = model.text_encoder.config.vocab_size
        if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None or len(tokenizer) > vocabulary:
            raise ValueError(
                f"tokenizer={tokenizer.name_or_path!r} must be BERT's, with [CLS] and [SEP] and at most {vocabulary} "
                f"tokens; it has {len(tokenizer)}"
            )
        self._model, self._tokenizer = model, tokenizer
        self._size = model.vision_model.config.image_size

    def pixels(self, image: Image.Image) -> Tensor:
        return middle(image, self._size)

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [
            len(ids) for ids in self._tokenizer(texts, padding=False, truncation=False, verbose=False)["input_ids"]
        ]

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask, ``[B, 35]``: padded, because the published scores are."""
        tokens = self._tokenizer(texts, padding="max_length", truncation=True, max_length=WINDOW, return_tensors="pt")
        return tokens["input_ids"], tokens["attention_mask"]

    def score(self, pixels: Tensor, texts: list[str]) -> Tensor:
        return self._model(pixels, *(tensor.to(pixels.device) for tensor in self.tokens(texts)))

    def to(self, device: torch.device) -> None:
        self._model.to(device)

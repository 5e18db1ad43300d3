"""SigLIP score: how well an image and a text go together, by a model that was trained on each pair alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SiglipConfig, SiglipModel

from ._encoders import CosineScorer, TransformersSiglip, image_outline, load_siglip, read_config
from ._image_text import DTYPES, ImageTextReward, Scorer


PUBLISHED = "google/siglip2-so400m-patch14-384"

TOWER = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
PUBLISHED_SIZES: dict[str, Any] = {
    "text_config": {**TOWER, "vocab_size": 256_000, "max_position_embeddings": 64, "projection_size": 1152},
    "vision_config": {**TOWER, "image_size": 384, "patch_size": 14},
}
"""Of ``PUBLISHED``, to count its memory where it cannot be reached."""


class SiglipScore(ImageTextReward):
    """``max(100 cos, 0)`` of the SigLIP embeddings of an image and a text; range [0, 100].

    With ``probability`` it is what SigLIP was trained for, ``sigmoid(exp(logit_scale) * cos + logit_bias)``, the
    probability that the two belong together; range [0, 1]. It is near 0 for most pairs, and near 1 for some, where
    cosines still differ. SigLIP, arXiv 2303.15343; SigLIP 2, arXiv 2502.14786. Images are resized to a square, not
    cropped. Texts are read in small letters.

    Args:
        model: hub id or folder of a ``SiglipModel``, of either version. The tokenizers of the first version ask for the
            package sentencepiece.
        processor: hub id or folder of the tokenizer and the image processor, where ``model`` has none.
        probability: the probability instead of the cosine.
        batch_size, device, dtype: see ``ImageTextReward``.
        revision: commit, tag or branch of ``model`` on the hub.

    Raises:
        ValueError: an argument is out of range; or, when the model is loaded, a damaged or another model.
    """

    __name__ = "siglip_score"

    def __init__(
        self,
        model: str = PUBLISHED,
        *,
        processor: str | None = None,
        probability: bool = False,
        batch_size: int = 32,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        revision: str | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, device=device, dtype=dtype)
        if not isinstance(probability, bool):
            raise ValueError(f"probability must be true or false, got {probability!r}")
        self.model, self.processor, self.revision = str(model), processor, revision
        self.probability = probability

    def _load(self) -> Scorer:
        encoder = load_siglip(self.model, self.processor, self.revision, DTYPES[self.dtype])
        return ProbabilityScorer(encoder) if self.probability else CosineScorer(encoder, 100.0, 0.0)

    def _outline(self) -> tuple[nn.Module, Callable[[], Any]]:
        try:
            config = read_config(SiglipModel, self.model, self.revision)
        except OSError:
            if self.model != PUBLISHED:
                raise
            config = SiglipConfig(**PUBLISHED_SIZES)
        with torch.device("meta"):
            return image_outline(SiglipModel(config), self.batch_size, DTYPES[self.dtype])


class ProbabilityScorer(CosineScorer):
    """The sigmoid of the scaled cosine and the bias."""

    def __init__(self, encoder: TransformersSiglip) -> None:
        super().__init__(encoder, encoder.logit_scale, None)
        self._bias = encoder.logit_bias

    def score(self, pixels: Tensor, texts: list[str]) -> Tensor:
        return (super().score(pixels, texts) + self._bias).sigmoid()

"""LAION's aesthetic predictor: how much people like a picture, whatever it was asked to show."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from ..models.checkpoint_files import load_strictly, read_weights, reading
from ._encoders import read_config, read_model
from ._image_text import DTYPES, ImageTextReward, Pair, Scorer
from ._imagereward_model import linear_head
from ._preparation import middle
from ._published import CLIP_L, CLIP_L_SIZES, published_file, source_of


PUBLISHED = "trl-lib/ddpo-aesthetic-predictor"
HEAD = "aesthetic-model.pth"
"""What the file of the head is called there. LAION calls the same weights ``sac+logos+ava1-l14-linearMSE.pth``."""


class Aesthetic(ImageTextReward):
    """Score of LAION's improved aesthetic predictor (V2); range any number, mostly 1 to 10.

    The mean grade that people would give a picture, by a head on CLIP's embedding. It reads no text: a row needs a
    picture as its completion, all others are None. Repository christophschuhmann/improved-aesthetic-predictor.

    Args:
        model: of the head: a hub id or folder with ``aesthetic-model.pth``, or the file itself.
        clip: hub id or folder of the CLIP whose embeddings it reads, OpenAI's ViT-L/14.
        batch_size, device, dtype: see ``ImageTextReward``. The head is fp32.
        revision: commit, tag or branch of ``model`` on the hub.

    Raises:
        ValueError: an argument is out of range; or, when the model is loaded, files that are damaged or do not fit.
    """

    __name__ = "aesthetic"

    def __init__(
        self,
        model: str = PUBLISHED,
        *,
        clip: str = CLIP_L,
        batch_size: int = 32,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        revision: str | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, device=device, dtype=dtype)
        self.model, self.clip, self.revision = str(model), str(clip), revision

    @property
    def source(self) -> str:
        """With the CLIP under the head."""
        return f"{super().source} {source_of(self.clip, None)}"

    def _pair(self, prompt: Any, completion: Any, images: Any, reward_prompt: Any) -> Pair | None:
        return Pair(completion, "") if isinstance(completion, Image.Image) else None

    def _load(self) -> Scorer:
        with reading(f"clip={self.clip!r}"):
            clip = read_model(CLIPModel, self.clip, None, DTYPES[self.dtype])
        path = published_file(self.model, HEAD, self.revision)
        weights = {re.sub(r"^layers\.", "", name): tensor.float() for name, tensor in read_weights(path).items()}
        model = AestheticModel(clip)
        load_strictly(model.head, weights, repr(str(path)))
        return AestheticScorer(model.eval().requires_grad_(False))

    def _outline(self) -> tuple[nn.Module, Callable[[], Any]]:
        try:
            config = read_config(CLIPModel, self.clip, None)
        except OSError:
            if self.clip != CLIP_L:
                raise
            config = CLIPConfig(**CLIP_L_SIZES)
        dtype, side = DTYPES[self.dtype], config.vision_config.image_size
        with torch.device("meta"):
            model = AestheticModel(CLIPModel(config).to(dtype))
        return model, lambda: model(torch.zeros(self.batch_size, 3, side, side))


class AestheticModel(nn.Module):
    """The image half of a CLIP, and a linear head on its embedding of length 1."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.vision_model, self.visual_projection = clip.vision_model, clip.visual_projection
        self.head = linear_head(clip.config.projection_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """Scores ``[B]`` fp32 of ``pixels`` ``[B, 3, size, size]``."""
        seen = self.vision_model(pixel_values=pixels.to(self.visual_projection.weight.dtype)).pooler_output
        embeds = F.normalize(self.visual_projection(seen).float(), dim=-1)
        return self.head(embeds).squeeze(-1)


class AestheticScorer:
    """The model and OpenAI's way to prepare a picture. It reads no text."""

    window = 0

    def __init__(self, model: AestheticModel) -> None:
        self._model = model
        self.pixels = partial(middle, size=model.vision_model.config.image_size)

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [0] * len(texts)

    def score(self, pixels: Tensor, texts: list[str]) -> Tensor:
        return self._model(pixels)

    def to(self, device: torch.device) -> None:
        self._model.to(device)

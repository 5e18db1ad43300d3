"""What people prefer, by a CLIP that learned from their choices: PickScore and HPSv2."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPModel

from ._clip_keys import OpenClipConfig
from ._encoders import CosineScorer, image_outline, load_clip, load_converted, read_config
from ._image_text import DTYPES, ImageTextReward, Scorer
from ._preparation import letterbox
from ._published import CLIP_H, CLIP_H_CONFIG, published_file, source_of


PICK_SCORE = "yuvalkirstain/PickScore_v1"
HPS = "xswu/HPSv2"
HPS_FILES = {"v2.1": "HPS_v2.1_compressed.pt", "v2.0": "HPS_v2_compressed.pt"}
"""Version of HPSv2 -> the file of its weights."""


class PickScore(ImageTextReward):
    """PickScore: ``exp(logit_scale) * cos`` of the embeddings of an image and a text; range [-100, 100].

    Pictures of today's models score about 18 to 24. The bounds are those of the published ``exp(logit_scale)``, 100.
    Papers that divide by 26 mean this score. Pick-a-Pic, arXiv 2305.01569; repository yuvalkirstain/PickScore.

    Args:
        model: hub id or folder of the ``CLIPModel``.
        processor: hub id or folder of its tokenizer and image processor; None is the model's own.
        batch_size, device, dtype: see ``ImageTextReward``.
        revision: commit, tag or branch of ``model`` on the hub.

    Raises:
        ValueError: an argument is out of range; or, when the model is loaded, a damaged or another model.
    """

    __name__ = "pick_score"

    def __init__(
        self,
        model: str = PICK_SCORE,
        *,
        processor: str | None = CLIP_H,
        batch_size: int = 32,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        revision: str | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, device=device, dtype=dtype)
        self.model, self.processor, self.revision = str(model), processor, revision

    @property
    def source(self) -> str:
        """With where the tokenizer and the image processor are from, if that is another place."""
        return super().source if self.processor is None else f"{super().source} {source_of(str(self.processor), None)}"

    def _load(self) -> Scorer:
        encoder = load_clip(self.model, self.processor, self.revision, DTYPES[self.dtype])
        return CosineScorer(encoder, encoder.logit_scale, None)

    def _outline(self) -> tuple[nn.Module, Callable[[], Any]]:
        try:
            config = read_config(CLIPModel, self.model, self.revision)
        except OSError:
            if self.model != PICK_SCORE:
                raise
            config = OpenClipConfig.read(CLIP_H_CONFIG).clip_config()
        with torch.device("meta"):
            return image_outline(CLIPModel(config), self.batch_size, DTYPES[self.dtype])


class HpsV2(ImageTextReward):
    """Human Preference Score v2: the cosine of the embeddings of an image and a text; range [-1, 1].

    Pictures of today's models score about 0.2 to 0.38, and differ by hundredths. Papers report 100 times this. Images
    are not cropped: they get black bars, as in the package hpsv2. arXiv 2306.09341; repository tgxs002/HPSv2.

    Args:
        model: hub id, a folder with the file of ``version``, or the file itself.
        version: ``"v2.1"`` or ``"v2.0"``.
        config: open_clip configuration of the weights, a JSON file; None is ViT-H/14.
        processor: hub id or folder of CLIP's tokenizer.
        batch_size, device, dtype: see ``ImageTextReward``.
        revision: commit, tag or branch of ``model`` on the hub.

    Raises:
        ValueError: an argument is out of range; or, when the model is loaded, weights that do not fit the configuration.
    """

    __name__ = "hps_v2"

    def __init__(
        self,
        model: str = HPS,
        *,
        version: str = "v2.1",
        config: str | Path | None = None,
        processor: str = CLIP_H,
        batch_size: int = 32,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        revision: str | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, device=device, dtype=dtype)
        if version not in HPS_FILES:
            raise ValueError(f"version must be one of {list(HPS_FILES)}, got {version!r}")
        self.model, self.version, self.config, self.revision = str(model), version, config, revision
        self.processor = str(processor)

    @property
    def source(self) -> str:
        """With the file, of which a version each is in one place."""
        return f"{super().source} {HPS_FILES[self.version]}"

    def _configuration(self) -> OpenClipConfig:
        return OpenClipConfig.read(CLIP_H_CONFIG if self.config is None else self.config)

    def _load(self) -> Scorer:
        config = self._configuration()
        weights = published_file(self.model, HPS_FILES[self.version], self.revision)
        prepare = partial(letterbox, size=config.vision["image_size"])
        encoder = load_converted(config, weights, self.processor, DTYPES[self.dtype], prepare)
        return CosineScorer(encoder, 1.0, None)

    def _outline(self) -> tuple[nn.Module, Callable[[], Any]]:
        with torch.device("meta"):
            model = CLIPModel(self._configuration().clip_config())
            return image_outline(model, self.batch_size, DTYPES[self.dtype])

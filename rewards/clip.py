"""CLIP score: how well an image and a text go together."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel

from ._clip_keys import OpenClipConfig, load_open_clip_as_clip
from ._encoders import CosineScorer, clip_scores, image_outline, load_clip, load_converted, read_config
from ._image_text import DTYPES, ImageTextReward, Scorer
from ._open_clip import load_open_clip
from ._published import CLIP_L, CLIP_L_SIZES


__all__ = ["BACKENDS", "ClipScore", "OpenClipConfig", "clip_scores", "load_open_clip_as_clip"]

BACKENDS = ("transformers", "open_clip")

WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
"""What the weights are called in a folder in open_clip's layout, the preferred name first."""


class ClipScore(ImageTextReward):
    """``max(scale * cos, clamp_min)`` of the CLIP embeddings of an image and a text; range [0, 100] by default.

    The default is the definition of torchmetrics' ``clip_score``. HPSv2 reports the bare cosine: ``scale=1.0,
    clamp_min=None``.

    Args:
        model: CLIP on the hub or in a folder. With ``pretrained``: the open_clip configuration those weights belong
            to, a JSON file or a folder with ``open_clip_config.json``. With ``backend="open_clip"``: any name that
            open_clip knows, ``hf-hub:...``, ``local-dir:...``, or the path of a JSON file.
        backend: ``"transformers"``, or ``"open_clip"`` for models that are not in transformers (needs the extra
            ``unigrpo[openclip]``).
        pretrained: open_clip weights: a file, or with ``backend="open_clip"`` also a tag such as
            ``"laion2b_s32b_b79k"``. A folder in open_clip's layout that is no transformers model needs none.
        processor: hub id or folder of the tokenizer and the image processor, where ``model`` has none.
        scale: factor of the cosine.
        clamp_min: lowest score, None for no bound.
        batch_size, device, dtype: see ``ImageTextReward``.
        revision: commit, tag or branch on the hub.

    Raises:
        ValueError: an argument is out of range, or arguments contradict each other.
        ImportError: ``backend="open_clip"`` and open_clip is not installed; raised when the model is loaded.
    """

    __name__ = "clip_score"

    def __init__(
        self,
        model: str = CLIP_L,
        *,
        backend: str = "transformers",
        pretrained: str | None = None,
        processor: str | None = None,
        scale: float = 100.0,
        clamp_min: float | None = 0.0,
        batch_size: int = 32,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        revision: str | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, device=device, dtype=dtype)
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {list(BACKENDS)}, got {backend!r}")
        if not _is_number(scale) or scale == 0:
            raise ValueError(f"scale must be a finite number other than 0, got {scale!r}")
        if clamp_min is not None and not _is_number(clamp_min):
            raise ValueError(f"clamp_min must be a finite number or None, got {clamp_min!r}")
        if backend == "open_clip":
            if pretrained is None and ":" not in str(model):
                raise ValueError(
                    f"backend='open_clip' needs `pretrained`, a tag or a file, for model={model!r}: without it the "
                    "weights would be random"
                )
            for name, value in (("processor", processor), ("revision", revision)):
                if value is not None:
                    raise ValueError(f"{name}={value!r} is for backend='transformers'; open_clip brings its own")
        self.model, self.backend, self.pretrained, self.processor = str(model), backend, pretrained, processor
        self.scale, self.clamp_min, self.revision = scale, clamp_min, revision

    def _load(self) -> Scorer:
        dtype = DTYPES[self.dtype]
        if self.backend == "open_clip":
            encoder: Any = load_open_clip(self.model, self.pretrained, dtype)
        elif self.pretrained is not None or _is_open_clip_folder(self.model):
            encoder = load_converted(*self._open_clip_files(), self.processor or self.model, dtype)
        else:
            encoder = load_clip(self.model, self.processor, self.revision, dtype)
        return CosineScorer(encoder, self.scale, self.clamp_min)

    def _outline(self) -> tuple[nn.Module, Callable[[], Any]]:
        if self.backend == "open_clip" or self.pretrained is not None or _is_open_clip_folder(self.model):
            return super()._outline()
        try:
            config = read_config(CLIPModel, self.model, self.revision)
        except OSError:
            if self.model != CLIP_L:
                raise
            config = CLIPConfig(**CLIP_L_SIZES)
        with torch.device("meta"):
            return image_outline(CLIPModel(config), self.batch_size, DTYPES[self.dtype])

    def _open_clip_files(self) -> tuple[OpenClipConfig, str | Path]:
        """Configuration and weights in open_clip's layout."""
        path = Path(self.model)
        config = OpenClipConfig.read(path / "open_clip_config.json" if path.is_dir() else path)
        weights = self.pretrained
        if weights is None:
            weights = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
        if weights is None:
            raise ValueError(f"{self.model!r} holds none of {list(WEIGHT_FILES)}: give the file as `pretrained`")
        return config, weights


def _is_open_clip_folder(model: str) -> bool:
    return (Path(model) / "open_clip_config.json").is_file() and not (Path(model) / "config.json").is_file()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

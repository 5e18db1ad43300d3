"""CLIP score: how well an image and a text go together."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from ..models.checkpoint_files import check_declared, reading
from ._clip_keys import OpenClipConfig, load_open_clip_as_clip
from ._image_text import DTYPES, ImageTextReward, Scorer
from ._open_clip import load_open_clip


__all__ = ["BACKENDS", "ClipScore", "OpenClipConfig", "clip_scores", "load_open_clip_as_clip"]

BACKENDS = ("transformers", "open_clip")

PUBLISHED = "openai/clip-vit-large-patch14"

PUBLISHED_SIZES: dict[str, Any] = {
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
"""Of ``PUBLISHED``, to count its memory where it cannot be reached."""

WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
"""What the weights are called in a folder in open_clip's layout, the preferred name first."""


def clip_scores(image_embeds: Tensor, text_embeds: Tensor, scale: float, clamp_min: float | None) -> Tensor:
    """``max(scale * cos, clamp_min)`` of each row, ``[B]`` fp32; embeddings ``[B, D]`` of any length and dtype."""
    cosine = F.cosine_similarity(image_embeds.float(), text_embeds.float(), dim=-1)
    scores = scale * cosine
    return scores if clamp_min is None else scores.clamp(min=clamp_min)


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
        model: str = PUBLISHED,
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
        if self.backend == "open_clip":
            encoder = load_open_clip(self.model, self.pretrained, DTYPES[self.dtype])
        elif self.pretrained is not None or _is_open_clip_folder(self.model):
            encoder = self._converted()
        else:
            encoder = self._from_pretrained()
        return ClipScorer(encoder, self.scale, self.clamp_min)

    def _outline(self) -> tuple[nn.Module, Callable[[], Any]]:
        if self.backend == "open_clip" or self.pretrained is not None or _is_open_clip_folder(self.model):
            return super()._outline()
        try:
            config = AutoConfig.from_pretrained(self.model, revision=self.revision, trust_remote_code=False)
        except OSError:
            if self.model != PUBLISHED:
                raise
            config = CLIPConfig(**PUBLISHED_SIZES)
        with torch.device("meta"):
            model = CLIPModel(config).to(DTYPES[self.dtype])
        side = config.vision_config.image_size
        shape = (self.batch_size, 3, side, side)
        return model, lambda: model.get_image_features(pixel_values=torch.zeros(shape, dtype=model.dtype))

    def _from_pretrained(self) -> TransformersClip:
        with reading(f"model={self.model!r}"):
            return self._checked()

    def _checked(self) -> TransformersClip:
        config = AutoConfig.from_pretrained(self.model, revision=self.revision, trust_remote_code=False)
        if config.model_type != "clip":
            raise ValueError(
                f"model={self.model!r} is a {config.model_type!r} and must be a CLIP model. "
                "backend='open_clip' has other kinds, SigLIP among them."
            )
        check_declared(config, CLIPModel, self.model, f"model={self.model!r}", revision=self.revision)
        model, report = CLIPModel.from_pretrained(
            self.model, revision=self.revision, dtype=DTYPES[self.dtype], output_loading_info=True
        )
        wrong = {kind: sorted(map(str, report[kind])) for kind in ("missing_keys", "mismatched_keys") if report[kind]}
        if wrong:
            raise ValueError(f"model={self.model!r} is not a complete CLIP checkpoint: {wrong}")
        source, revision = (self.model, self.revision) if self.processor is None else (self.processor, None)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        images = CLIPImageProcessorPil.from_pretrained(source, revision=revision)
        return TransformersClip(model, tokenizer, images)

    def _converted(self) -> TransformersClip:
        path = Path(self.model)
        config = OpenClipConfig.read(path / "open_clip_config.json" if path.is_dir() else path)
        weights = self.pretrained
        if weights is None:
            weights = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
        if weights is None:
            raise ValueError(f"{self.model!r} holds none of {list(WEIGHT_FILES)}: give the file as `pretrained`")
        source = self.processor or self.model
        try:
            with reading(repr(source)):
                tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{source!r} has no tokenizer. Give the hub id or the folder of one as `processor`; "
                "'openai/clip-vit-large-patch14' has the one of OpenAI's, LAION's and HPSv2's models."
            ) from error
        model = load_open_clip_as_clip(config, weights, eos_token_id=tokenizer.eos_token_id).to(DTYPES[self.dtype])
        return TransformersClip(model, tokenizer, config.image_processor())


class ClipScorer:
    """CLIP embeddings and the formula of the score. ``encoder`` is a ``TransformersClip`` or an ``OpenClip``."""

    def __init__(self, encoder: Any, scale: float, clamp_min: float | None) -> None:
        self.encoder, self.window = encoder, encoder.window
        self.pixels, self.count_tokens, self.to = encoder.pixels, encoder.count_tokens, encoder.to
        self._scale, self._clamp_min = scale, clamp_min

    def score(self, pixels: Tensor, texts: list[str]) -> Tensor:
        embeds = self.encoder.embed_images(pixels), self.encoder.embed_texts(texts)
        return clip_scores(*embeds, self._scale, self._clamp_min)


class TransformersClip:
    """``CLIPModel`` with its tokenizer and its image processor."""

    def __init__(self, model: CLIPModel, tokenizer: Any, images: CLIPImageProcessorPil) -> None:
        text, size = model.config.text_config, model.config.vision_config.image_size
        crop = (images.crop_size["height"], images.crop_size["width"])
        if crop != (size, size):
            raise ValueError(f"the image processor crops to {crop} and the model reads {(size, size)} pixels")
        # 2 stands in the configurations of OpenAI's models, and transformers then takes the largest id.
        if text.eos_token_id not in (2, tokenizer.eos_token_id):
            raise ValueError(
                f"the model reads a text at token {text.eos_token_id}, its eos_token_id, and the tokenizer ends it "
                f"with {tokenizer.eos_token_id}: give the tokenizer of this model as `processor`"
            )
        if len(tokenizer) > text.vocab_size:
            raise ValueError(f"the tokenizer has {len(tokenizer)} tokens and the model {text.vocab_size}")
        self.window = text.max_position_embeddings
        self._model, self._tokenizer, self._images = model.eval().requires_grad_(False), tokenizer, images

    def pixels(self, image: Image.Image) -> Tensor:
        return self._images(image.convert("RGB"), return_tensors="pt")["pixel_values"][0].float()

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [
            len(ids) for ids in self._tokenizer(texts, padding=False, truncation=False, verbose=False)["input_ids"]
        ]

    def embed_images(self, pixels: Tensor) -> Tensor:
        return self._model.get_image_features(pixel_values=pixels.to(self._model.dtype)).pooler_output

    def embed_texts(self, texts: list[str]) -> Tensor:
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=self.window, return_tensors="pt").to(
            self._model.device
        )
        return self._model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output

    def to(self, device: torch.device) -> None:
        self._model.to(device)


def _is_open_clip_folder(model: str) -> bool:
    return (Path(model) / "open_clip_config.json").is_file() and not (Path(model) / "config.json").is_file()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

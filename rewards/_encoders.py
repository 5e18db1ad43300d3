"""Two towers of transformers that embed images and texts side by side: CLIP and SigLIP, loaded strictly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipImageProcessorPil,
    SiglipModel,
)

from ..models.checkpoint_files import check_declared, reading
from ._clip_keys import OpenClipConfig, load_open_clip_as_clip
from ._preparation import prepared_by
from ._published import pinned


OTHER_KINDS = {
    "clip": "backend='open_clip' has other kinds, and siglip_score reads SigLIP.",
    "siglip": "clip_score reads CLIP; a naflex SigLIP, of pictures of any size, has no reward here.",
}
"""What is said where a checkpoint is another model than that."""


def clip_scores(image_embeds: Tensor, text_embeds: Tensor, scale: float, clamp_min: float | None) -> Tensor:
    """``max(scale * cos, clamp_min)`` of each row, ``[B]`` fp32; embeddings ``[B, D]`` of any length and dtype."""
    cosine = F.cosine_similarity(image_embeds.float(), text_embeds.float(), dim=-1)
    scores = scale * cosine
    return scores if clamp_min is None else scores.clamp(min=clamp_min)


def read_config(kind: type[PreTrainedModel], model: str, revision: str | None) -> PreTrainedConfig:
    """The configuration of a checkpoint of ``kind``.

    Raises:
        ValueError: it is one of another model.
    """
    config = AutoConfig.from_pretrained(model, revision=pinned(model, revision), trust_remote_code=False)
    wanted = kind.config_class.model_type
    if config.model_type != wanted:
        raise ValueError(
            f"model={model!r} is a {config.model_type!r} and must be a {wanted!r} model. {OTHER_KINDS[wanted]}"
        )
    return config


def read_model(kind: type[PreTrainedModel], model: str, revision: str | None, dtype: torch.dtype) -> PreTrainedModel:
    """A checkpoint of ``kind``, complete, in eval mode on the CPU.

    Raises:
        ValueError: it is of another kind, damaged, or lacks weights.
    """
    options = {"revision": pinned(model, revision)}
    config = read_config(kind, model, revision)
    check_declared(config, kind, model, f"model={model!r}", **options)
    made, report = kind.from_pretrained(model, dtype=dtype, output_loading_info=True, **options)
    wrong = {name: sorted(map(str, report[name])) for name in ("missing_keys", "mismatched_keys") if report[name]}
    if wrong:
        raise ValueError(f"model={model!r} is not a complete {config.model_type} checkpoint: {wrong}")
    return made


def load_clip(model: str, processor: str | None, revision: str | None, dtype: torch.dtype) -> TransformersClip:
    """CLIP as transformers has it, on the hub or in a folder; ``processor``: where its tokenizer is, else there too.

    Raises:
        ValueError: see ``read_model``; or parts that do not belong together.
    """
    with reading(f"model={model!r}"):
        made = read_model(CLIPModel, model, revision, dtype)
        tokenizer, images = read_processors(CLIPImageProcessorPil, model, processor, revision)
        return TransformersClip(made, tokenizer, prepared_by(images, made.config.vision_config.image_size))


def load_siglip(model: str, processor: str | None, revision: str | None, dtype: torch.dtype) -> TransformersSiglip:
    """SigLIP of one picture size, its first or its second version; arguments and errors as of ``load_clip``."""
    with reading(f"model={model!r}"):
        made = read_model(SiglipModel, model, revision, dtype)
        tokenizer, images = read_processors(SiglipImageProcessorPil, model, processor, revision)
        return TransformersSiglip(made, tokenizer, prepared_by(images, made.config.vision_config.image_size))


def read_processors(kind: Any, model: str, processor: str | None, revision: str | None) -> tuple[Any, Any]:
    """Tokenizer and image processor, of ``processor`` or else of the model itself."""
    source, revision = (model, revision) if processor is None else (processor, None)
    options = {"revision": pinned(source, revision)}
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    return tokenizer, kind.from_pretrained(source, **options)


def load_converted(
    config: OpenClipConfig,
    weights: str | Path,
    processor: str,
    dtype: torch.dtype,
    prepare: Callable[[Image.Image], Tensor] | None = None,
) -> TransformersClip:
    """open_clip weights in ``CLIPModel``, with the tokenizer of ``processor``.

    Args:
        prepare: how a picture becomes pixels; None is as the configuration says.

    Raises:
        ValueError: no tokenizer there, or weights that do not fit the configuration.
    """
    try:
        with reading(repr(processor)):
            revision = pinned(processor, None)
            tokenizer = AutoTokenizer.from_pretrained(processor, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{processor!r} has no tokenizer. Give the hub id or the folder of one as `processor`; "
            "'openai/clip-vit-large-patch14' has the one of OpenAI's, LAION's and HPSv2's models."
        ) from error
    model = load_open_clip_as_clip(config, weights, eos_token_id=tokenizer.eos_token_id).to(dtype)
    if prepare is None:
        prepare = prepared_by(config.image_processor(), config.vision["image_size"])
    return TransformersClip(model, tokenizer, prepare)


def image_outline(
    model: PreTrainedModel, batch_size: int, dtype: torch.dtype
) -> tuple[PreTrainedModel, Callable[[], Any]]:
    """A model on the meta device and the call of its image tower, which takes the most memory of a score."""
    side = model.config.vision_config.image_size
    shape = (batch_size, 3, side, side)
    model = model.to(dtype)
    return model, lambda: model.get_image_features(pixel_values=torch.zeros(shape, dtype=dtype))


class CosineScorer:
    """Embeddings and the formula of the score. ``encoder`` is a tower of this module or an ``OpenClip``."""

    def __init__(self, encoder: Any, scale: float, clamp_min: float | None) -> None:
        self.encoder, self.window = encoder, encoder.window
        self.pixels, self.count_tokens, self.to = encoder.pixels, encoder.count_tokens, encoder.to
        self._scale, self._clamp_min = scale, clamp_min

    def score(self, pixels: Tensor, texts: list[str]) -> Tensor:
        embeds = self.encoder.embed_images(pixels), self.encoder.embed_texts(texts)
        return clip_scores(*embeds, self._scale, self._clamp_min)


class Towers:
    """A model of transformers with its tokenizer and its way to prepare a picture."""

    def __init__(self, model: nn.Module, tokenizer: Any, prepare: Callable[[Image.Image], Tensor]) -> None:
        text = model.config.text_config
        if len(tokenizer) > text.vocab_size:
            raise ValueError(f"the tokenizer has {len(tokenizer)} tokens and the model {text.vocab_size}")
        self.window, self.pixels = text.max_position_embeddings, prepare
        self._model, self._tokenizer = model.eval().requires_grad_(False), tokenizer

    @property
    def logit_scale(self) -> float:
        """What the cosine is multiplied with in training."""
        return self._model.logit_scale.float().exp().item()

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [
            len(ids) for ids in self._tokenizer(texts, padding=False, truncation=False, verbose=False)["input_ids"]
        ]

    def embed_images(self, pixels: Tensor) -> Tensor:
        return self._model.get_image_features(pixel_values=pixels.to(self._model.dtype)).pooler_output

    def to(self, device: torch.device) -> None:
        self._model.to(device)


class TransformersClip(Towers):
    """``CLIPModel``, which reads a text at its end."""

    def __init__(self, model: CLIPModel, tokenizer: Any, prepare: Callable[[Image.Image], Tensor]) -> None:
        # 2 stands in the configurations of OpenAI's models, and transformers then takes the largest id.
        eos = model.config.text_config.eos_token_id
        if eos not in (2, tokenizer.eos_token_id):
            raise ValueError(
                f"the model reads a text at token {eos}, its eos_token_id, and the tokenizer ends it "
                f"with {tokenizer.eos_token_id}: give the tokenizer of this model as `processor`"
            )
        super().__init__(model, tokenizer, prepare)

    def embed_texts(self, texts: list[str]) -> Tensor:
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=self.window, return_tensors="pt")
        tokens = tokens.to(self._model.device)
        return self._model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output


class TransformersSiglip(Towers):
    """``SiglipModel``, which reads a text at its last position and was trained on padded ones, in small letters."""

    def __init__(self, model: SiglipModel, tokenizer: Any, prepare: Callable[[Image.Image], Tensor]) -> None:
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token, and SigLIP reads padded texts: give its own")
        super().__init__(model, tokenizer, prepare)

    @property
    def logit_bias(self) -> float:
        """What is added to the scaled cosine before the sigmoid."""
        return self._model.logit_bias.float().item()

    def count_tokens(self, texts: list[str]) -> list[int]:
        return super().count_tokens([text.lower() for text in texts])

    def embed_texts(self, texts: list[str]) -> Tensor:
        """``[N, dim]``, of small letters padded to the whole window, as SigLIP was trained."""
        tokens = self._tokenizer(
            [text.lower() for text in texts],
            padding="max_length",
            truncation=True,
            max_length=self.window,
            return_tensors="pt",
        )
        # No attention mask: the padding was attended to in training.
        return self._model.get_text_features(input_ids=tokens["input_ids"].to(self._model.device)).pooler_output

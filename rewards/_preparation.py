"""Pictures as the input of a model, the way each was trained to see them. PIL and torch, without torchvision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def middle(image: Image.Image, size: int) -> Tensor:
    """The middle of an image, ``[3, size, size]`` fp32: shorter side to ``size``, crop, RGB, CLIP's mean and std.

    Lengths and margins round as in torchvision, which ImageReward and the aesthetic predictor were trained with.
    transformers' processor rounds odd margins down instead and is then one pixel off.
    """
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if short != size:
        long = int(size * long / short)
        width, height = (size, long) if width <= height else (long, size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.crop((left, top, left + size, top + size)).convert("RGB")
    values = np.asarray(image, dtype=np.float32) / np.float32(255)
    values = (values - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()


def letterbox(image: Image.Image, size: int) -> Tensor:
    """All of an image, ``[3, size, size]`` fp32: longer side to ``size``, black bars, CLIP's mean and std.

    HPSv2's own way. Values are resized as fp32 in [0, 1] and not rounded to 8 bits, and may overshoot.
    """
    values = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
    height, width = values.shape[1:]
    scale = size / max(height, width)
    if scale != 1:
        height, width = (max(1, round(side * scale)) for side in (height, width))
        values = F.interpolate(values[None], (height, width), mode="bicubic", antialias=True)[0]
    left, top = (size - width) // 2, (size - height) // 2
    values = F.pad(values, (left, size - width - left, top, size - height - top))
    mean, std = (torch.tensor(own)[:, None, None] for own in (CLIP_MEAN, CLIP_STD))
    return (values - mean) / std


def prepared_by(processor: Any, side: int) -> Callable[[Image.Image], Tensor]:
    """An image processor of transformers as a function of one image.

    Raises:
        ValueError: it makes pictures of another size than ``side``, which the model reads.
    """
    crops = getattr(processor, "do_center_crop", None)
    made = processor.crop_size if crops else processor.size
    height, width = made.get("height"), made.get("width")
    if (height, width) != (side, side):
        verb = "crops to" if crops else "resizes to"
        raise ValueError(f"the image processor {verb} {(height, width)} and the model reads {(side, side)} pixels")

    def prepare(image: Image.Image) -> Tensor:
        return processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0].float()

    return prepare

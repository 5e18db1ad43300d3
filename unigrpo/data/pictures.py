"""Pictures in and out: any stored form to an RGB image, to a model's size, to pixel tensors and back."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..models.checkpoint_files import first_line


MIN_SIDE = 8
"""Shorter pictures are refused: they are placeholders, not content."""

MAX_PIXELS = 80_000_000
"""Larger pictures are refused by their header, before a pixel is decoded. Pillow's own warning starts above this."""

TRANSFORMS = ("squash", "crop", "pad")

WHITE = (255, 255, 255)

STRIP = 64
"""Rows that are converted at once."""

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM", "AVIF", "JPEG2000")
"""Kinds of files that are opened. Pillow knows more, among them PostScript, which it hands to another program to run."""


def load_image(value: Any, where: str) -> Image.Image:
    """The picture in ``value`` as a new, upright 8-bit RGB image.

    Args:
        value: a PIL image, a path (str or Path), an encoded file's bytes, a dictionary with ``bytes`` or ``path`` as
            ``datasets`` leaves undecoded images, or a uint8 array ``[H, W, 3]`` of RGB.
        where: names the value in errors, such as ``"train_dataset[3]['image']"``.

    Transparency is laid over white, 16-bit grey is scaled to 8 bits (65535 becomes 255), palettes, grey and CMYK are
    converted, the EXIF orientation is applied, and of an animation the first frame is taken.

    Raises:
        ValueError: no picture can be had from ``value``: missing, damaged, of an unknown kind or pixel format, with a
            side below ``MIN_SIDE``, or with more than ``MAX_PIXELS`` pixels. The message starts with ``where``.
    """
    if isinstance(value, dict):
        value = _from_dictionary(value, where)
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
            raise ValueError(
                f"{where}: an array of dtype {value.dtype} and shape {list(value.shape)} is no picture; "
                f"give uint8 values 0-255 of shape [height, width, 3]"
            )
        _check_size(value.shape[1], value.shape[0], where)
        return Image.fromarray(value)
    if isinstance(value, Image.Image):
        return _decode(value, where)
    if isinstance(value, str | Path):
        if not _is_file(value):
            # Also a folder, a pipe, a device and an address: nothing that could block or fetch is opened.
            raise ValueError(f"{where}: no file {str(value)[:300]!r}; give an existing file or the image itself")
        with _open(value, where) as image:
            return _decode(image, where)
    if isinstance(value, bytes | bytearray):
        with _open(io.BytesIO(value), where) as image:
            return _decode(image, where)
    raise ValueError(
        f"{where}: {type(value).__name__} is no picture; give a PIL image, a path, bytes, "
        f"a dictionary with 'bytes' or 'path', or a uint8 array [height, width, 3]"
    )


def _is_file(path: str | Path) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name that is too long, or no name
        return False


def _from_dictionary(value: dict[str, Any], where: str) -> Any:
    for key in ("bytes", "path"):
        if value.get(key) is not None:
            return value[key]
    raise ValueError(f"{where}: a dictionary with keys {sorted(map(str, value))} holds neither 'bytes' nor 'path'")


@cache
def _readable() -> list[str]:
    """Those of ``FORMATS`` that this Pillow opens; MPO comes in as JPEG."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _open(source: Any, where: str) -> Image.Image:
    try:
        return Image.open(source, formats=_readable())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(_too_large(where, str(error))) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{where}: not an image file, or a damaged one; replace it or drop the row") from error
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{where}: cannot be read ({_short(error)}); replace the image or drop the row") from error


def _decode(image: Image.Image, where: str) -> Image.Image:
    if image.format not in (None, *FORMATS):
        raise ValueError(f"{where}: {image.format} files are not read; save the image as PNG")
    _check_size(*image.size, where)
    try:
        image.load()
        _check_size(*image.size, where)  # some kinds learn their true size while they are decoded
        return _to_rgb(ImageOps.exif_transpose(image), where)
    except MemoryError:
        raise
    except Exception as error:
        # Whatever a damaged file makes Pillow raise: TypeError, KeyError, struct.error, ZeroDivisionError and more.
        if str(error).startswith(where):
            raise
        raise ValueError(
            f"{where}: damaged image data ({_short(error)}); replace the image or drop the row"
        ) from error


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_sixteen_bits(image, where)
    if image.mode == "F":
        raise ValueError(f"{where}: floating-point pixels (mode 'F') have no known range; save the image with 8 bits")
    if image.has_transparency_data:
        return _over_white(image)
    return image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    flat = Image.new("RGB", image.size)
    for top in range(0, image.height, STRIP):
        part = image.crop((0, top, image.width, min(top + STRIP, image.height))).convert("RGBA")
        ground = Image.new("RGBA", part.size, (*WHITE, 255))
        flat.paste(Image.alpha_composite(ground, part).convert("RGB"), (0, top))
    return flat


def _from_sixteen_bits(image: Image.Image, where: str) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"{where}: grey values {values.min()}..{values.max()} are outside 16 bits; save the image with 8 or 16 bits"
        )
    scaled = np.empty(values.shape, dtype=np.uint8)
    for start in range(0, len(values), STRIP):
        # In strips: the wide numbers of a whole giant would take gigabytes.
        strip = values[start : start + STRIP].astype(np.int64)
        scaled[start : start + STRIP] = (strip * 255 + 32767) // 65535
    return Image.fromarray(scaled).convert("RGB")


def _check_size(width: int, height: int, where: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise ValueError(
            f"{where}: {width} x {height} pixels, but each side needs at least {MIN_SIDE}; "
            f"replace the placeholder or drop the row"
        )
    if width * height > MAX_PIXELS:
        raise ValueError(_too_large(where, f"{width} x {height} pixels"))


def _too_large(where: str, found: str) -> str:
    return f"{where}: {found}, but at most {MAX_PIXELS:,} pixels are decoded; shrink the image before training"


def fit_image(image: Image.Image, height: int, width: int, transform: str) -> Image.Image:
    """``image`` at exactly ``width`` x ``height`` pixels, resized bicubically.

    Args:
        transform: ``"squash"`` changes the aspect; ``"crop"`` scales until the target is covered and keeps the centre,
            as torchvision's ``Resize`` and ``CenterCrop`` do; ``"pad"`` adds white around the centre up to the target's
            aspect, then scales.

    Raises:
        ValueError: another ``transform``.
    """
    match transform:
        case "squash":
            return image.resize((width, height), Image.BICUBIC)
        case "crop":
            covering = image.resize(_covering(image.size, (width, height)), Image.BICUBIC)
            left, top = round((covering.width - width) / 2), round((covering.height - height) / 2)
            return covering.crop((left, top, left + width, top + height))
        case "pad":
            return _padded(image, width / height).resize((width, height), Image.BICUBIC)
    raise ValueError(f"transform={transform!r}: choose one of {TRANSFORMS}")


def _covering(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    if width * target[1] <= height * target[0]:
        return target[0], max(target[1], int(target[0] * height / width))
    return max(target[0], int(target[1] * width / height)), target[1]


def _padded(image: Image.Image, aspect: float) -> Image.Image:
    width = max(image.width, round(image.height * aspect))
    height = max(image.height, round(image.width / aspect))
    if (width, height) == image.size:
        return image
    canvas = Image.new("RGB", (width, height), WHITE)
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def to_pixels(images: Sequence[Image.Image]) -> Float[Tensor, "B 3 H W"]:
    """RGB images of one size as float32 in [-1, 1]: byte v becomes v / 127.5 - 1.

    Raises:
        ValueError: no images, another mode, or several sizes.
    """
    kinds = {(image.mode, image.size) for image in images}
    if len(kinds) != 1 or next(iter(kinds))[0] != "RGB":
        raise ValueError(
            f"images of mode and size {sorted(kinds)}: give RGB images of one size (load_image, fit_image)"
        )
    stacked = np.stack([np.asarray(image) for image in images])
    return (torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def to_images(pixels: Float[Tensor, "B 3 H W"]) -> list[Image.Image]:
    """The inverse of ``to_pixels``; values beyond [-1, 1] are clamped and the rest rounded to the nearest byte.

    Raises:
        ValueError: a value is not finite.
    """
    if not pixels.isfinite().all():
        raise ValueError("pixels: not all values are finite; check the weights and the dtype of the decoder")
    unit = ((pixels.detach().float() + 1) / 2).clamp(0, 1)
    values = (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(one)) for one in values]

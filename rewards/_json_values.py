"""Values of a dataset as JSON values, images included."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image


class Encoder:
    """Columns of a batch as JSON values.

    Args:
        name: of the reward, for errors.
        of_png: JSON value of an image, given its PNG file in base64.

    Attributes:
        broken: rows with an image that cannot be encoded; their values are None.
    """

    def __init__(self, name: str, of_png: Callable[[str], Any]) -> None:
        self.name, self.of_png, self.broken = name, of_png, set()
        # The answers to one prompt share its images.
        self._files: dict[int, str] = {}

    def column(self, column: str, values: list) -> list[Any]:
        """One JSON value a row.

        Raises:
            ValueError: JSON cannot say one.
        """
        return [self.value(column, index, value) for index, value in enumerate(values)]

    def value(self, column: str, index: int, value: Any) -> Any:
        """The JSON value of row ``index``."""
        try:
            return self._encoded(value)
        except _NoPicture as error:
            self.broken.add(index)
            warnings.warn(f"{self.name}: an image in {column!r} cannot be encoded ({error}); such rows get None")
            return None
        except ValueError as error:
            raise ValueError(f"{self.name}: column {column!r}, row {index}: JSON cannot say {error}") from None

    def _encoded(self, value: Any) -> Any:
        if value is None or isinstance(value, str | bool | int):
            return value
        if isinstance(value, float):
            if not math.isfinite(value):
                raise ValueError(value)
            return value
        if isinstance(value, Image.Image):
            if id(value) not in self._files:
                self._files[id(value)] = _png(value)
            return self.of_png(self._files[id(value)])
        if isinstance(value, Mapping):
            return {str(key): self._encoded(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._encoded(item) for item in value]
        if callable(getattr(value, "tolist", None)):  # Arrays, tensors and their scalars.
            return self._encoded(value.tolist())
        raise ValueError(f"a {type(value).__name__}")


class _NoPicture(Exception):
    """An image cannot be encoded."""


def _png(image: Image.Image) -> str:
    try:
        if image.mode not in ("L", "RGB", "RGBA"):
            image = image.convert("RGB")
        file = io.BytesIO()
        # The receiver is mostly near: time counts more than size.
        image.save(file, format="PNG", compress_level=1)
    except Exception as error:  # Pillow raises whatever it meets in a broken file.
        raise _NoPicture(f"{type(error).__name__}: {error}") from error
    return base64.b64encode(file.getvalue()).decode()

"""What fields of ``UniGRPOConfig`` take beyond what a recipe or a command line can write.

To a type checker they are what a script may give. At run time they are what is left once the config has been made, which is also
all that parsers of a command line understand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    Part = dict[str, Any] | str | Callable[..., Any] | None
    ImageTokenizer = str | nn.Module | None
    ImageSize = int | list[int] | None
    RewardScale = str | bool | None
else:
    Part = dict[str, Any] | str | None
    ImageTokenizer = str | None
    ImageSize = int | None
    RewardScale = str | None

"""Configuration of MMaDA-Parallel-M checkpoints (tyfeld/MMaDA-Parallel-M)."""

from __future__ import annotations

from typing import Any, ClassVar

from ..mmada.configuration import SPECIAL_TOKEN_IDS as OF_MMADA
from ..mmada.configuration import MMaDAConfig


SPECIAL_TOKEN_IDS = {**OF_MMADA, "interleave": 126095}
"""MMaDA's, and the token that opens a row of two pictures and two texts."""


class MMaDAParallelConfig(MMaDAConfig):
    """MMaDA's fields, and one more layout token.

    Published files say ``model_type`` "mmada" and MMaDA's architecture. Nothing in them tells the two apart, so that whoever opens one
    names this family; what is saved says it.

    Args:
        special_token_ids: ids of ``SPECIAL_TOKEN_IDS``' names.
    """

    model_type = "mmada_parallel_m"
    published_types: ClassVar[tuple[str, ...]] = ("mmada",)

    def __init__(self, special_token_ids: dict[str, int] | None = None, **kwargs: Any) -> None:
        found = dict(SPECIAL_TOKEN_IDS if special_token_ids is None else special_token_ids)
        if "interleave" not in found:
            raise ValueError(
                f"special_token_ids lacks 'interleave', which opens a row of {self.model_type}: in the published vocabulary it is 126095"
            )
        super().__init__(special_token_ids=found, **kwargs)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers; a published file counts as one of this type."""
        found, left = super().get_config_dict(*args, **kwargs)
        if found.get("model_type") in cls.published_types:
            found["model_type"] = cls.model_type
        return found, left

"""Configuration of Lumina-DiMOO checkpoints (Alpha-VLLM/Lumina-DiMOO)."""

from __future__ import annotations

from typing import Any, ClassVar

from ..amused import AmusedVQConfig
from ..llada.configuration import LLaDAConfig


SPECIAL_TOKEN_IDS = {
    "newline": 126084,
    "boi": 126349,
    "eoi": 126350,
    "uncondition": 126351,
    "answer_start": 126354,
    "answer_end": 126355,
}
"""Layout tokens of the released checkpoint. ``newline`` ends every row of a picture's codes."""

END_OF_TEXT = 126081
"""LLaDA's, at which the public sampler stops too."""


class LuminaConfig(LLaDAConfig):
    """LLaDA's fields, plus the codes of pictures and the layout tokens as explicit ids.

    Image code c is vocabulary id ``image_token_offset + c``. Published files say ``model_type`` "llada" and name their
    architecture; they are opened as this type.

    ``attn_mask_mode="bool"``, the default, reads every row as the public sampler does, which writes one at a time. ``"none"`` is
    the public training code, which drops its mask: shorter rows are padded on the right with ``right_pad_token_id``, and
    that is attended.

    Args:
        codebook_size: number of image codes.
        image_token_offset: vocabulary id of image code 0.
        special_token_ids: ids of ``SPECIAL_TOKEN_IDS``' names.
        stop_token_ids: ids that end a text answer; the last one is what an answer is taught to end with.
        right_pad_token_id: of padding that is attended.
        image_tokenizer: the ``AmusedVQ`` whose codes the model was trained on: id, path, or None.
        sampling_defaults: as in ``MMaDAConfig``; the released checkpoint draws 1024 pixels a side.
    """

    model_type = "lumina_dimoo"
    published_architectures: ClassVar[tuple[str, ...]] = ("LLaDAForMultiModalGeneration",)
    image_tokenizer_config: ClassVar[type[AmusedVQConfig]] = AmusedVQConfig
    newlines_in_pictures: ClassVar[bool] = True

    def __init__(
        self,
        vocab_size: int = 134548,
        max_sequence_length: int = 8192,
        pad_token_id: int = 126339,
        eos_token_id: int = 126339,
        codebook_size: int = 8192,
        image_token_offset: int = 126356,
        special_token_ids: dict[str, int] | None = None,
        stop_token_ids: tuple[int, ...] | list[int] | None = None,
        right_pad_token_id: int = 0,
        image_tokenizer: str | None = "Alpha-VLLM/Lumina-DiMOO",
        sampling_defaults: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.codebook_size = codebook_size
        self.image_token_offset = image_token_offset
        self.right_pad_token_id = right_pad_token_id
        self.image_tokenizer = image_tokenizer
        self.sampling_defaults = {"image_size": 1024} if sampling_defaults is None else sampling_defaults
        self.special_token_ids = dict(SPECIAL_TOKEN_IDS if special_token_ids is None else special_token_ids)
        missing = sorted(SPECIAL_TOKEN_IDS.keys() - self.special_token_ids.keys())
        if missing:
            raise ValueError(f"special_token_ids lacks {missing}; it needs {sorted(SPECIAL_TOKEN_IDS)}")
        ids = {"pad_token_id": pad_token_id, "eos_token_id": eos_token_id}
        super().__init__(vocab_size=vocab_size, max_sequence_length=max_sequence_length, **ids, **kwargs)
        ends = (END_OF_TEXT, self.eos_token_id, self.special_token_ids["answer_end"])
        self.stop_token_ids = list(dict.fromkeys(ends if stop_token_ids is None else stop_token_ids))

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers; a published file counts as one of this type."""
        found, left = super().get_config_dict(*args, **kwargs)
        if set(found.get("architectures") or ()) & set(cls.published_architectures):
            found["model_type"] = cls.model_type
        return found, left

"""Configuration of MMaDA checkpoints (Gen-Verse/MMaDA-8B-*)."""

from __future__ import annotations

from typing import Any

from ..llada.configuration import LLaDAConfig


SPECIAL_TOKEN_IDS = {
    "soi": 126084,
    "eoi": 126085,
    "sov": 126086,
    "eov": 126087,
    "t2i": 126088,
    "mmu": 126089,
    "t2v": 126090,
    "v2v": 126091,
    "lvg": 126092,
    "ipad": 126093,
    "r2i": 126094,
    "start_header": 126346,
    "end_header": 126347,
    "eot": 126348,
}
"""Task and layout tokens of the released checkpoints. Their names are not in the tokenizer, only their ids count."""


class MMaDAConfig(LLaDAConfig):
    """LLaDA's fields, plus the image vocabulary and the special tokens as explicit ids.

    Image code c is vocabulary id ``image_token_offset + c``. The offset is ``len(tokenizer)``, 126349 for the released
    checkpoints, and not ``llm_vocab_size``: one token more in the tokenizer would shift every image code.

    Args:
        codebook_size: number of image codes.
        image_token_offset: vocabulary id of image code 0.
        special_token_ids: ids of ``SPECIAL_TOKEN_IDS``' names.
        stop_token_ids: ids that end a text answer.
        image_tokenizer: the ``MagvitV2`` whose codes the model was trained on: id, path, ``builtin:NAME``,
            or None for a model that never saw pictures.
        sampling_defaults: ``max_completion_length``, ``steps``, ``block_length`` and ``image_size`` that suit the
            checkpoint.
    """

    model_type = "mmada"

    def __init__(
        self,
        vocab_size: int = 134656,
        llm_vocab_size: int = 126464,
        codebook_size: int = 8192,
        num_vq_tokens: int = 1024,
        new_vocab_size: int | None = None,
        num_new_special_tokens: int = 0,
        w_clip_vit: bool = False,
        image_token_offset: int = 126349,
        special_token_ids: dict[str, int] | None = None,
        stop_token_ids: tuple[int, ...] | list[int] | None = None,
        image_tokenizer: str | None = "showlab/magvitv2",
        sampling_defaults: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.llm_vocab_size = llm_vocab_size
        self.codebook_size = codebook_size
        self.num_vq_tokens = num_vq_tokens
        self.new_vocab_size = new_vocab_size or vocab_size
        self.num_new_special_tokens = num_new_special_tokens
        self.w_clip_vit = w_clip_vit
        self.image_tokenizer = image_tokenizer
        self.sampling_defaults = sampling_defaults
        self.image_token_offset = image_token_offset
        self.special_token_ids = dict(SPECIAL_TOKEN_IDS if special_token_ids is None else special_token_ids)
        missing = sorted(SPECIAL_TOKEN_IDS.keys() - self.special_token_ids.keys())
        if missing:
            raise ValueError(f"special_token_ids lacks {missing}; it needs {sorted(SPECIAL_TOKEN_IDS)}")
        super().__init__(vocab_size=vocab_size, **kwargs)
        stops = (self.eos_token_id, self.special_token_ids["eot"]) if stop_token_ids is None else stop_token_ids
        self.stop_token_ids = list(dict.fromkeys(stops))

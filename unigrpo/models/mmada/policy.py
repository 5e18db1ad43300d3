"""What MMaDA says about itself: token spaces, canvases, decoding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...types import Canvas, TokenSpace
from ..base import DiffusionPolicy, fit_prompt, left_pad
from .configuration import MMaDAConfig
from .modeling import MMaDAForMaskedDiffusion
from .processing import MMaDAProcessor


class MMaDAPolicy(DiffusionPolicy):
    """MMaDA's layouts. Text answers are written with ids below the image offset, the mask id excepted."""

    model_class = MMaDAForMaskedDiffusion
    processor_class = MMaDAProcessor
    linear_head = True

    def __init__(self, config: MMaDAConfig, processor: MMaDAProcessor) -> None:
        self.config, self.processor = config, processor
        self.mask_token_id = config.mask_token_id
        self.pad_token_id = config.pad_token_id
        self.stop_token_ids = tuple(config.stop_token_ids)
        self.max_length = config.max_sequence_length
        self.attends_padding = config.attn_mask_mode == "none"
        self._check()

    def _check(self) -> None:
        config = self.config
        if config.image_token_offset + config.codebook_size > config.vocab_size:
            raise ValueError(
                f"image_token_offset={config.image_token_offset} + codebook_size={config.codebook_size} exceeds "
                f"vocab_size={config.vocab_size}; set image_token_offset to the length of the checkpoint's tokenizer"
            )
        length = len(self.processor.tokenizer)
        if length != config.image_token_offset:
            raise ValueError(
                f"the tokenizer has {length} tokens, config.image_token_offset is {config.image_token_offset}: every "
                "image code would be shifted. Use the checkpoint's own tokenizer, without added or removed tokens"
            )

    def token_space(self, task: str) -> TokenSpace:
        """Ids below the image offset minus the mask id."""
        return TokenSpace(start=0, stop=self.config.image_token_offset, exclude=(self.mask_token_id,))

    def encode(
        self,
        rows: list[dict[str, Any]],
        task: str = "text",
        *,
        max_completion_length: int,
        max_prompt_length: int | None = None,
        prompt_truncation: str = "error",
    ) -> Canvas:
        """``[pad]* chat-prompt MASK*max_completion_length``, left-padded to the longest prompt of ``rows``."""
        if task != "text":
            raise ValueError(f"task={task!r} is not supported; MMaDA takes task='text' here")
        limit = self.max_length - max_completion_length
        if limit <= 0:
            raise ValueError(
                f"max_completion_length={max_completion_length} leaves no room for a prompt in {self.max_length} "
                "positions (max_sequence_length of the model)"
            )
        limit = min(limit, max_prompt_length or limit)
        prompts = [
            fit_prompt(self.processor.encode_prompt(row["prompt"]), limit, prompt_truncation, row["prompt"])
            for row in rows
        ]
        prompt_ids, prompt_mask = left_pad(prompts, self.pad_token_id)
        answer = torch.full((len(rows), max_completion_length), self.mask_token_id, dtype=torch.int64)
        written = torch.ones_like(answer, dtype=torch.bool)
        return Canvas(
            ids=torch.cat([prompt_ids, answer], dim=1),
            fill_mask=torch.cat([torch.zeros_like(prompt_mask), written], dim=1),
            attention_mask=torch.cat([prompt_mask, written], dim=1),
            task=task,
            token_space=self.token_space(task),
        )

    def decode(self, canvas: Canvas, completion_mask: Tensor) -> list[str]:
        """Text of the completion, stop token and other special tokens left out."""
        rows = [ids[mask].tolist() for ids, mask in zip(canvas.ids, completion_mask, strict=True)]
        return self.processor.tokenizer.batch_decode(rows, skip_special_tokens=True)

"""What MMaDA says about itself: token spaces, canvases, decoding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...types import SPANS, Canvas, TokenSpace, is_picture
from ..base import fit_prompt, left_pad
from ..processing import prompt_text
from ..text_canvas import TextCanvasPolicy
from ..thoughts import padded_thought
from . import layouts
from .configuration import MMaDAConfig
from .modeling import MMaDAForMaskedDiffusion


TEXT_SLOTS = 512
"""Longest t2i text, ``<|t2i|> bos`` included and eos not, that the released checkpoints were trained with."""


CAPTION_CURE = "Raise max_prompt_length (text slots), shorten it, or set prompt_truncation to 'left' or 'right'"


NO_EDITS = (
    "MMaDA was published without a layout for edits: rows of tasks 'i2i' and 'r2i' cannot show it a picture; drop the column image, "
    "or take a family that edits"
)


class MMaDAPolicy(TextCanvasPolicy):
    """MMaDA's layouts. Text answers are written with ids below the image offset, the mask id excepted; images with the
    codebook's ids alone.
    """

    model_class = MMaDAForMaskedDiffusion

    def __init__(self, config: MMaDAConfig, processor: Any) -> None:
        super().__init__(config, processor)
        self.stop_token_ids = tuple(config.stop_token_ids)
        self.image_tokenizer = config.image_tokenizer
        self.image_size = (config.sampling_defaults or {}).get("image_size", 512)
        self.codebook_size = config.codebook_size
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
        """Of pictures the codebook's ids. Else the ids below the image offset minus the mask id."""
        offset = self.config.image_token_offset
        if is_picture(task):
            return TokenSpace(start=offset, stop=offset + self.config.codebook_size)
        return TokenSpace(start=0, stop=offset, exclude=(self.mask_token_id,))

    def encode(
        self,
        rows: list[dict[str, Any]],
        task: str = "text",
        *,
        max_completion_length: int | None = None,
        max_prompt_length: int | None = None,
        prompt_truncation: str = "error",
        image_tokens: int | None = None,
        trim_padding: bool = True,
    ) -> Canvas:
        """The canvas of rows of one task.

        * ``text``: ``[pad]* chat-prompt MASK*max_completion_length``, padded to the longest prompt of ``rows``.
        * ``mmu``: the same with ``<|mmu|> <|soi|> image <|eoi|>`` before the chat prompt; ``row["image_codes"]`` holds
          the image's codes ``[N]``.
        * ``t2i``: ``[iPAD]* <|t2i|> bos caption eos <|soi|> MASK*image_tokens <|eoi|>``, padded to the longest caption,
          or to all text slots where ``trim_padding`` is False or padding is attended.
        * ``thought``: ``[pad]* <|r2i|> chat-prompt MASK*max_completion_length <|soi|> MASK*image_tokens <|eoi|>``, of which the
          thought is written, and ``picture``: the same with ``row["thought_ids"]``, of which the codes are.

        Args:
            max_completion_length: answer positions of text and mmu, and of a thought.
            max_prompt_length: longest prompt in tokens, the image included; for t2i the text slots, default 512.
            prompt_truncation: ``"error"``, ``"left"`` or, for captions, ``"right"``.
            image_tokens: codes of an image to make.

        Raises:
            ValueError: a prompt that does not fit, or a length that leaves no room for one.
        """
        if task == "i2i":
            raise ValueError(NO_EDITS)
        if task in SPANS["r2i"]:
            return self._encode_spans(
                rows, task, max_completion_length, image_tokens, max_prompt_length, prompt_truncation
            )
        if task == "t2i":
            return self._encode_images_to_make(rows, image_tokens, max_prompt_length, prompt_truncation, trim_padding)
        return self.encode_text(
            rows,
            task,
            max_completion_length=max_completion_length,
            max_prompt_length=max_prompt_length,
            prompt_truncation=prompt_truncation,
        )

    def _prompt(self, row: dict[str, Any], task: str, limit: int, truncation: str) -> list[int]:
        """Ids of a chat prompt, behind its image in ``mmu``; truncation never cuts the image."""
        image = []
        if task == "mmu":
            special = self.config.special_token_ids
            codes = (row["image_codes"] + self.config.image_token_offset).tolist()
            image = [special["mmu"], special["soi"], *codes, special["eoi"]]
            if len(image) >= limit:
                raise ValueError(
                    f"an image of {len(codes)} tokens leaves no room for the question in a prompt of {limit} tokens; "
                    "lower image_size, or raise max_prompt_length"
                )
        return image + super()._prompt(row, task, limit - len(image), truncation)

    def _encode_images_to_make(
        self,
        rows: list[dict[str, Any]],
        image_tokens: int,
        max_prompt_length: int | None,
        truncation: str,
        trim_padding: bool,
    ) -> Canvas:
        special, config = self.config.special_token_ids, self.config
        # Beside the caption: <|t2i|>, bos, eos, <|soi|> and <|eoi|>. The first two count as text slots.
        slots = min(
            self._room("image_size makes image_tokens", image_tokens, None, around=5) + 2,
            max_prompt_length or TEXT_SLOTS,
        )
        captions = []
        for row in rows:
            words = prompt_text(row["prompt"]).removeprefix(self.processor.tokenizer.bos_token or "")
            tokens = self.processor.words_ids(words)
            captions.append(fit_prompt(tokens, slots - 2, truncation, row["prompt"], CAPTION_CURE))
        trimmed = trim_padding and not self.attends_padding
        ids, mask = layouts.t2i(
            captions,
            torch.full((len(rows), image_tokens), self.mask_token_id),
            **{name: special[name] for name in ("t2i", "soi", "eoi", "ipad")},
            bos=config.bos_token_id,
            eos=config.eos_token_id,
            text_slots=None if trimmed else slots,
        )
        place = torch.arange(ids.shape[1])
        fill = (place >= ids.shape[1] - image_tokens - 1) & (place < ids.shape[1] - 1)
        return Canvas(
            ids=ids,
            fill_mask=fill.expand_as(ids).clone(),
            attention_mask=mask,
            task="t2i",
            token_space=self.token_space("t2i"),
        )

    def _encode_spans(
        self,
        rows: list[dict[str, Any]],
        task: str,
        length: int,
        image_tokens: int,
        max_prompt_length: int | None,
        truncation: str,
    ) -> Canvas:
        """The two canvases of ``r2i``, whose layout is one."""
        if any("image_codes" in row for row in rows):
            raise ValueError(NO_EDITS)
        if truncation == "right":
            raise ValueError(
                f"prompt_truncation='right' would cut the end of a chat prompt of task {task!r}, which opens the thought; use 'left'"
            )
        special = self.config.special_token_ids
        # Beside the prompt: <|r2i|>, which is never cut, <|soi|> and <|eoi|>.
        limit = self._room("max_completion_length + image_tokens", length + image_tokens, max_prompt_length, around=3)
        prompts = [
            fit_prompt(self.processor.encode_prompt(row["prompt"], "r2i"), limit, truncation, row["prompt"])
            for row in rows
        ]
        prompt_ids, prompt_mask = left_pad([[special["r2i"], *own] for own in prompts], self.pad_token_id)
        empty = torch.full((length,), self.mask_token_id)
        thoughts = torch.stack([row["thought_ids"] if task == "picture" else empty for row in rows])
        codes = torch.full((len(rows), image_tokens), self.mask_token_id)
        ids = torch.cat([prompt_ids, thoughts, layouts.around(codes, [special["soi"]], [special["eoi"]])], dim=1)
        place, start = torch.arange(ids.shape[1]), prompt_ids.shape[1]
        thought = (place >= start) & (place < start + length)
        picture = (place > start + length) & (place < ids.shape[1] - 1)
        real = torch.ones(len(rows), ids.shape[1] - start, dtype=torch.bool)
        return Canvas(
            ids=ids,
            fill_mask=(picture if task == "picture" else thought).expand_as(ids).clone(),
            attention_mask=torch.cat([prompt_mask, real], dim=1),
            task=task,
            token_space=self.token_space(task),
        )

    def encode_thought(self, row: dict[str, Any], thought: list[int], max_length: int) -> Canvas:
        """``<|r2i|> chat-prompt thought eos* <|soi|> codes <|eoi|>`` with everything in place: a row to train on.

        Args:
            row: with its ``prompt`` and the ``image_codes [N]`` of its picture.
            thought: its ids.
            max_length: positions of prompt, thought and padding.

        Returns:
            a canvas of one row, whose ``fill_mask`` has the thought, its padding and the codes.

        Raises:
            ValueError: prompt and thought do not fit.
        """
        if "edited_codes" in row:
            raise ValueError(NO_EDITS)
        written, codes = padded_thought(self, row, thought, max_length), row["image_codes"]
        lengths = {"max_completion_length": len(written), "image_tokens": len(codes)}
        canvas = self.encode([{"prompt": row["prompt"], "thought_ids": written}], "picture", **lengths)
        place = torch.arange(canvas.ids.shape[1])
        return replace(
            canvas,
            ids=canvas.ids.masked_scatter(canvas.fill_mask, codes + self.config.image_token_offset),
            fill_mask=canvas.fill_mask | (place > max_length - len(written)) & (place <= max_length),
            task="r2i",
            token_space=self.token_space("text"),
        )

    def guidance_canvas(self, canvas: Canvas) -> Canvas:
        """``t2i``: the same canvas with an empty caption, ``[iPAD]* <|t2i|> bos eos <|soi|>``. Else every prompt token
        hidden, the image included; of a ``picture`` its thought too, and of both spans of ``r2i`` not the marks of the layout.
        """
        if canvas.task in SPANS["r2i"]:
            marks = torch.tensor([self.config.special_token_ids[name] for name in ("r2i", "soi", "eoi")])
            kept = torch.isin(canvas.ids, marks.to(canvas.ids.device)) | canvas.fill_mask | ~canvas.attention_mask
            return replace(canvas, ids=torch.where(kept, canvas.ids, self.mask_token_id))
        if canvas.task != "t2i":
            return super().guidance_canvas(canvas)
        special, config = self.config.special_token_ids, self.config
        place = torch.arange(canvas.ids.shape[1], device=canvas.ids.device).expand_as(canvas.ids)
        start = place.masked_fill(canvas.ids != special["soi"], -1).amax(dim=1, keepdim=True)
        ids = canvas.ids.masked_fill(place < start, special["ipad"])
        for back, token in ((3, special["t2i"]), (2, config.bos_token_id), (1, config.eos_token_id)):
            ids = ids.masked_fill(place == start - back, token)
        return replace(canvas, ids=ids, attention_mask=canvas.attention_mask & (place >= start - 3))

    def decode(self, canvas: Canvas, completion_mask: Tensor) -> list[str] | list[Tensor]:
        """Of pictures the codes ``[N]`` int64 of each, for the image tokenizer. Else the text of each completion, stop token and
        other special tokens left out.
        """
        if not is_picture(canvas.task):
            return super().decode(canvas, completion_mask)
        rows = [ids[mask] for ids, mask in zip(canvas.ids, completion_mask, strict=True)]
        return [row - self.config.image_token_offset for row in rows]

"""What Lumina-DiMOO says about itself: pictures of any aspect with a token at the end of each row, edits of pictures, and
questions about them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...types import SPANS, Canvas, TokenSpace, is_picture
from ..base import fit_prompt, left_pad
from ..mmada.policy import CAPTION_CURE
from ..processing import prompt_text
from ..text_canvas import TextCanvasPolicy
from . import layouts
from .configuration import LuminaConfig
from .modeling import LuminaForMaskedDiffusion
from .processing import LuminaProcessor


class LuminaPolicy(TextCanvasPolicy):
    """Lumina-DiMOO's layouts. Answers in text are written with ids below the image offset, the mask id excepted; pictures
    with the codebook's ids alone. Text without a picture has no published layout and is refused.

    Raises:
        ValueError: image ids beyond the vocabulary, or a tokenizer of another checkpoint.
    """

    model_class = LuminaForMaskedDiffusion
    processor_class = LuminaProcessor
    asked_by_caption: ClassVar[tuple[str, ...]] = ("t2i", "i2i")
    """Canvases whose row without the instruction has ``<uncondition>`` in its place."""
    edits: ClassVar[tuple[str, ...]] = ("i2i",)
    """Those of them whose prompt shows the picture to edit."""

    def __init__(self, config: LuminaConfig, processor: Any) -> None:
        super().__init__(config, processor)
        self.stop_token_ids = tuple(config.stop_token_ids)
        self.image_tokenizer = config.image_tokenizer
        self.image_size = config.sampling_defaults.get("image_size", 1024)
        self.codebook_size = config.codebook_size
        # What is kept of keys is found by columns, and answers of rows that are padded on the right begin in different ones.
        self.supports_cache = not self.attends_padding
        self._check()
        words = self.processor.tokenizer.get_vocab()
        self._user, self._special = words["<user>"], config.special_token_ids
        self._marks = {name: self._special[name] for name in ("boi", "eoi", "newline")}

    def _check(self) -> None:
        offset, size, tokenizer = self.config.image_token_offset, self.config.codebook_size, self.processor.tokenizer
        if offset + size > self.config.vocab_size:
            raise ValueError(
                f"image_token_offset={offset} + codebook_size={size} exceeds vocab_size={self.config.vocab_size}; set "
                "image_token_offset to vocab_size - codebook_size"
            )
        if len(tokenizer) not in (offset, offset + size):
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens, and image codes are the ids from {offset} on: use the checkpoint's own "
                "tokenizer, without added or removed tokens"
            )

    def token_space(self, task: str) -> TokenSpace:
        """Of pictures the codebook's ids. Else the ids below the image offset minus the mask id."""
        offset = self.config.image_token_offset
        if is_picture(task):
            return TokenSpace(start=offset, stop=offset + self.config.codebook_size)
        return TokenSpace(start=0, stop=offset, exclude=(self.mask_token_id,))

    def image_lengths(self, rows: int, columns: int) -> dict[str, Any]:
        """The ``image_grid`` of ``encode``."""
        return {"image_grid": (rows, columns)}

    def encode(
        self,
        rows: list[dict[str, Any]],
        task: str = "mmu",
        *,
        max_completion_length: int | None = None,
        max_prompt_length: int | None = None,
        prompt_truncation: str = "error",
        image_grid: tuple[int, int] | None = None,
        trim_padding: bool = True,
    ) -> Canvas:
        """The canvas of rows of one task, ``PICTURE`` standing for ``boi [row of codes, newline]* eoi``.

        * ``mmu``: ``<system>..</system><user> question PICTURE </user> answer_start MASK*max_completion_length``;
          ``row["image_codes"]`` holds the codes ``[N]``, row-major, and ``row["image_grid"]`` their rows and columns.
        * ``t2i``: ``<system>..</system><user> caption </user> answer_start PICTURE answer_end``, its codes masked. An empty
          caption is ``<uncondition>``.
        * ``i2i``: the same with the picture to edit before ``</user>``, coded as that of ``mmu``.

        Rows are padded on the left to the longest. Where padding is attended they are padded on the right, as the public
        training code does.

        Args:
            max_completion_length: answer positions of mmu.
            max_prompt_length: longest prompt in tokens, tags and a picture that is shown included.
            prompt_truncation: ``"error"``, ``"left"`` or, for captions, ``"right"``. Of a caption its own words alone are cut.
            image_grid: rows and columns of the codes of a picture to make.
            trim_padding: not read: there are no text slots to fill.

        Raises:
            ValueError: another task, a prompt that does not fit, or a length that leaves no room for one.
        """
        if task in ("t2i", "i2i"):
            canvas = self._encode_pictures(rows, task, image_grid, max_prompt_length, prompt_truncation)
        elif task == "mmu":
            lengths = {"max_completion_length": max_completion_length, "max_prompt_length": max_prompt_length}
            canvas = self.encode_text(rows, task, prompt_truncation=prompt_truncation, **lengths)
        else:
            cure = "give the row an image, or take another family for text alone"
            if task in SPANS["r2i"]:
                cure = "give the row task 'i2i', without a thought, or open MMaDA-Parallel-A with policy='mmada_parallel_a'"
            raise ValueError(
                f"task={task!r} is not supported: Lumina-DiMOO was published with layouts for questions about a picture (mmu), "
                f"for pictures (t2i) and for edits (i2i); {cure}"
            )
        return self._padded_on_the_right(canvas) if self.attends_padding else canvas

    def _prompt(self, row: dict[str, Any], task: str, limit: int, truncation: str) -> list[int]:
        """Ids of a question with its picture before the closing tag; truncation never cuts the picture."""
        picture = self._shown(row, limit, 1)
        room = limit - len(picture) - 1
        text = fit_prompt(self.processor.encode_prompt(row["prompt"], task), room, truncation, row["prompt"])
        return [*text[:-1], *picture, text[-1], self._special["answer_start"]]

    def _shown(self, row: dict[str, Any], limit: int, beside: int) -> list[int]:
        """The picture of a row that shows one, in a prompt of ``limit`` tokens with ``beside`` other ones and some words."""
        codes, grid = row["image_codes"] + self.config.image_token_offset, row["image_grid"]
        picture = layouts.picture(codes, grid, **self._marks).tolist()
        if len(picture) + beside >= limit:
            raise ValueError(
                f"an image of {grid[0]} x {grid[1]} codes leaves no room for the question in a prompt of {limit} tokens; lower "
                "image_size, or raise max_prompt_length"
            )
        return picture

    def _encode_pictures(
        self,
        rows: list[dict[str, Any]],
        task: str,
        grid: tuple[int, int] | None,
        max_prompt_length: int | None,
        truncation: str,
    ) -> Canvas:
        if grid is None:
            raise ValueError("image_grid=None: give the rows and columns of the codes of the pictures to make")
        codes = torch.full((grid[0] * grid[1],), self.mask_token_id)
        picture = layouts.picture(codes, grid, **self._marks)
        limit = self._room("image_size makes positions of a picture", len(picture), max_prompt_length, around=2)
        start, end = self._special["answer_start"], self._special["answer_end"]
        behind = torch.cat([torch.tensor([start]), picture, torch.tensor([end])])
        prompt_ids, prompt_mask = left_pad(
            [self._caption(row, task, limit, truncation) for row in rows], self.pad_token_id
        )
        fill = (behind == self.mask_token_id).expand(len(rows), -1)
        return Canvas(
            ids=torch.cat([prompt_ids, behind.expand(len(rows), -1)], dim=1),
            fill_mask=torch.cat([torch.zeros_like(prompt_mask), fill], dim=1),
            attention_mask=torch.cat([prompt_mask, torch.ones_like(fill)], dim=1),
            task=task,
            token_space=self.token_space(task),
        )

    def _caption(self, row: dict[str, Any], task: str, limit: int, truncation: str) -> list[int]:
        """The prompt of a picture to make, with the one to edit behind what the user says, whose words are cut where they do not fit."""
        ids = self.processor.encode_prompt(row["prompt"], task)
        opened = ids.index(self._user) + 1
        picture = self._shown(row, limit, opened + 1) if task in self.edits else []
        room = limit - opened - len(picture) - 1
        words = fit_prompt(ids[opened:-1], room, truncation, prompt_text(row["prompt"]), CAPTION_CURE)
        return [*ids[:opened], *(words or [self._special["uncondition"]]), *picture, ids[-1]]

    def _padded_on_the_right(self, canvas: Canvas) -> Canvas:
        order = layouts.to_the_right(canvas.attention_mask)
        ids, fill, real = (own.gather(1, order) for own in (canvas.ids, canvas.fill_mask, canvas.attention_mask))
        ids = ids.masked_fill(~real, self.config.right_pad_token_id)
        return replace(canvas, ids=ids, fill_mask=fill, attention_mask=real)

    def guidance_canvas(self, canvas: Canvas) -> Canvas:
        """Of pictures to make the same canvas with ``<uncondition>`` in place of what the user says, as the public sampler has it; a
        picture to edit stays. Else every prompt token hidden, the picture included.

        Raises:
            ValueError: padding is attended: the unconditional row is shorter, and would read its padding.
        """
        if canvas.task not in self.asked_by_caption:
            return super().guidance_canvas(canvas)
        said, _ = self._instruction_and_picture(canvas)
        last = said & ~torch.nn.functional.pad(said[:, 1:], (0, 1))
        ids = canvas.ids.masked_fill(last, self._special["uncondition"])
        return self._without(replace(canvas, ids=ids), said & ~last)

    def imageless_canvas(self, canvas: Canvas) -> Canvas:
        """The row of an edit without its picture, as in the public sampler; raises ``ValueError`` as ``guidance_canvas``."""
        if canvas.task not in self.edits:
            return super().imageless_canvas(canvas)
        return self._without(canvas, self._instruction_and_picture(canvas)[1])

    def _instruction_and_picture(self, canvas: Canvas) -> tuple[Tensor, Tensor]:
        special = {name: self._special[name] for name in ("answer_start", "boi", "eoi")}
        return layouts.instruction_and_picture(canvas.ids, canvas.fill_mask, user=self._user, **special)

    def _without(self, canvas: Canvas, cut: Tensor) -> Canvas:
        if self.attends_padding:
            raise ValueError(
                "attn_mask_mode='none' reads padding, and the row that guidance steers away from is shorter than the row itself, which "
                "the public sampler does not pad: set attn_mask_mode='bool', or guidance_scale=0, image_guidance_scale=0 and caption_dropout=0"
            )
        ids, real = layouts.cut_out(canvas.ids, canvas.attention_mask, cut, self.pad_token_id)
        return replace(canvas, ids=ids, attention_mask=real)

    def decode(self, canvas: Canvas, completion_mask: Tensor) -> list[str] | list[Tensor]:
        """Of pictures the codes ``[N]`` int64 of each, row-major, for the image tokenizer. Else the text of each completion, stop
        token and other special tokens left out.
        """
        if not is_picture(canvas.task):
            return super().decode(canvas, completion_mask)
        rows = [ids[mask] for ids, mask in zip(canvas.ids, completion_mask, strict=True)]
        return [row - self.config.image_token_offset for row in rows]

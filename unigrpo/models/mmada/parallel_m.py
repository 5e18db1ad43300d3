"""MMaDA-Parallel-M (arXiv 2511.09611): MMaDA's network, and a picture and an instruction in, a picture and the thought about it out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...types import SPANS, Canvas
from ..base import fit_prompt
from ..processing import prompt_text
from ..thoughts import edit_in_place
from .configuration import SPECIAL_TOKEN_IDS as OF_MMADA
from .configuration import MMaDAConfig
from .modeling import MMaDAForMaskedDiffusion
from .policy import CAPTION_CURE, MMaDAPolicy


SPECIAL_TOKEN_IDS = {**OF_MMADA, "interleave": 126095}
"""MMaDA's, and the token that opens a row of two pictures and two texts."""


class MMaDAParallelMConfig(MMaDAConfig):
    """MMaDA's fields, and one more layout token.

    Published files say ``model_type`` "mmada" and MMaDA's architecture. Nothing in them tells the two apart, so that whoever opens one
    names this family; what is saved says it.

    Args:
        special_token_ids: ids of ``SPECIAL_TOKEN_IDS``' names.
    """

    model_type = "mmada_parallel_m"
    published_types: ClassVar[tuple[str, ...]] = ("mmada",)
    edits_with_thoughts: ClassVar[bool] = True
    pads_instructions: ClassVar[bool] = True

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


class MMaDAParallelMForMaskedDiffusion(MMaDAForMaskedDiffusion):
    """Loads and saves the published layout, which is MMaDA's."""

    config_class = MMaDAParallelMConfig


DROPPED = 0
"""The id in place of every code of a picture that guidance leaves out, as in the public code."""


class MMaDAParallelMPolicy(MMaDAPolicy):
    """MMaDA's layouts, but that of ``r2i``, whose rows show a picture: think, then edit.

    The picture comes out before its thought, and both read each other: ``r2i_decoding="parallel"`` is how the authors write them.
    """

    model_class = MMaDAParallelMForMaskedDiffusion

    def encode(self, rows: list[dict[str, Any]], task: str = "text", **lengths: Any) -> Canvas:
        """The canvas of rows of one task. Of ``thought`` and ``picture``

        ``<|interleave|> <|soi|> codes <|eoi|> bos instruction eos* <|soi|> MASK*image_tokens <|eoi|> bos MASK*max_completion_length``

        with ``row["image_codes"]``, the codes ``[N]`` of the picture to edit; ``picture`` has ``row["thought_ids"]`` for its last
        masks. The instruction and the eos behind it fill ``max_prompt_length`` slots, bos included; default as many as the thought has
        with its bos, as in the public code, which reads them all like text. Other tasks are MMaDA's: ``MMaDAPolicy.encode``.

        Raises:
            ValueError: as there; or a row of ``r2i`` without a picture, or with one of another size than that to make.
        """
        if task == "i2i":
            raise ValueError("MMaDA-Parallel-M thinks while it edits: give rows with a picture to edit task 'r2i'")
        return super().encode(rows, task, **lengths)

    def _encode_spans(
        self,
        rows: list[dict[str, Any]],
        task: str,
        length: int,
        image_tokens: int,
        max_prompt_length: int | None,
        truncation: str,
    ) -> Canvas:
        counts = {len(row["image_codes"]) if "image_codes" in row else 0 for row in rows}
        if counts != {image_tokens}:
            raise ValueError(
                f"rows of task 'r2i' show {sorted(counts)} codes of a picture to edit, and one of {image_tokens} is made: give each row an "
                "'image'; both pictures have one image_size"
            )
        written = length + 2 * image_tokens
        slots = self._room(
            "max_completion_length + 2 image_tokens", written, max_prompt_length or length + 1, around=6
        )
        texts = [self._instruction(row, slots, truncation) for row in rows]
        special, offset, mask = self.config.special_token_ids, self.config.image_token_offset, self.mask_token_id
        count, bos = len(rows), self.config.bos_token_id

        def same(*ids: int) -> Tensor:
            return torch.tensor(ids).expand(count, -1)

        shown = torch.stack([row["image_codes"] for row in rows]) + offset
        empty = torch.full((length,), mask)
        thoughts = torch.stack([row["thought_ids"] if task == "picture" else empty for row in rows])
        before = [same(special["interleave"], special["soi"]), shown, same(special["eoi"]), torch.tensor(texts)]
        drawn = [same(special["soi"]), torch.full((count, image_tokens), mask), same(special["eoi"])]
        ids = torch.cat([*before, *drawn, same(bos), thoughts], dim=1)
        place, start = torch.arange(ids.shape[1]), ids.shape[1] - length
        picture = (place < start - 2) & (place >= start - 2 - image_tokens)
        return Canvas(
            ids=ids,
            fill_mask=(picture if task == "picture" else place >= start).expand_as(ids).clone(),
            attention_mask=torch.ones_like(ids, dtype=torch.bool),
            task=task,
            token_space=self.token_space(task),
        )

    def _instruction(self, row: dict[str, Any], slots: int, truncation: str) -> list[int]:
        """``bos instruction eos*`` of ``slots`` ids, one eos at least."""
        text = self.processor.instruction("r2i") + prompt_text(row["prompt"])
        tokens = self.processor.words_ids(text)
        tokens = fit_prompt(tokens, slots - 2, truncation, row["prompt"], CAPTION_CURE)
        eos = self.config.eos_token_id
        return [self.config.bos_token_id, *tokens, *[eos] * (slots - 1 - len(tokens))]

    def encode_thought(self, row: dict[str, Any], thought: list[int], max_length: int) -> Canvas:
        """``encode``'s row with everything in place: a row to train on. The instruction has as many slots as the thought with its bos.

        Args:
            row: with its ``prompt``, ``image_codes`` of the picture that is shown, and ``edited_codes [N]``.
            thought: its ids.
            max_length: positions of a chat prompt of the instruction, the thought and its padding.

        Returns:
            a canvas of one row, whose ``fill_mask`` has the codes of the edit, the thought and its padding.

        Raises:
            ValueError: instruction and thought do not fit, or there is no edit.
        """
        codes = len(row.get("edited_codes", ()))
        return edit_in_place(self, "MMaDA-Parallel-M", row, thought, max_length, image_tokens=codes)

    def guidance_canvas(self, canvas: Canvas) -> Canvas:
        """Of both spans of ``r2i`` the row that the authors train for it: ``DROPPED`` codes and an empty instruction; what is
        written of the other span stays. Else as in MMaDA.
        """
        if canvas.task not in (*SPANS["r2i"], "r2i"):
            return super().guidance_canvas(canvas)
        codes, text = self._given(canvas)
        first = text & ~torch.nn.functional.pad(text[:, :-1], (1, 0))
        ids = canvas.ids.masked_fill(codes, DROPPED).masked_fill(text, self.config.eos_token_id)
        return replace(canvas, ids=ids.masked_fill(first, self.config.bos_token_id))

    def imageless_canvas(self, canvas: Canvas) -> Canvas:
        """Of both spans of ``r2i`` the row with ``DROPPED`` codes and its instruction."""
        if canvas.task not in SPANS["r2i"]:
            return super().imageless_canvas(canvas)
        return replace(canvas, ids=canvas.ids.masked_fill(self._given(canvas)[0], DROPPED))

    def _given(self, canvas: Canvas) -> tuple[Tensor, Tensor]:
        """``[B, L]`` bool each: the codes of the picture that is shown, and the slots of the instruction."""
        special, ids = self.config.special_token_ids, canvas.ids
        place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)

        def first(found: Tensor) -> Tensor:
            return found.int().argmax(dim=1, keepdim=True)

        # No code is a mark, so that the first ones are the layout's, whatever the instruction says.
        start, end, fill = first(ids == special["interleave"]), first(ids == special["eoi"]), first(canvas.fill_mask)
        drawn = torch.where(ids.gather(1, fill - 1) == special["soi"], fill - 1, fill - 3 - (end - start - 2))
        return (place > start + 1) & (place < end), (place > end) & (place < drawn)

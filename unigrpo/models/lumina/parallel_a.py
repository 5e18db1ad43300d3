"""MMaDA-Parallel-A (arXiv 2511.09611): Lumina-DiMOO tuned to edit a picture and to say what it does, on one canvas."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from ...types import SPANS, Canvas
from ..base import left_pad
from ..thoughts import edit_in_place
from . import layouts
from .configuration import LuminaConfig
from .modeling import LuminaForMaskedDiffusion
from .policy import LuminaPolicy


class MMaDAParallelAConfig(LuminaConfig):
    """Lumina-DiMOO's fields. The published files cannot be told from those of Lumina-DiMOO, as which they are opened unless
    ``policy="mmada_parallel_a"`` says otherwise; what is saved here names its own type.
    """

    model_type = "mmada_parallel_a"
    edits_with_thoughts: ClassVar[bool] = True

    def __init__(self, sampling_defaults: dict[str, int] | None = None, **kwargs: Any) -> None:
        usual = {"image_size": 512, "max_completion_length": 256, "steps": 256, "block_length": 256}
        super().__init__(sampling_defaults=usual if sampling_defaults is None else sampling_defaults, **kwargs)


class MMaDAParallelAForMaskedDiffusion(LuminaForMaskedDiffusion):
    """Loads and saves the published layout, Lumina-DiMOO's."""

    config_class = MMaDAParallelAConfig


class MMaDAParallelAPolicy(LuminaPolicy):
    """MMaDA-Parallel-A's one layout, task ``r2i`` with the picture to edit: the picture is written before the text in the row, and the
    text, the ``thought``, says what was done. Both may be written in parallel (``r2i_decoding="parallel"``), as the public sampler does.

    Guidance steers away from the rows that Lumina-DiMOO's edits have, without the instruction and without the picture. The public
    script lays the shorter prompts over the beginning of the row, so that pieces of the longer one stay behind them; this does not.
    """

    model_class = MMaDAParallelAForMaskedDiffusion
    asked_by_caption = edits = (*SPANS["r2i"], "r2i")

    def encode(
        self,
        rows: list[dict[str, Any]],
        task: str = "picture",
        *,
        max_completion_length: int | None = None,
        max_prompt_length: int | None = None,
        prompt_truncation: str = "error",
        image_grid: tuple[int, int] | None = None,
        trim_padding: bool = True,
    ) -> Canvas:
        """The canvas of one span of rows of ``r2i``, ``PICTURE`` standing for ``boi [row of codes, newline]* eoi``:

        ``<system>..</system><user> instruction PICTURE </user> answer_start PICTURE TEXT answer_end``

        ``picture``: of the second picture the codes are written, behind them stands ``row["thought_ids"]``. ``thought``: the text is
        written, the codes are still masked. Rows have the codes of the picture to edit as ``image_codes`` and ``image_grid``; they
        are padded as ``LuminaPolicy``'s.

        Args:
            max_completion_length: positions of the text.
            max_prompt_length, prompt_truncation, image_grid: as in ``LuminaPolicy.encode``.
            trim_padding: not read: there are no text slots to fill.

        Raises:
            ValueError: another task, a row without a picture, a prompt that does not fit, or a length that leaves no room for one.
        """
        if task not in SPANS["r2i"] or any("image_codes" not in row for row in rows):
            raise ValueError(
                f"task={task!r} is not supported without a picture to edit: MMaDA-Parallel-A was published with one layout, of a picture, its "
                "edit and a text (r2i with an image); give the rows task='r2i' and an image, or take lumina_dimoo"
            )
        if max_completion_length is None or image_grid is None:
            raise ValueError(
                f"max_completion_length={max_completion_length}, image_grid={image_grid}: give the positions of the text, and the rows and "
                "columns of the codes of the picture"
            )
        picture = layouts.picture(
            torch.full((image_grid[0] * image_grid[1],), self.mask_token_id), image_grid, **self._marks
        )
        written = len(picture) + max_completion_length
        limit = self._room("max_completion_length + image_size", written, max_prompt_length, around=2)
        prompts = [self._caption(row, task, limit, prompt_truncation) for row in rows]
        prompt_ids, prompt_mask = left_pad(prompts, self.pad_token_id)
        empty = torch.full((max_completion_length,), self.mask_token_id)
        start, end = (torch.tensor([self._special[name]]) for name in ("answer_start", "answer_end"))
        texts = [row["thought_ids"] if task == "picture" else empty for row in rows]
        answers = torch.stack([torch.cat([start, picture, text, end]) for text in texts])
        place = torch.arange(answers.shape[1])
        in_text = (place > len(picture)) & (place < answers.shape[1] - 1)
        in_picture = torch.nn.functional.pad(picture == self.mask_token_id, (1, max_completion_length + 1))
        fill = (in_picture if task == "picture" else in_text).expand_as(answers)
        canvas = Canvas(
            ids=torch.cat([prompt_ids, answers], dim=1),
            fill_mask=torch.cat([torch.zeros_like(prompt_mask), fill], dim=1),
            attention_mask=torch.cat([prompt_mask, torch.ones_like(fill)], dim=1),
            task=task,
            token_space=self.token_space(task),
        )
        return self._padded_on_the_right(canvas) if self.attends_padding else canvas

    def encode_thought(self, row: dict[str, Any], thought: list[int], max_length: int) -> Canvas:
        """``encode``'s row with everything in place: a row to train on.

        Args:
            row: with its ``prompt``, ``image_codes`` and ``image_grid`` of the picture that is shown, and ``edited_codes [N]``.
            thought: ids of the text.
            max_length: positions of instruction, text and padding.

        Returns:
            a canvas of one row, whose ``fill_mask`` has the codes of the edit, the text and its padding.

        Raises:
            ValueError: instruction and text do not fit, or there is no edit.
        """
        return edit_in_place(self, "MMaDA-Parallel-A", row, thought, max_length, image_grid=row["image_grid"])

"""Rows of token ids as batches with masks and labels, for a plain ``transformers.Trainer``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..algorithm.denoising import MaskedDenoising
from ..models.elsewhere import IGNORED
from ..types import keyed_generator


@dataclass(kw_only=True)
class MaskedDenoisingCollator:
    """Hides tokens of each row as an objective says, and labels them: ``Trainer(model, data_collator=...)`` then fine-tunes.

    A row has ``input_ids`` and, if only a part of it is trained, ``labels`` as everywhere: -100 on the prompt. An ``attention_mask``
    may come with it. Padding is put on the right, neither trained nor attended.

    The noise follows ``torch.initial_seed()``, the row and how many batches were made before: it differs between ranks, workers
    and epochs, and draws nothing from torch's own generator.

    Attributes:
        mask_token_id: the id that hides a token; ``model.config.mask_token_id``.
        pad_token_id: the id of padding.
        objective: what is hidden and what it costs. ``train_padding``, ``train_marks``, ``caption_dropout`` and
            ``coefficient`` are not read: rows are ids already, and their ``labels`` say what is trained.
    """

    mask_token_id: int
    pad_token_id: int
    objective: MaskedDenoising = field(default_factory=MaskedDenoising)
    _batches: int = field(default=0, init=False, repr=False)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask``, ``labels`` and ``loss_weights``, all ``[B, L]``, of B rows.

        The model's loss is then the objective's over these rows. Accumulated batches of equal size are averaged, which is exact
        but for ``denominator="tokens"``.

        Raises:
            ValueError: a row without ids, or whose columns differ in length.
        """
        self._batches += 1
        rows = [self._row(feature, number) for number, feature in enumerate(features)]
        fill = {"input_ids": self.pad_token_id, "attention_mask": False, "labels": IGNORED, "loss_weights": 0.0}
        batch = {
            name: pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)
            for name, value in fill.items()
        }
        # The model divides by the rows, the objective by their shares.
        batch["loss_weights"] *= len(rows) / max(sum(row["share"] for row in rows), 1.0)
        return batch

    def _row(self, feature: dict[str, Any], number: int) -> dict[str, Any]:
        if "input_ids" not in feature:
            raise ValueError(
                f"row {number} of the batch has no input_ids, only {sorted(feature)}: tokenize the dataset first"
            )
        ids = torch.as_tensor(feature["input_ids"], dtype=torch.int64)
        labels = torch.as_tensor(feature.get("labels", ids), dtype=torch.int64)
        real = torch.as_tensor(feature.get("attention_mask", torch.ones_like(ids))).bool()
        if not len(ids) == len(labels) == len(real):
            raise ValueError(
                f"row {number} of the batch has {len(ids)} input_ids, {len(labels)} labels and an attention_mask of {len(real)}: "
                "they stand for the same tokens, so give equally many"
            )
        key = ("denoising collator", torch.initial_seed(), self._batches, number, *ids.tolist())
        noise = self.objective.hide((labels != IGNORED) & real, generator=keyed_generator(*key))
        return {
            "input_ids": ids.masked_fill(noise.hidden, self.mask_token_id),
            "attention_mask": real,
            "labels": labels.masked_fill(~noise.target, IGNORED),
            "loss_weights": noise.weight,
            "share": noise.share,
        }

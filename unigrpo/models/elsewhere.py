"""What a model of ours brings for the tools around it: the weights' own dtype, answers, and a loss of labels."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from ..errors import import_named
from .checkpoint_files import FULL_WEIGHTS, hub_file, reading, weight_files


IGNORED = -100
"""A label that is not scored, as everywhere in transformers."""


class OpensElsewhere:
    """A mixin before ``PreTrainedModel``."""

    accepts_loss_kwargs = False
    """``transformers.Trainer`` then averages the losses of micro-batches. Its count of labels is for those that are shifted by one."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; without a ``dtype`` it is that of the weights, whatever config.json says.

        A folder that transformers 4 has saved again can keep a ``dtype`` of before beside its own ``torch_dtype``.
        """
        path, named = pretrained_model_name_or_path, kwargs.pop("torch_dtype", None)
        asked = kwargs.pop("dtype", named if named is not None else "auto")
        if asked == "auto" and path is not None:
            asked = stored_dtype(path, **kwargs) or asked
        return super().from_pretrained(path, *args, dtype=asked, **kwargs)  # type: ignore[misc]

    def generate(self, inputs: Any = None, **options: Any) -> Any:
        """Answers from the sampler: texts or pictures for prompts, ids for ids.

        Args:
            inputs: a prompt, or a list of them, as ``LoadedPolicy.generate`` takes it; or ids ``[B, L]``, left-padded, which
                may be given as ``input_ids=`` with an ``attention_mask=`` too, as a tokenizer returns them.
            options: those of ``LoadedPolicy.generate``; ``processing_class`` and ``policy`` as in ``load_policy``.

        Returns:
            one answer a prompt; for ids a tensor ``[B, L + max_completion_length]``.

        Raises:
            ValueError: an unknown option, or a model without a processor.
        """
        # By name: samplers stand above the models.
        return import_named("unigrpo.rollout.generate:generate")(self, inputs, **options)


def stored_dtype(path: str | Path, config: Any = None, **options: Any) -> torch.dtype | None:
    """The dtype that most numbers of a checkpoint have, None where its files do not say it.

    Quantized weights are of another dtype than what is computed with, which their configuration says.
    """
    if not os.path.isdir(path) and hub_file(path, "config.json", **options) is None:
        return None  # Whoever then loads it says why.
    found: Counter[torch.dtype] = Counter()
    with reading(f"model {str(path)!r}"):
        files = weight_files(config, path, **options)
        # A checkpoint has other tensors beside the weights; a variant of them has a name of its own.
        for file in [own for own in files if FULL_WEIGHTS.fullmatch(own.name)] or files:
            found += dtypes(file)
    if not found or not all(own.is_floating_point and own.itemsize > 1 for own in found):
        return None
    return found.most_common(1)[0][0]


SAFE_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def dtypes(file: Path) -> Counter[torch.dtype]:
    """Numbers of each dtype in a file of weights, from its header; a dtype of no floats counts as ``torch.uint8``."""
    found: Counter[torch.dtype] = Counter()
    if file.suffix != ".safetensors":
        for tensor in torch.load(file, map_location="meta", weights_only=True).values():
            found[tensor.dtype] += tensor.numel()
        return found
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            part = opened.get_slice(name)
            found[SAFE_DTYPES.get(part.get_dtype(), torch.uint8)] += math.prod(part.get_shape())
    return found


def labelled(labels: Tensor, shift: int, **others: Any) -> tuple[Tensor, Tensor]:
    """``select [B, L]`` and ``targets [n]`` of ``labels [B, L]``, whose ``IGNORED`` positions are not scored.

    Raises:
        ValueError: something in ``others`` is given too, or the first ``shift`` positions have labels.
    """
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ValueError(
            f"labels and {given[0]} are given: labels say themselves which rows are scored; give one of them"
        )
    scored = labels != IGNORED
    return F.pad(scored[:, shift:], (0, shift)) if shift else scored, labels[scored]


def label_loss(logps: Tensor, labels: Tensor, loss_weights: Tensor | None) -> Tensor:
    """The masked-denoising loss, fp32: the mean of -log p ``[n]``, or with weights ``[B, L]`` their sum over B rows.

    Without labels it is 0.
    """
    scored = labels != IGNORED
    if loss_weights is None:
        return -logps.sum() / max(len(logps), 1)
    return -(loss_weights[scored] * logps).sum() / len(labels)

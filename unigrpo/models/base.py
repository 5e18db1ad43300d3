"""What a model family must say about itself to be sampled from, scored and trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import TooLongError
from ..types import Canvas, Guidance, TokenSpace
from .blocks import blocks_of
from .loading import fresh_module, load_module, load_processor
from .placing import on_host


class DiffusionPolicy(ABC):
    """A family's description of itself. Stateless; it never owns the module.

    Attributes:
        model_class: the ``PreTrainedModel`` whose ``forward`` keeps the contract of ``models/forward.py``.
        processor_class: tokenizer or processor class with ``from_pretrained``.
        mask_token_id: the id that stands for "not written yet"; None for families without one.
        pad_token_id: id of padding, and of the tail after a stop token.
        stop_token_ids: ids that end an answer; empty where an answer always fills its canvas.
        logit_shift: 1 when the logits at position i predict token i + 1, else 0.
        linear_head: True when guidance may be combined before the head.
        supports_cache: True when the forward takes a ``KeyValueCache`` (``kv_cache`` of the text sampler), and where attention is
            block-causal a ``GrowingCache``.
        mask_optional: True when ``attention_mask=None`` means that no row has padding; a device then need not look for it.
        processor: the tokenizer or processor of this instance, saved with checkpoints.
        attends_padding: True when padding is attended like text; rows then keep their padding in the likelihood.
        image_tokenizer, image_size, codebook_size: id of the family's image tokenizer, usual side of an image in pixels
            and number of codes; None for families without images.
        block_size: positions of a block, where attention is block-causal: a position sees its own block, both ways, and all
            earlier ones; ``forward`` then takes ``clean_ids``. None = full attention.
        block_anchor: where the first block begins: at the ``"start"`` of a row's real tokens, or with the answer, at the
            ``"prompt_end"``.
    """

    model_class: ClassVar[Any] = None
    processor_class: ClassVar[Any] = None
    processor: Any
    mask_token_id: int | None
    pad_token_id: int
    stop_token_ids: tuple[int, ...] = ()
    logit_shift: int = 0
    linear_head: bool = False
    supports_cache: bool = False
    mask_optional: bool = False
    attends_padding: bool = False
    image_tokenizer: str | None = None
    image_size: int | None = None
    codebook_size: int | None = None
    block_size: int | None = None
    block_anchor: str = "start"

    @classmethod
    def load_model(cls, path: str, **kwargs: Any):
        """The module from a hub id or a path; ``kwargs`` go to ``from_pretrained``.

        Code in the checkpoint's folder runs only with ``trust_remote_code=True``, and weights are never unpickled.

        Raises:
            ValueError: damaged files, files that need code, or a configuration that asks for more than they hold.
            SourceError: there is nothing at ``path``, or no way to it.
        """
        return load_module(cls._said("model_class", "the network"), path, **kwargs)

    @classmethod
    def _said(cls, attribute: str, what: str) -> Any:
        """A class that a family opens files with."""
        found = getattr(cls, attribute)
        if found is None:
            raise ValueError(
                f"{cls.__name__} opens no files: set {cls.__name__}.{attribute} to the class of {what}, which has from_pretrained"
            )
        return found

    @classmethod
    def fresh_model(cls, path: str, seed: int, **kwargs: Any):
        """The module of the configuration at a hub id or a path, its weights drawn from ``seed``; see ``fresh_module``."""
        return fresh_module(cls._said("model_class", "the network"), path, seed, **kwargs)

    @classmethod
    def from_model(cls, model, processing_class=None) -> DiffusionPolicy:
        """The policy of a loaded module; without a processor, the one saved beside the weights is used.

        No code of that folder runs: a processor that needs it is loaded by the caller and given.
        """
        if processing_class is None:
            processing_class = getattr(model, "saved_processor", None)
        if processing_class is None:
            if not model.config.name_or_path:
                raise ValueError("processing_class=None needs a model loaded from a path or id; pass the processor")
            own = cls._said("processor_class", "the tokenizer or processor")
            processing_class = load_processor(own, model.config.name_or_path)
        return cls(model.config, processing_class)  # type: ignore[call-arg]  # a family's own, it takes these two

    @abstractmethod
    def token_space(self, task: str) -> TokenSpace:
        """What ``task`` may write."""

    @abstractmethod
    def encode(self, rows: list[dict[str, Any]], task: str = "text", **lengths: Any) -> Canvas:
        """Dataset rows of one task as a canvas; ``lengths`` as in ``MMaDAPolicy.encode``. Text tasks are not handed
        ``image_lengths`` and ``trim_padding``.
        """

    def image_lengths(self, rows: int, columns: int) -> dict[str, Any]:
        """The arguments of ``encode`` that leave a picture of ``rows x columns`` codes to write."""
        return {"image_tokens": rows * columns}

    def encode_thought(self, row: dict[str, Any], thought: list[int], max_length: int) -> Canvas:
        """The canvas of a thought and then a picture (task ``r2i``); see ``MMaDAPolicy.encode_thought``.

        Raises:
            ValueError: the family has no such layout.
        """
        raise ValueError(f"{type(self).__name__} has no layout for a thought and then a picture (task 'r2i')")

    @abstractmethod
    def decode(self, canvas: Canvas, completion_mask: Tensor) -> list[Any]:
        """One completion a row from a filled canvas: text, or the codes ``[N]`` of an image.

        ``completion_mask [B, L]`` marks the tokens that count.
        """

    def answer_ids(self, text: str) -> list[int]:
        """Ids of a text answer as the policy would write it, without a stop token."""
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def guidance_canvas(self, canvas: Canvas) -> Canvas:
        """The unconditional twin: every prompt token hidden, as in the public text sampler.

        Raises:
            ValueError: the policy has no mask id to hide them with.
        """
        if self.mask_token_id is None:
            raise ValueError(
                f"{type(self).__name__} has no mask id to hide a prompt with: set guidance_scale=0, or let its "
                "guidance_canvas return the canvas without a prompt that its model was trained with"
            )
        prompt = canvas.attention_mask & ~canvas.fill_mask
        return replace(canvas, ids=canvas.ids.masked_fill(prompt, self.mask_token_id))

    def imageless_canvas(self, canvas: Canvas) -> Canvas:
        """The twin without the picture that the prompt shows, the rest of the prompt in place (``image_guidance_scale``).

        Raises:
            ValueError: the family, or the task, has none.
        """
        raise ValueError(
            f"{type(self).__name__} has no row of task {canvas.task!r} without the prompt's picture: set image_guidance_scale=0"
        )

    def guidance_twins(self, canvas: Canvas, scale: Guidance) -> list[Canvas]:
        """The rows that ``scale`` steers away from: ``guidance_canvas``, and of a pair, ``imageless_canvas``; those of scales above 0."""
        if not isinstance(scale, tuple):
            return [self.guidance_canvas(canvas)]
        ways = (self.guidance_canvas, self.imageless_canvas)
        return [way(canvas) for way, own in zip(ways, scale, strict=True) if own]

    def inputs(self, canvas: Canvas, hidden: Tensor | None = None, noisy_ids: Tensor | None = None) -> dict[str, Any]:
        """Arguments of ``model.forward`` for a canvas, with ``hidden [B, L]`` positions corrupted.

        ``noisy_ids [B, L]``, where given, is the corrupted canvas itself (families without a mask id). Without it such a
        family reads ``canvas.ids`` as they are: in a sampler, random tokens at the holes.
        """
        ids = canvas.ids
        if noisy_ids is not None:
            ids = noisy_ids
        elif hidden is not None and self.mask_token_id is not None:
            ids = ids.masked_fill(hidden, self.mask_token_id)
        inputs = {"input_ids": ids, "attention_mask": canvas.attention_mask, **canvas.extra}
        if canvas.position_ids is not None:
            inputs["position_ids"] = canvas.position_ids
        return inputs

    def guided_inputs(
        self, canvas: Canvas, hidden: Tensor, noisy_ids: Tensor | None = None, twins: list[Canvas] | None = None
    ) -> dict[str, Any]:
        """``inputs`` of a canvas and of its ``twins``, None = the unconditional one, stacked as ``[conditional; unconditional]``.

        The twins read what has been written so far. Giving them saves making them anew at every step.
        """
        return self._with_twins(self.inputs, canvas, hidden, noisy_ids, twins)

    def likelihood_inputs(
        self, canvas: Canvas, hidden: Tensor | None = None, noisy_ids: Tensor | None = None
    ) -> dict[str, Any]:
        """``inputs`` for the likelihood of an answer that stands on ``canvas``.

        Where attention is in blocks, an answer's likelihood is the product of its blocks', each behind finished ones. So the
        unhidden answer comes too, as ``clean_ids [B, L]``; a prompt token that is hidden is so in both.
        """
        inputs = self.inputs(canvas, hidden, noisy_ids)
        if self.block_size is None:
            return inputs
        return {**inputs, "clean_ids": torch.where(canvas.fill_mask, canvas.ids, inputs["input_ids"])}

    def guided_likelihood_inputs(
        self, canvas: Canvas, hidden: Tensor, noisy_ids: Tensor | None = None, twins: list[Canvas] | None = None
    ) -> dict[str, Any]:
        """``likelihood_inputs`` of a canvas and of its ``twins``, stacked like ``guided_inputs``."""
        if self.block_size is None:
            return self.guided_inputs(canvas, hidden, noisy_ids, twins)
        return self._with_twins(self.likelihood_inputs, canvas, hidden, noisy_ids, twins)

    def _with_twins(
        self,
        inputs: Callable[..., dict[str, Any]],
        canvas: Canvas,
        hidden: Tensor,
        noisy_ids: Tensor | None,
        twins: list[Canvas] | None = None,
    ) -> dict[str, Any]:
        parts = [inputs(canvas, hidden, noisy_ids)]
        for twin in [self.guidance_canvas(canvas)] if twins is None else twins:
            twin = replace(twin, ids=torch.where(canvas.fill_mask, canvas.ids, twin.ids))
            twin_noisy = None if noisy_ids is None else torch.where(canvas.fill_mask, noisy_ids, twin.ids)
            parts.append(inputs(twin, hidden, twin_noisy))
        return {key: torch.cat([own[key] for own in parts]) for key in parts[0]}

    def blocks(self, canvas: Canvas) -> Tensor | None:
        """The block of each position ``[B, L]`` int64, 0 in a row's first one, -1 at padding; None where attention has none."""
        if self.block_size is None:
            return None
        block = blocks_of(canvas, self.block_size, self.block_anchor)
        return (block - block.amin(dim=1, keepdim=True)).masked_fill(~canvas.attention_mask, -1)

    def rows(self, mask: Tensor) -> Tensor:
        """The output rows ``[B, L]`` bool whose logits predict the tokens marked by ``mask [B, L]``."""
        if not self.logit_shift:
            return mask
        # Elsewhere the host would wait; prompts are checked on the CPU before a run.
        if on_host(mask) and bool(mask[:, : self.logit_shift].any()):
            raise ValueError("the first position of a row cannot be predicted by a model with shifted logits")
        return torch.nn.functional.pad(mask[:, self.logit_shift :], (0, self.logit_shift))


TEXT_CURE = "Raise max_prompt_length, lower max_completion_length, or set prompt_truncation='left'"


def fit_prompt(tokens: list[int], limit: int, truncation: str, prompt: Any, cure: str = TEXT_CURE) -> list[int]:
    """``tokens`` if they fit, else an error that ends in ``cure``, or their last (``"left"``) or first ``limit`` ids.

    Raises:
        TooLongError: too long with ``truncation="error"``.
    """
    if len(tokens) <= limit:
        return tokens
    if truncation == "left":
        return tokens[-limit:]
    if truncation == "right":
        return tokens[:limit]
    raise TooLongError(
        f"prompt of {len(tokens)} tokens is longer than the {limit} that fit: {str(prompt)[:80]!r}. {cure}"
    )


def left_pad(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and bool mask ``[B, longest]``, padding on the left."""
    length = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows], dtype=torch.int64)
    mask = torch.tensor([[False] * (length - len(row)) + [True] * len(row) for row in rows])
    return ids, mask

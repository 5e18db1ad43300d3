"""The text canvas that all families share: a chat prompt, padded on the left, and masks behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..types import Canvas, TokenSpace
from .base import DiffusionPolicy, fit_prompt, left_pad
from .processing import CHAT_TOKENS, MMaDAProcessor


class TextCanvasPolicy(DiffusionPolicy):
    """A policy whose answers stand in ``[pad]* chat-prompt MASK*max_completion_length``.

    Subclasses set ``stop_token_ids`` and say their ``token_space``.
    """

    processor_class = MMaDAProcessor
    linear_head = True
    supports_cache = True
    mask_optional = True

    def __init__(self, config: Any, processor: Any) -> None:
        """``processor``: one of ``processor_class``, or the tokenizer to put one around."""
        self.config, self.processor = config, self._wrapped(config, processor)
        self.mask_token_id = config.mask_token_id
        self.pad_token_id = config.pad_token_id
        self.max_length = config.max_position_embeddings
        self.attends_padding = getattr(config, "attn_mask_mode", "bool") == "none"

    def _wrapped(self, config: Any, processor: Any) -> Any:
        """The processor of this family, put around a tokenizer where one is given.

        Raises:
            ValueError: the family's processor, configuration or vocabulary is none that the library's chat prompt can stand in.
        """
        name, own = type(self).__name__, self.processor_class
        cure = 'or derive it from DiffusionPolicy with encode and decode of its own (unigrpo/models/README.md, "A new family")'
        if not hasattr(own, "around"):
            raise ValueError(
                f"{name}.processor_class={own.__name__} must be derived from MMaDAProcessor: leave it out, {cure}"
            )
        if not hasattr(config, "mask_token_id"):
            raise ValueError(
                f"{type(config).__name__} has no mask_token_id, which {name} reads: give it to the configuration, {cure}"
            )
        processor = own.around(processor)
        ids = processor.tokenizer.get_added_vocab() if hasattr(processor, "tokenizer") else {}
        beyond = sorted(token for token in CHAT_TOKENS if ids.get(token, 0) >= config.vocab_size)
        if beyond:
            raise ValueError(
                f"{name} writes prompts with {beyond}, which the model's {config.vocab_size} embeddings do not hold: add them to its "
                f"tokenizer and its vocabulary, {cure}"
            )
        return processor

    def encode_text(
        self,
        rows: list[dict[str, Any]],
        task: str,
        *,
        max_completion_length: int,
        max_prompt_length: int | None = None,
        prompt_truncation: str = "error",
    ) -> Canvas:
        """Rows of a task that writes text, padded to the longest prompt.

        Args:
            max_completion_length: answer positions.
            max_prompt_length: longest prompt in tokens; None = what fits beside the answer.
            prompt_truncation: for longer prompts ``"error"`` or ``"left"``, which drops the beginning.

        Raises:
            ValueError: a prompt that does not fit, or a length that leaves no room for one.
        """
        if prompt_truncation == "right":
            raise ValueError(
                f"prompt_truncation='right' would cut the end of a chat prompt of task {task!r}, which opens the answer; "
                "use 'left', or set it for t2i alone in task_overrides"
            )
        limit = self._room("max_completion_length", max_completion_length, max_prompt_length)
        prompts = [self._prompt(row, task, limit, prompt_truncation) for row in rows]
        prompt_ids, prompt_mask = left_pad(prompts, self.pad_token_id)
        hole = self.pad_token_id if self.mask_token_id is None else self.mask_token_id
        answer = torch.full((len(rows), max_completion_length), hole, dtype=torch.int64)
        written = torch.ones_like(answer, dtype=torch.bool)
        return Canvas(
            ids=torch.cat([prompt_ids, answer], dim=1),
            fill_mask=torch.cat([torch.zeros_like(prompt_mask), written], dim=1),
            attention_mask=torch.cat([prompt_mask, written], dim=1),
            task=task,
            token_space=self.token_space(task),
        )

    def _room(self, name: str, written: int, max_prompt_length: int | None, around: int = 0) -> int:
        """Prompt positions beside ``written`` ones and ``around`` marks."""
        limit = self.max_length - written - around
        if limit <= 0:
            raise ValueError(
                f"{name}={written} leaves no room for a prompt in {self.max_length} positions (max_sequence_length of "
                f"the model); lower {name.split()[0]}"
            )
        return min(limit, max_prompt_length or limit)

    def _prompt(self, row: dict[str, Any], task: str, limit: int, truncation: str) -> list[int]:
        """Ids of a chat prompt; a family may put something before it, by ``task``."""
        return fit_prompt(self.processor.encode_prompt(row["prompt"]), limit, truncation, row["prompt"])

    def decode(self, canvas: Canvas, completion_mask: Tensor) -> list[Any]:
        """The text of each completion, stop token and other special tokens left out."""
        rows = [ids[mask].tolist() for ids, mask in zip(canvas.ids.cpu(), completion_mask.cpu(), strict=True)]
        return self.processor.tokenizer.batch_decode(rows, skip_special_tokens=True)


class TextPolicy(TextCanvasPolicy):
    """A family of text alone."""

    def encode(self, rows: list[dict[str, Any]], task: str = "text", **lengths: Any) -> Canvas:
        """The canvas of text rows; ``lengths`` as in ``encode_text``."""
        if task != "text":
            raise ValueError(f"task={task!r} is not supported: {self.config.model_type} reads and writes text only")
        return self.encode_text(rows, task, **lengths)

    def token_space(self, task: str) -> TokenSpace:
        """Ids that the tokenizer can decode, minus the mask id and those that are never written."""
        stop = min(len(self.processor.tokenizer), self.config.vocab_size)
        closed = dict.fromkeys((self.mask_token_id, *(getattr(self.config, "forbidden_token_ids", None) or ())))
        return TokenSpace(start=0, stop=stop, exclude=tuple(own for own in closed if own < stop))

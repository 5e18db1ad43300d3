"""What DiffusionGemma says about itself: text in canvases of a fixed length, and noise of random tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...types import Canvas, TokenSpace
from ..decoder.processing import DecoderProcessor
from ..text_canvas import TextPolicy
from .modeling import DiffusionGemmaForMaskedDiffusion


class DiffusionGemmaPolicy(TextPolicy):
    """Text only: its pictures are not read here.

    Noise replaces tokens by uniformly random ones of the token space. So the likelihood of a token is the law that the decoder
    gives it where it was replaced: with mask ratio t, log p(x_i | x with each token replaced with chance t, x_i among them),
    behind the clean canvases before its own and without self-conditioning. That is what it is fine-tuned on at the replaced
    positions. It is no bound of the evidence: a token that is left does not say that it was.
    """

    model_class = DiffusionGemmaForMaskedDiffusion
    processor_class = DecoderProcessor
    linear_head = False
    supports_cache = False
    block_anchor = "prompt_end"

    def __init__(self, config: Any, processor: Any) -> None:
        self.config, self.processor = config, self.processor_class.around(processor)
        text, tokenizer = config.text_config, self.processor.tokenizer
        self.mask_token_id = None
        self.max_length = text.max_position_embeddings
        self.block_size = config.canvas_length
        named = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
        turn = tokenizer.get_vocab().get("<turn|>")
        ends = dict.fromkeys(own for own in (*named, tokenizer.eos_token_id, turn) if own is not None)
        self.stop_token_ids = tuple(ends)
        padding = (text.pad_token_id, tokenizer.pad_token_id, *self.stop_token_ids)
        self.pad_token_id = next(own for own in padding if own is not None)

    def token_space(self, task: str) -> TokenSpace:
        """Ids that the tokenizer can decode, without those of padding and pictures."""
        config, text = self.config, self.config.text_config
        stop = min(len(self.processor.tokenizer), text.vocab_size)
        closed = {
            self.pad_token_id,
            text.bos_token_id,
            config.boi_token_id,
            config.eoi_token_id,
            config.image_token_id,
        }
        closed = {own for own in closed if own is not None and own < stop} - set(self.stop_token_ids)
        return TokenSpace(start=0, stop=stop, exclude=tuple(sorted(closed)))

    def inputs(self, canvas: Canvas, hidden: Tensor | None = None, noisy_ids: Tensor | None = None) -> dict[str, Any]:
        """As everywhere, and where the canvases are."""
        return {**super().inputs(canvas, hidden, noisy_ids), "written": canvas.fill_mask}

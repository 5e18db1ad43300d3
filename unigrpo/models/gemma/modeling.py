"""DiffusionGemma under the forward contract: transformers' own network, which reads a prefix causally and denoises canvases behind it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion

from ...types import Guidance, TokenSpace
from ..blocks import logical_positions
from ..decoder.modeling import IMPLEMENTATIONS, KEPT
from ..draw import Draw
from ..elsewhere import OpensElsewhere, label_loss, labelled
from ..forward import MaskedDiffusionOutput, check_together, combine_guidance, from_logits
from ..inherited import RefusedMethods, check_attention_mask, refuse_arguments
from ..placing import places_of
from .prefix import PrefixKeys, Sight


class DiffusionGemmaForMaskedDiffusion(OpensElsewhere, RefusedMethods, DiffusionGemmaForBlockDiffusion):
    """DiffusionGemma (transformers' ``diffusion_gemma``): a causal encoder for what is settled, a bidirectional decoder for the canvas.

    Both are one network with one set of weights; the decoder alone has self-conditioning. There is no mask id: noise is uniformly
    random tokens. Pictures are not read.

    Raises:
        ValueError: an ``attn_implementation`` that does not take any mask.
    """

    no_adapters = (
        "encoder and decoder of DiffusionGemma are one set of weights, and an adapter would change one of them alone; leave "
        "peft_config out, and train the whole model"
    )

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for unread in (self.model.encoder.vision_tower, self.model.encoder.embed_vision):
            unread.requires_grad_(False)
        kind = self.config.text_config._attn_implementation
        if kind not in IMPLEMENTATIONS:
            raise ValueError(
                f"attn_implementation={kind!r} does not take the masks of diffusion: choose one of {IMPLEMENTATIONS}"
            )

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        written: Tensor | None = None,
        clean_ids: Tensor | None = None,
        self_conditioning_logits: Tensor | None = None,
        self_conditioning_mask: Tensor | None = None,
        select: Tensor | None = None,
        targets: Tensor | None = None,
        token_space: TokenSpace | None = None,
        temperature: float = 1.0,
        guidance_scale: Guidance | None = None,
        ref_logprobs: Tensor | None = None,
        draw: Draw | None = None,
        cache: PrefixKeys | None = None,
        counts: list[int] | None = None,
        coefficients: Tensor | None = None,
        labels: Tensor | None = None,
        loss_weights: Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedDiffusionOutput:
        """See ``LLaDAForMaskedDiffusion.forward`` for shapes, meanings and errors. What is different:

        Args:
            input_ids: ``[B, L]``, the prompt and the canvases behind it, noise where they have any.
            written: ``[B, L]`` bool, the positions of canvases; default those of ``labels``, else the last ``canvas_length``.
            clean_ids: ``[B, L]``, what the encoder reads; default ``input_ids``. With it all canvases of an answer are scored at once,
                each behind the clean ones before it.
            self_conditioning_logits: ``[B, m, V]``, or ``[B, m, W]`` over ``token_space``: those of the step before, for the m columns from the
                first canvas on, or those of ``cache``.
            self_conditioning_mask: ``[B]`` bool, the rows that read them; default all.
            cache: what the encoder has read before the canvas of its columns, which alone is computed.
            select: ``[B, L]`` bool; default all. Logits of the prompt, which nothing predicts, are 0; with a cache they are left out.
        """
        if kwargs:
            refuse_arguments(kwargs, TAKEN)
        check_attention_mask(attention_mask)
        if labels is not None:
            select, targets = labelled(labels, 0, select=select, targets=targets, draw=draw)
        check_together(input_ids, None, select, targets, draw)
        assert input_ids is not None
        if written is None:
            written = torch.zeros_like(input_ids, dtype=torch.bool)
            written[:, -self.config.canvas_length :] = True
        sight = Sight.of(*self._places(input_ids, attention_mask, position_ids), written, self.config.canvas_length)
        columns, keys = self._read(input_ids if clean_ids is None else clean_ids, sight, written, cache)
        rows = self.model.decoder(
            decoder_input_ids=input_ids[:, columns],
            self_conditioning_logits=self._whole(self_conditioning_logits, token_space),
            self_conditioning_mask=self_conditioning_mask,
            decoder_attention_mask=self._masks(
                lambda window: sight.decoder(window, columns, slice(0, keys.get_seq_length()))
            ),
            decoder_position_ids=sight.position[:, columns],
            **{KEPT: keys},
        ).last_hidden_state
        if select is not None:
            rows = rows.flatten(0, 1)[places_of(select[:, columns], None if counts is None else sum(counts))]
        logits = self.capped(rows)
        if guidance_scale is not None:
            logits = combine_guidance(logits, guidance_scale)
        if select is None and cache is None:
            logits = torch.nn.functional.pad(logits, (0, 0, columns.start, 0))
        found = from_logits(logits, targets, token_space, temperature, ref_logprobs, draw, coefficients)
        if labels is None:
            return found
        return MaskedDiffusionOutput(loss=label_loss(found.logps, labels, loss_weights))

    def capped(self, rows: Tensor) -> Tensor:
        """fp32 logits ``[..., V]`` of hidden states, softly bounded."""
        with torch.autocast(rows.device.type, enabled=False):
            logits = self.lm_head(rows.to(self.lm_head.weight.dtype)).float()
            bound = self.config.text_config.final_logit_softcapping
            return bound * torch.tanh(logits / bound)

    def _whole(self, logits: Tensor | None, space: TokenSpace | None) -> Tensor | None:
        """``logits`` with a column for each id, because they are read as a mixture of all embeddings."""
        vocabulary = self.config.text_config.vocab_size
        if logits is None or space is None or logits.shape[-1] == vocabulary:
            return logits
        closed = torch.finfo(logits.dtype).min
        return torch.nn.functional.pad(logits, (space.start, vocabulary - space.stop), value=closed)

    def _places(
        self, ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Which tokens are real, and their positions, both ``[B, L]``."""
        real = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if position_ids is None:
            position_ids = logical_positions(attention_mask, ids.shape[1], ids.device)
        return real, position_ids.expand(ids.shape)

    def _read(self, ids: Tensor, sight: Sight, written: Tensor, cache: PrefixKeys | None) -> tuple[slice, PrefixKeys]:
        """The columns that the decoder computes, and what the encoder has made of ``ids``, read now or kept."""
        if cache is None:
            # The host waits here; without it every row would pay for the longest prompt.
            first = int(written.any(dim=0).int().argmax())
            cache, read = PrefixKeys(first, ids.shape[1]), slice(None)
        else:
            read = slice(0, cache.start)
        if not cache.layers:
            part = Sight(*(own[:, read] for own in sight))
            self.model.encoder.language_model(
                input_ids=ids[:, read],
                attention_mask=self._masks(part.encoder),
                position_ids=part.position,
                **{KEPT: cache},
            )
        return slice(cache.start, cache.stop), cache

    def _masks(self, seen: Any) -> dict[str, Tensor]:
        """``seen(window)`` for each kind of layer, as the attention of this model takes it."""
        text = self.config.text_config
        found = {"full_attention": seen(None), "sliding_attention": seen(text.sliding_window)}
        if text._attn_implementation == "sdpa":
            return found
        lowest = torch.finfo(self.dtype).min
        return {name: torch.zeros_like(own, dtype=self.dtype).masked_fill(~own, lowest) for name, own in found.items()}


TAKEN = tuple(list(inspect.signature(DiffusionGemmaForMaskedDiffusion.forward).parameters)[1:-1])
"""The names of what ``forward`` takes."""

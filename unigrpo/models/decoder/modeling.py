"""Decoders of transformers as masked-diffusion networks: their own layers, under a mask that is not causal.

Module names are those of transformers' ``...ForCausalLM``, and so the published key names.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import (
    LlamaModel,
    LlamaPreTrainedModel,
    Qwen2Model,
    Qwen2PreTrainedModel,
    Qwen3Model,
    Qwen3PreTrainedModel,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from ...types import Guidance, TokenSpace
from ..blocks import logical_positions, numbered
from ..cache import GrowingCache, KeyValueCache
from ..draw import Draw
from ..elsewhere import OpensElsewhere, label_loss, labelled
from ..forward import MaskedDiffusionOutput, check_together, combine_guidance, within_span
from ..head import VocabularyHead
from ..inherited import RefusedMethods, check_attention_mask, refuse_arguments
from ..placing import on_host, places_of
from .configuration import A2DLlamaConfig, A2DQwen2Config, A2DQwen3Config, DreamConfig
from .two_copies import lay_out


KEPT = "cache" if "cache" in inspect.signature(Qwen2DecoderLayer.forward).parameters else "past_key_values"
"""What layers of the installed transformers call the keys and values that are kept."""

IMPLEMENTATIONS = ("sdpa", "eager")
"""Attention that takes any mask, by its name in transformers."""


class MaskedDecoder(OpensElsewhere, RefusedMethods):
    """A mixin before a ``...PreTrainedModel`` of transformers, whose trunk ``trunk_class`` names: the whole forward contract.

    Raises:
        ValueError: an ``attn_implementation`` that does not take any mask.
    """

    trunk_class: ClassVar[Any] = None
    main_input_name = "input_ids"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        kind = self.config._attn_implementation  # type: ignore[attr-defined]
        if kind not in IMPLEMENTATIONS:
            raise ValueError(
                f"attn_implementation={kind!r} does not take the masks of diffusion: choose one of {IMPLEMENTATIONS}"
            )
        self.model = self.trunk_class(config)
        self.lm_head = VocabularyHead(config.hidden_size, config.vocab_size, bias=False)
        for layer in self.model.layers:
            # Without a mask, sdpa would make one.
            layer.self_attn.is_causal = False
        self.post_init()  # type: ignore[attr-defined]

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations are computed again: the name that peft asks by, and that transformers 5.24 deprecates."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())  # type: ignore[attr-defined]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        block_origin: Tensor | None = None,
        clean_ids: Tensor | None = None,
        select: Tensor | None = None,
        targets: Tensor | None = None,
        token_space: TokenSpace | None = None,
        temperature: float = 1.0,
        guidance_scale: Guidance | None = None,
        ref_logprobs: Tensor | None = None,
        draw: Draw | None = None,
        cache: KeyValueCache | GrowingCache | None = None,
        counts: list[int] | None = None,
        coefficients: Tensor | None = None,
        output_hidden_states: bool = False,
        labels: Tensor | None = None,
        loss_weights: Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedDiffusionOutput:
        """See ``LLaDAForMaskedDiffusion.forward`` for shapes, meanings and errors. What is different:

        Args:
            attention_mask: ``[B, L]``; padding is never attended.
            position_ids: ``[B, L]`` int64; default the number of real tokens before each, so that padding moves no row.
            block_origin: ``[B]`` int64, a position at which a block begins, of block-causal attention; default 0.
            clean_ids: ``[B, L]`` int64, what stands before the noise: each block of ``input_ids`` then sees itself and the blocks
                of ``clean_ids`` before it, all in one pass, see ``two_copies``.
        """
        if kwargs:
            refuse_arguments(kwargs, TAKEN)
        check_attention_mask(attention_mask)
        if labels is not None:
            shift = self.config.logit_shift  # type: ignore[attr-defined]
            select, targets = labelled(labels, shift, select=select, targets=targets, draw=draw)
        check_together(input_ids, inputs_embeds, select, targets, draw)
        if cache is not None and cache.span is not None:
            input_ids, inputs_embeds, select = within_span(cache, counts, input_ids, inputs_embeds, select)
        if clean_ids is None:
            embeds = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
            rows, states = self._trunk(embeds, attention_mask, position_ids, block_origin, cache, output_hidden_states)
        else:
            if input_ids is None or cache is not None or output_hidden_states:
                raise ValueError("clean_ids go with input_ids, without a cache and without output_hidden_states")
            rows, states = self._copies(input_ids, clean_ids, attention_mask, position_ids, block_origin, select), None
        if select is not None:
            rows = rows.flatten(0, 1)[places_of(select, None if counts is None else sum(counts))]
        rows = rows if guidance_scale is None else combine_guidance(rows, guidance_scale)
        scores = self.lm_head(rows, targets, token_space, temperature, ref_logprobs, draw, coefficients)
        if labels is not None:
            return MaskedDiffusionOutput(loss=label_loss(scores.logps, labels, loss_weights), hidden_states=states)
        if targets is None and draw is None:
            return MaskedDiffusionOutput(logits=scores, hidden_states=states)
        return MaskedDiffusionOutput(**scores._asdict(), hidden_states=states)

    def _trunk(
        self,
        embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        block_origin: Tensor | None,
        cache: KeyValueCache | GrowingCache | None,
        keep_states: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Final hidden states ``[B, m, d]`` and, when asked, the embeddings and every layer's output. m = L, or the cache's span."""
        if position_ids is None:
            length = embeds.shape[1] if cache is None or cache.span is None else cache.length
            position_ids = logical_positions(attention_mask, length, embeds.device)
        position_ids = position_ids[None] if position_ids.dim() == 1 else position_ids
        mask = self._seen(attention_mask, position_ids, block_origin, cache, embeds.dtype)
        own = position_ids if cache is None else cache.restrict(position_ids)
        return self._through(embeds, mask, own, cache, keep_states)

    def _copies(
        self,
        noisy_ids: Tensor,
        clean_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        block_origin: Tensor | None,
        select: Tensor | None,
    ) -> Tensor:
        """Final hidden states ``[B, L, d]`` of the noisy copy, at the selected positions."""
        config = self.config  # type: ignore[attr-defined]
        if config.attention != "block_causal":
            raise ValueError(
                f"clean_ids are for attention='block_causal', and this is {config.attention!r}: leave them out"
            )
        if position_ids is None:
            position_ids = logical_positions(attention_mask, noisy_ids.shape[1], noisy_ids.device)
        blocks = numbered(position_ids, 0 if block_origin is None else block_origin[:, None], config.block_size)
        shift, width = config.logit_shift, 6 * config.hidden_size
        rows = (noisy_ids, clean_ids, attention_mask, position_ids, blocks, select)
        columns, place = lay_out(*rows, shift=shift, width=width)
        embeds = self.model.embed_tokens(columns.ids)
        hidden, _ = self._through(embeds, self._mask(columns.seen(), embeds.dtype), columns.positions)
        return hidden.flatten(0, 1)[place]

    def _through(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        position_ids: Tensor,
        cache: KeyValueCache | GrowingCache | None = None,
        keep_states: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """``hidden [B, m, d]`` after all layers under a mask ``[B, 1, m or 1, L]``, and what ``_trunk`` keeps of them."""
        own = position_ids[None] if position_ids.dim() == 1 else position_ids
        layers, states = self.model.layers, []
        shared = {"position_embeddings": self.model.rotary_emb(hidden, own), "position_ids": own}
        kept = [None] * len(layers) if cache is None else cache.layers(len(layers))
        for layer, keys in zip(layers, kept, strict=True):
            if keep_states:
                states.append(hidden)
            hidden = layer(hidden, attention_mask=mask, **{KEPT: keys}, **shared)
        hidden = self.model.norm(hidden)
        return hidden, (*states, hidden) if keep_states else None

    def _seen(
        self,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        block_origin: Tensor | None,
        cache: KeyValueCache | GrowingCache | None,
        dtype: torch.dtype,
    ) -> Tensor | None:
        """Which keys the computed columns attend to, ``[B, 1, m or 1, L]``; None = all, so that the fastest kernels stay available.

        On a device nobody looks for padding, because the host would have to wait: callers leave a mask of ones out.
        """
        config, keys = self.config, attention_mask  # type: ignore[attr-defined]
        if keys is not None and on_host(keys) and not torch.compiler.is_compiling() and bool(keys.all()):
            keys = None
        seen = None if keys is None else keys.bool()[:, None, :]
        if config.attention == "block_causal":
            block = numbered(position_ids, 0 if block_origin is None else block_origin[:, None], config.block_size)
            places = torch.arange(block.shape[1], device=block.device)[None]
            own, at = (block, places) if cache is None else (cache.restrict(block), cache.restrict(places))
            earlier = block[:, None, :] <= own[:, :, None]
            seen = earlier if seen is None else earlier & seen
            # Padding sees itself: attention without any key is not a number.
            seen = seen | (places[:, None, :] == at[:, :, None])
        return None if seen is None else self._mask(seen, dtype)

    def _mask(self, seen: Tensor, dtype: torch.dtype) -> Tensor:
        """``seen [B, m or 1, L]`` as the attention reads it, ``[B, 1, m or 1, L]``."""
        if self.config._attn_implementation == "eager":  # type: ignore[attr-defined]
            return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
        return seen[:, None]


TAKEN = tuple(list(inspect.signature(MaskedDecoder.forward).parameters)[1:-1])
"""The names of what ``forward`` takes."""


class DreamForMaskedDiffusion(MaskedDecoder, Qwen2PreTrainedModel):
    """Dream, Dream-Coder and DiffuCoder."""

    config_class = DreamConfig
    trunk_class = Qwen2Model


class A2DQwen2ForMaskedDiffusion(MaskedDecoder, Qwen2PreTrainedModel):
    """A Qwen2 turned into a masked-diffusion model."""

    config_class = A2DQwen2Config
    trunk_class = Qwen2Model


class A2DQwen3ForMaskedDiffusion(MaskedDecoder, Qwen3PreTrainedModel):
    """A Qwen3 turned into a masked-diffusion model."""

    config_class = A2DQwen3Config
    trunk_class = Qwen3Model


class A2DLlamaForMaskedDiffusion(MaskedDecoder, LlamaPreTrainedModel):
    """A Llama turned into a masked-diffusion model."""

    config_class = A2DLlamaConfig
    trunk_class = LlamaModel

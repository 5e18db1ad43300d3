"""The LLaDA backbone, shared by MMaDA: a bidirectional Llama-style transformer that predicts masked tokens.

Module names are the published checkpoint's key names (``model.transformer.blocks.N.q_proj`` ...), so weights and
adapters need no renaming. LLaDA: arXiv 2502.09992. MMaDA: arXiv 2505.15809.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization
from transformers.modeling_layers import GradientCheckpointingLayer

from ...types import Guidance, TokenSpace
from ..cache import KeyValueCache, LayerCache
from ..draw import Draw, TokenScores
from ..elsewhere import OpensElsewhere, label_loss, labelled
from ..forward import Ask, MaskedDiffusionOutput, answered, check_together, combine_guidance, selected_by, within_span
from ..head import VocabularyHead
from ..inherited import RefusedMethods, check_attention_mask, refuse_arguments
from ..placing import on_host, places_of
from .configuration import LLaDAConfig
from .recomputed import computed_again, rms_norm, swiglu


class RMSNorm(nn.Module):
    """Root-mean-square norm: statistics in fp32, cast back first, weight applied after, as the checkpoints expect."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        return rms_norm(hidden, self.weight, self.eps)


def rotary_angles(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin ``[..., 1, L, head_dim]`` fp32 of rotate-half RoPE for ``positions [..., L]``."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions.float()[..., None] * (1.0 / theta**exponents)
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(-3)
    return angles.cos(), angles.sin()


def apply_rotary(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``[B, heads, L, head_dim]`` in fp32 and cast back."""
    with torch.autocast(states.device.type, enabled=False):
        values = states.float()
        first, second = values.chunk(2, dim=-1)
        return (values * cos + torch.cat([-second, first], dim=-1) * sin).to(states.dtype)


def positions_of(select: Tensor, counts: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """The True positions of ``select [B, L]``, packed to the left: indices ``[B, q]`` and which of them count, flat ``[n]``.

    q is the longest row's number, at least 1; shorter rows are filled up with other positions. ``counts`` are the numbers
    of the rows, where the host knows them.
    """
    found = select.sum(dim=1)
    longest = max(int(found.max()) if counts is None else max(counts), 1)
    index = (~select).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
    counted = torch.arange(longest, device=select.device) < found[:, None]
    return index, places_of(counted, None if counts is None else sum(counts))


class LLaDABlock(GradientCheckpointingLayer):
    """Pre-norm attention and gated MLP. Attention is bidirectional, always."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        size, head_dim = config.d_model, config.d_model // config.n_heads
        self.head_dim, self.grouped = head_dim, config.n_kv_heads != config.n_heads
        self.attn_norm = RMSNorm(size, config.rms_norm_eps)
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, config.n_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(size, config.n_kv_heads * head_dim, bias=False)
        self.attn_out = nn.Linear(size, size, bias=False)
        self.ff_norm = RMSNorm(size, config.rms_norm_eps)
        self.ff_proj = nn.Linear(size, config.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(size, config.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(config.mlp_hidden_size, size, bias=False)
        self.attn_out.into_residual = self.ff_out.into_residual = True

    def _heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        key_mask: Tensor | None,
        cache: LayerCache | None = None,
        queries: Tensor | None = None,
    ) -> Tensor:
        """``hidden [B, m, d]`` of all L positions or of the cache's span -> the same, or ``[B, q, d]`` of ``queries``.

        ``key_mask [B, 1, 1, L]`` bool, True = attended, or None. ``queries [B, q]`` are the positions whose output is wanted.
        """
        normed = self.attn_norm(hidden)
        with computed_again(normed):
            key = apply_rotary(self._heads(self.k_proj(normed)), cos, sin)
            value = self._heads(self.v_proj(normed))
            if cache is not None:
                key, value = cache.update(key, value)
            if queries is not None:
                at = queries[:, :, None]
                hidden, normed = (states.gather(1, at.expand(-1, -1, states.shape[-1])) for states in (hidden, normed))
                at = at[:, None].expand(-1, 1, -1, cos.shape[-1])
                cos, sin = (own.expand(at.shape[0], 1, *cos.shape[-2:]).gather(2, at) for own in (cos, sin))
            query = apply_rotary(self._heads(self.q_proj(normed)), cos, sin)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=key_mask, enable_gqa=self.grouped)
        hidden = hidden + self.attn_out(attended.transpose(1, 2).flatten(2))
        normed = self.ff_norm(hidden)
        with computed_again(normed):
            gated = swiglu(self.ff_proj(normed), self.up_proj(normed))
        with computed_again(gated):
            return hidden + self.ff_out(gated)


class LLaDATrunk(nn.Module):
    """Embeddings, blocks and final norm. Holds the head too, because the checkpoint keeps it under this prefix."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.d_model),
                "blocks": nn.ModuleList(LLaDABlock(config) for _ in range(config.n_layers)),
                "ln_f": RMSNorm(config.d_model, config.rms_norm_eps),
                "ff_out": VocabularyHead(config.d_model, config.vocab_size, bias=False),
            }
        )

    def forward(
        self,
        embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        select: Tensor | None = None,
        cache: KeyValueCache | None = None,
        keep_states: bool = False,
        counts: list[int] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Final hidden states ``[B, m, d]``, or ``[n, d]`` of the positions that ``select [B, m]`` marks, row-major; and, when
        asked, the embeddings and every block's output but the last's. m = L, or the cache's span of ``embeds [B, m, d]``.

        The last block reads every position and computes the selected ones alone.
        """
        columns = slice(None) if cache is None else cache.columns()
        if position_ids is None:
            length = embeds.shape[1] if cache is None or cache.span is None else cache.length
            position_ids = torch.arange(length, device=embeds.device)
        head_dim = self.config.d_model // self.config.n_heads
        cos, sin = rotary_angles(position_ids[..., columns], head_dim, self.config.rope_theta)
        key_mask = self._key_mask(attention_mask)
        *blocks, last = self.transformer["blocks"]
        *kept, kept_last = [None] * (len(blocks) + 1) if cache is None else cache.layers(len(blocks) + 1)
        hidden, states = embeds, []
        for block, own in zip(blocks, kept, strict=True):
            if keep_states:
                states.append(hidden)
            hidden = block(hidden, cos, sin, key_mask, own)
        if select is not None and not keep_states:
            queries, counted = positions_of(select, counts)
            hidden = last(hidden, cos, sin, key_mask, kept_last, queries).flatten(0, 1)[counted]
            return self.transformer["ln_f"](hidden), None
        states.append(hidden)
        hidden = self.transformer["ln_f"](last(hidden, cos, sin, key_mask, kept_last))
        return hidden if select is None else hidden[select], (*states, hidden) if keep_states else None

    def _key_mask(self, attention_mask: Tensor | None) -> Tensor | None:
        """Without padding there is no mask at all, so that the fastest attention kernels stay available.

        On a device nobody looks for padding, because the host would have to wait: callers leave a mask of ones out.
        """
        if attention_mask is None or self.config.attn_mask_mode == "none":
            return None
        if on_host(attention_mask) and not torch.compiler.is_compiling() and bool(attention_mask.all()):
            return None
        return attention_mask.bool()[:, None, None, :]


class LLaDAForMaskedDiffusion(OpensElsewhere, RefusedMethods, PreTrainedModel):
    """LLaDA with the whole forward contract: trunk, row selection, head and log-softmax inside ``forward``."""

    config_class = LLaDAConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations are computed again: the name that peft asks by, and that transformers 5.24 deprecates."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    _no_split_modules = ["LLaDABlock"]
    _tied_weights_keys = {"model.transformer.ff_out.weight": "model.transformer.wte.weight"}
    _supports_sdpa = True

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        self.model = LLaDATrunk(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.transformer["wte"]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.transformer["wte"] = value

    def get_output_embeddings(self) -> nn.Module:
        return self.model.transformer["ff_out"]

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.model.transformer["ff_out"] = value

    def _init_weights(self, module: nn.Module) -> None:
        """Normal, with the standard deviations of OLMo's ``init_fn`` "mitchell" (without its depth) or "full_megatron".

        Not truncated: that costs minutes at 8B and changes nothing here.
        """
        if isinstance(module, RMSNorm):
            initialization.ones_(module.weight)
        elif isinstance(module, nn.Linear | nn.Embedding):
            initialization.normal_(module.weight, mean=0.0, std=self._init_std(module))

    def _init_std(self, module: nn.Linear | nn.Embedding) -> float:
        config, head = self.config, module is self.get_output_embeddings()
        if isinstance(module, nn.Embedding) and config.emb_init_std is not None:
            return config.emb_init_std
        if config.init_fn == "mitchell" or (config.init_fn == "full_megatron" and head):
            return 1.0 / math.sqrt(module.in_features if isinstance(module, nn.Linear) else config.d_model)
        if config.init_fn == "full_megatron" and getattr(module, "into_residual", False):
            return config.init_std / math.sqrt(2 * config.n_layers)
        return config.init_std

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        select: Tensor | None = None,
        targets: Tensor | None = None,
        token_space: TokenSpace | None = None,
        temperature: float = 1.0,
        guidance_scale: Guidance | None = None,
        ref_logprobs: Tensor | None = None,
        draw: Draw | None = None,
        cache: KeyValueCache | None = None,
        counts: list[int] | None = None,
        coefficients: Tensor | None = None,
        output_hidden_states: bool = False,
        labels: Tensor | None = None,
        loss_weights: Tensor | None = None,
        asks: Sequence[Ask] | None = None,
        **kwargs,
    ) -> MaskedDiffusionOutput:
        """Logits of chosen rows over a chosen vocabulary range, log-probabilities of given tokens, tokens drawn, or a loss.

        Args:
            input_ids: ``[B, L]`` int64 (or ``inputs_embeds [B, L, d]``).
            attention_mask: ``[B, L]`` bool or whole numbers, 1 = real token. Padding keys are never attended in ``attn_mask_mode="bool"``
                and attended like text in ``"none"``; no value turns the model causal.
            position_ids: ``[B, L]`` int64; default 0..L-1 from the left edge, left padding included.
            select: ``[B, L]`` bool, the n rows to run the head on, row-major; None = all. ``asks`` select for several readers.
            targets: ``[n]`` int64, tokens whose log-probability is wanted; needs ``select``.
            token_space: the vocabulary range of logits and normalisation; None = the whole vocabulary.
            temperature: divides the logits.
            guidance_scale: s of classifier-free guidance, or the pair of ``Guidance``; the batch is then ``[conditional; unconditional]``, a
                twin for each scale, with equal ``select`` counts, rows are combined before the linear head, and n is that of one part.
            ref_logprobs: ``[n, W]`` fp32 log-probabilities of a reference over ``token_space``, for the exact KL.
            draw: how to choose a token for each selected row; needs ``select``.
            cache: keys and values to fill or to use; its span says which columns are computed. Inputs stay ``[B, L]``.
            counts: selected positions of each row, where the host knows them: it then does not wait for the device.
            coefficients: ``[n]`` fp32, factors of the targets' log-probabilities in a linear loss; ``total``, their sum, alone has a gradient.
            labels: ``[B, L]`` int64, the true tokens of ``input_ids``, which has been noised already; -100 = not scored. They
                belong to their own position, not to the one before. ``MaskedDenoisingCollator`` makes both.
            loss_weights: ``[B, L]``, the coefficient of each label's -log p; the loss is then their sum over B.

        Returns:
            fp32 ``logits [B, L, W]``, or ``[n, W]`` with ``select``; or what is asked for, as in ``MaskedDiffusionOutput``.

        Raises:
            ValueError: arguments that do not go together, a mask that is none, or a selected row outside the cache's span.
            TypeError: an argument that it does not take.
        """
        refuse_arguments(kwargs, TAKEN)
        check_attention_mask(attention_mask)
        if labels is not None:
            select, targets = labelled(labels, 0, select=select, targets=targets, draw=draw)
        check_together(input_ids, inputs_embeds, select, targets, draw)
        select = select if asks is None else selected_by(asks)
        if cache is not None and cache.span is not None:
            input_ids, inputs_embeds, select = within_span(cache, counts, input_ids, inputs_embeds, select)
        embeds = self.model.transformer["wte"](input_ids) if inputs_embeds is None else inputs_embeds
        rows, states = self.model(embeds, attention_mask, position_ids, select, cache, output_hidden_states, counts)
        head = self.model.transformer["ff_out"]
        if asks is not None:
            return MaskedDiffusionOutput(answers=answered(asks, rows, lambda own, space: head(own, token_space=space)))
        rows = rows if guidance_scale is None else combine_guidance(rows, guidance_scale)
        output = outcome(head(rows, targets, token_space, temperature, ref_logprobs, draw, coefficients))
        if labels is not None:
            output = MaskedDiffusionOutput(loss=label_loss(output.logps, labels, loss_weights))
        output.hidden_states = states
        return output


def outcome(scores: Tensor | TokenScores) -> MaskedDiffusionOutput:
    """What the head says, logits or scores of tokens, as a forward returns it."""
    return MaskedDiffusionOutput(**({"logits": scores} if isinstance(scores, Tensor) else scores._asdict()))


TAKEN = tuple(list(inspect.signature(LLaDAForMaskedDiffusion.forward).parameters)[1:-1])
"""The names of what ``forward`` takes."""

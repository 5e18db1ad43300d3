"""LLaDA2's published tensors and those of transformers' Glm4Moe layers: queries, keys and values fused, experts one by one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    revert_weight_conversion,
)


class SplitHeads(ConversionOps):
    """Rows of the fused projection to those of queries, keys and values."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: Any, target_patterns: list[str], **known: Any
    ) -> dict:
        """One tensor ``[(heads + 2 kv_heads) head_dim, d]`` to three."""
        (fused,) = input_dict.values()
        config = known["config"]
        rows = [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads]
        parts = (fused[0] if isinstance(fused, list) else fused).split([own * config.head_dim for own in rows])
        return {name: part.contiguous() for name, part in zip(target_patterns, parts, strict=True)}

    @property
    def reverse_op(self) -> ConversionOps:
        return JoinHeads(dim=0)


class JoinHeads(Concatenate):
    """The way back."""

    @property
    def reverse_op(self) -> ConversionOps:
        return SplitHeads()


QKV = r"\.attention\.query_key_value\.weight"


def conversions() -> list[WeightRenaming | WeightConverter]:
    """From published names to those of the layers; transformers goes back by itself when it saves."""
    projections = [rf"\.self_attn\.{part}_proj\.weight" for part in "qkv"]
    # In these a star stands for a number, so that the dots are bare.
    gate_and_up = [f"mlp.experts.*.{part}_proj.weight" for part in ("gate", "up")]
    return [
        WeightRenaming(r"model\.word_embeddings\.", r"model\.embed_tokens\."),
        WeightRenaming(r"\.attention\.dense\.", r"\.self_attn\.o_proj\."),
        WeightRenaming(r"\.attention\.query_layernorm\.", r"\.self_attn\.q_norm\."),
        WeightRenaming(r"\.attention\.key_layernorm\.", r"\.self_attn\.k_norm\."),
        WeightRenaming(r"\.mlp\.gate\.expert_bias", r"\.mlp\.gate\.e_score_correction_bias"),
        WeightConverter(QKV, projections, [SplitHeads()]),
        WeightConverter(gate_and_up, "mlp.experts.gate_up_proj", [MergeModulelist(dim=0), Concatenate(dim=1)]),
        WeightConverter("mlp.experts.*.down_proj.weight", "mlp.experts.down_proj", [MergeModulelist(dim=0)]),
    ]


def of_layers(config: Any, published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file under the names of the layers."""
    back = [own.reverse_transform() for own in reversed(conversions())]
    return revert_weight_conversion(SimpleNamespace(_weight_conversions=back, config=config), published)


register_checkpoint_conversion_mapping("llada2_moe", conversions(), overwrite=True)

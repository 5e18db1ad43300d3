"""Configuration of LLaDA2.0 and LLaDA2.1, under its published field names."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from ..decoder.configuration import MaskedDecoderFields


MASK_OF = {157184: 156895}
"""The mask id by the size of the vocabulary. Published configurations have none: it is a default of the public sampler."""

ONLY = {
    "score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "use_qk_norm": True,
    "use_rmsnorm": True,
    "use_bias": False,
    "use_qkv_bias": False,
    "norm_head": False,
    "norm_softmax": False,
    "using_split_qkv_in_self_attention": False,
    "embedding_dropout": 0.0,
    "output_dropout": 0.0,
}
"""Switches of the public code that every published checkpoint has in this position; the network has no other."""


class LLaDA2MoeConfig(MaskedDecoderFields, PretrainedConfig):
    """LLaDA2.0-mini and LLaDA2.1-mini (arXiv 2512.15745). Sizes are theirs.

    Attributes:
        num_experts, num_shared_experts, num_experts_per_tok: experts of a layer, those that see every token, and those that a
            token is routed to beside them.
        n_group, topk_group: experts are chosen within the best groups.
        routed_scaling_factor: what the routed experts' weights, which sum to one, are multiplied with.
        first_k_dense_replace: layers before the first one with experts.
        rotary_dim: leading entries of a head that are rotated, ``partial_rotary_factor`` of ``head_dim``.

    Raises:
        ValueError: a switch of the public code in a position that no published checkpoint has.
    """

    model_type = "llada2_moe"
    attribute_map = {
        "num_local_experts": "num_experts",
        "n_routed_experts": "num_experts",
        "n_shared_experts": "num_shared_experts",
        "attention_bias": "use_qkv_bias",
    }

    vocab_size: int = 157184
    hidden_size: int = 2048
    intermediate_size: int = 5120
    num_hidden_layers: int = 20
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0
    rope_theta: float | int = 600000
    rope_parameters: dict | None = None
    partial_rotary_factor: float = 0.5
    rotary_dim: int | None = None
    num_experts: int = 256
    num_shared_experts: int = 1
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 512
    n_group: int = 8
    topk_group: int = 4
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    first_k_dense_replace: int = 1
    use_qk_norm: bool = True
    use_qkv_bias: bool = False
    tie_word_embeddings: bool = False
    use_cache: bool = False
    pad_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    attention: str = "block_causal"
    block_size: int | None = 32

    def __post_init__(self, **kwargs: Any) -> None:
        for name, value in ONLY.items():
            found = kwargs.get(name, getattr(self, name, value))
            if found != value:
                raise ValueError(f"{name}={found!r} is not implemented for {self.model_type}: {value!r} is")
        if self.mask_token_id is None:
            self.mask_token_id = MASK_OF.get(self.vocab_size)
        if self.rotary_dim not in (None, int(self.head_dim * self.partial_rotary_factor)):
            raise ValueError(
                f"rotary_dim={self.rotary_dim} is not partial_rotary_factor={self.partial_rotary_factor} of head_dim="
                f"{self.head_dim}: set one of the two right"
            )
        super().__post_init__(**kwargs)

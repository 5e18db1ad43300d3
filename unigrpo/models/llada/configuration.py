"""Configuration of LLaDA checkpoints (GSAI-ML/LLaDA-8B-*), and the base of MMaDA's."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


FIXED_FIELDS: dict[str, Any] = {
    "activation_type": "silu",
    "alibi": False,
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "embedding_dropout": 0.0,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "residual_dropout": 0.0,
    "rope": True,
    "rope_full_precision": True,
    "scale_logits": False,
}
"""Fields of the published format with the one value that published checkpoints use and this code implements."""

PASSIVE_FIELDS: dict[str, Any] = {
    "alibi_bias_max": 8.0,
    "attention_layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "flash_attention": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "layer_norm_with_affine": True,
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "precision": "amp_bf16",
    "use_cache": False,
}
"""Fields that nothing here reads; they are kept because the public code fails on a config.json without them."""

PUBLISHED_BOS = 126080
"""Published config files do not name the bos id."""

ATTN_MASK_MODES = ("bool", "none")


class LLaDAConfig(PretrainedConfig):
    """Fields and names of the published ``config.json``; defaults are LLaDA-8B's.

    Beside the published ones: ``attn_mask_mode``, ``"bool"`` (padding is never attended) or ``"none"`` (padding is
    attended like text, as when the released checkpoints were trained), and ``emb_init_std``, the standard deviation of a fresh
    embedding (None = what ``init_fn`` says). ``init_fn`` is ``"normal"``, ``"mitchell"`` or ``"full_megatron"``, as in OLMo, from which
    the published code comes. ``weight_tying`` (iLLaDA) is what transformers calls ``tie_word_embeddings``.

    Raises:
        ValueError: a field asks for a variant of the architecture that no published checkpoint uses.
    """

    model_type = "llada"
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "mlp_hidden_size",
        "max_position_embeddings": "max_sequence_length",
    }

    def __init__(
        self,
        d_model: int = 4096,
        n_layers: int = 32,
        n_heads: int = 32,
        n_kv_heads: int | None = 32,
        mlp_hidden_size: int = 12288,
        vocab_size: int = 126464,
        embedding_size: int | None = None,
        max_sequence_length: int = 4096,
        rms_norm_eps: float = 1e-5,
        rope_theta: float = 500000.0,
        init_fn: str = "mitchell",
        init_std: float = 0.02,
        emb_init_std: float | None = None,
        mask_token_id: int = 126336,
        eos_token_id: int = 126081,
        pad_token_id: int = 126081,
        bos_token_id: int | None = None,
        tie_word_embeddings: bool = False,
        weight_tying: bool = False,
        attn_mask_mode: str = "bool",
        **kwargs: Any,
    ) -> None:
        self.d_model = d_model
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads or n_heads
        self.mlp_hidden_size = mlp_hidden_size
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size or vocab_size
        self.max_sequence_length = max_sequence_length
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.init_fn = init_fn
        self.init_std = init_std
        self.emb_init_std = emb_init_std
        self.mask_token_id = mask_token_id
        self.attn_mask_mode = attn_mask_mode
        self.weight_tying = tied = weight_tying or tie_word_embeddings
        for name, default in {**FIXED_FIELDS, **PASSIVE_FIELDS}.items():
            setattr(self, name, kwargs.pop(name, default))
        if bos_token_id is None and vocab_size > PUBLISHED_BOS:
            bos_token_id = PUBLISHED_BOS
        super().__init__(
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            tie_word_embeddings=tied,
            **kwargs,
        )
        self._check()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """Overrides given to ``from_pretrained`` are constructor arguments here, so that they are checked like fields."""
        overrides = {name: value for name, value in kwargs.items() if name in cls().to_dict() and name != "dtype"}
        return super().from_dict({**config_dict, **overrides}, **kwargs)

    def _check(self) -> None:
        for name, value in FIXED_FIELDS.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{type(self).__name__}.{name}={getattr(self, name)!r} is not implemented: published "
                    f"checkpoints use {value!r}"
                )
        if self.attn_mask_mode not in ATTN_MASK_MODES:
            raise ValueError(f"attn_mask_mode={self.attn_mask_mode!r}: choose one of {ATTN_MASK_MODES}")
        if self.d_model % self.n_heads or self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"d_model={self.d_model} must be a multiple of n_heads={self.n_heads}, and that of "
                f"n_kv_heads={self.n_kv_heads}"
            )
        for name in ("mask_token_id", "eos_token_id", "pad_token_id"):
            own = getattr(self, name)
            if isinstance(own, int) and not 0 <= own < self.vocab_size:
                raise ValueError(
                    f"{name}={own} lies outside the vocabulary of {self.vocab_size}; set it to a token's id"
                )
        if self.embedding_size != self.vocab_size:
            raise ValueError(f"embedding_size={self.embedding_size} differs from vocab_size={self.vocab_size}")

    def to_diff_dict(self) -> dict[str, Any]:
        """Every field of the format, which the public code needs in the file. ``torch_dtype`` is its dtype key."""
        output = super().to_diff_dict()
        if output.get("dtype") is not None:
            output["torch_dtype"] = output["dtype"]
        return output

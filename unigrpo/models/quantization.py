"""Base weights in 8 or 4 bits under an adapter (QLoRA, arXiv 2305.14314), with bitsandbytes.

The vocabulary's two matrices keep their precision: an embedding is no linear layer, and the head is of a class of its own,
which bitsandbytes does not replace. Of what ``peft.prepare_model_for_kbit_training`` does, nothing is left to do: adapters
freeze the base, norms compute in fp32 whatever their weights are, and so does the head, chunk by chunk. Its cast of all
other weights to fp32 would double the memory of head and embedding, 4.4 GB at 8B, and change no result.

On a CPU, 8-bit layers compute in whole numbers in eval mode and in floats in train mode, so a ratio of the first update is
1 up to that rounding only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from ..errors import check_choice


QUANT_TYPES = ("nf4", "fp4")
TRAINED_ALONE = (
    "weights in 8 or 4 bits (load_in_8bit, load_in_4bit, quantization_config) cannot be trained themselves: give lora "
    "(peft_config) to train an adapter on them, or load them as they are"
)


def quantization_config(
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    bnb_4bit_quant_type: str = "nf4",
    use_bnb_nested_quant: bool = False,
) -> BitsAndBytesConfig | None:
    """What ``from_pretrained`` wants, from TRL's names; None for weights as they are. 4-bit layers compute in bf16.

    Raises:
        ValueError: both widths, a 4-bit key without 4 bits, or no bitsandbytes.
    """
    check_choice("bnb_4bit_quant_type", bnb_4bit_quant_type, QUANT_TYPES)
    if load_in_8bit and load_in_4bit:
        raise ValueError("load_in_8bit=True with load_in_4bit=True: give one of the two")
    if not load_in_4bit and (use_bnb_nested_quant or bnb_4bit_quant_type != "nf4"):
        raise ValueError(
            f"bnb_4bit_quant_type={bnb_4bit_quant_type!r} and use_bnb_nested_quant={use_bnb_nested_quant} need "
            "load_in_4bit=True"
        )
    if not load_in_8bit and not load_in_4bit:
        return None
    _check_package()
    if load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_type=bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=use_bnb_nested_quant,
    )


def check_quantization(init_kwargs: dict[str, Any] | None, adapters: bool) -> None:
    """Raises ``ValueError`` before weights are loaded that could not be loaded or trained."""
    asked = (init_kwargs or {}).get("quantization_config")
    if asked is None:
        return
    if not adapters:
        raise ValueError(TRAINED_ALONE)
    asked = asked if isinstance(asked, dict) else vars(asked)
    if any(asked.get(key) for key in ("load_in_8bit", "load_in_4bit", "_load_in_8bit", "_load_in_4bit")):
        _check_package()


def prepare_quantised(model: nn.Module, adapters: bool) -> None:
    """Makes a quantised module fit for training, also one whose checkpoint was saved so; others stay as they are.

    Raises:
        ValueError: no adapters.
    """
    if not getattr(model, "is_quantized", False):
        return
    if not adapters:
        raise ValueError(TRAINED_ALONE)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # In eval mode on such CPUs a 4-bit layer repacks its weight, for a kernel that has no backward: after the
            # first rollout no gradient would pass through the layer.
            module.support_avx512bf16_for_cpu = False


def _check_package() -> None:
    if not is_bitsandbytes_available():
        raise ValueError(
            "weights in 8 or 4 bits need bitsandbytes, 0.48 or newer, which is not installed: "
            'pip install "unigrpo[quantization]"'
        )

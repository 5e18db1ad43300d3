"""What LLaDA2 says about itself."""

from __future__ import annotations

from ..decoder.policy import DecoderPolicy
from .modeling import LLaDA2MoeForMaskedDiffusion


class LLaDA2MoePolicy(DecoderPolicy):
    """LLaDA2.0-mini and LLaDA2.1-mini; an answer ends at the end of the text or of the role, by the tokenizer."""

    model_class = LLaDA2MoeForMaskedDiffusion

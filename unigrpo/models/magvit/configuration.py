"""Shape of a MAGVIT-v2 image tokenizer."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


MAX_BITS = 24
"""Of a code. Every code has its row in a table: at 24 bits that is a gigabyte and a half."""


class MagvitV2Config(PreTrainedConfig):
    """The defaults are showlab/magvitv2: 8192 codes, 16 pixels a code, 95,387,004 parameters.

    Args:
        channels: width that the multipliers multiply.
        encoder_multipliers, decoder_multipliers: width of each resolution, finest first; one list entry a resolution.
        encoder_blocks, decoder_blocks: residual blocks of each resolution, finest first.
        code_bits: bits of a code; the codebook has ``2 ** code_bits`` entries.
        num_groups: groups of each normalisation; must divide every width.
    """

    model_type = "magvitv2"

    def __init__(
        self,
        channels: int = 128,
        encoder_multipliers: tuple[int, ...] | list[int] = (1, 2, 2, 4, 4),
        encoder_blocks: tuple[int, ...] | list[int] = (4, 3, 4, 3, 4),
        decoder_multipliers: tuple[int, ...] | list[int] = (1, 1, 2, 2, 4),
        decoder_blocks: tuple[int, ...] | list[int] = (4, 4, 3, 4, 3),
        code_bits: int = 13,
        num_groups: int = 32,
        **kwargs: Any,
    ) -> None:
        if not 1 <= code_bits <= MAX_BITS:
            raise ValueError(
                f"code_bits={code_bits} must be between 1 and {MAX_BITS}: a codebook has 2 ** code_bits codes"
            )
        self.channels, self.code_bits, self.num_groups = channels, code_bits, num_groups
        self.encoder_multipliers, self.encoder_blocks = list(encoder_multipliers), list(encoder_blocks)
        self.decoder_multipliers, self.decoder_blocks = list(decoder_multipliers), list(decoder_blocks)
        lists = (self.encoder_multipliers, self.encoder_blocks, self.decoder_multipliers, self.decoder_blocks)
        if len({len(values) for values in lists}) != 1:
            raise ValueError(f"the multipliers and blocks of encoder and decoder must be equally long, got {lists}")
        for multiplier in {*self.encoder_multipliers, *self.decoder_multipliers}:
            if channels * multiplier % num_groups:
                raise ValueError(f"num_groups={num_groups} does not divide the width {channels} x {multiplier}")
        super().__init__(**kwargs)

    @property
    def codebook_size(self) -> int:
        return 2**self.code_bits

    @property
    def factor(self) -> int:
        """Pixels along one side of a code."""
        return 2 ** (len(self.encoder_multipliers) - 1)

"""MMaDA-Parallel-M: MMaDA's network, trained on a text and a picture that are written together (arXiv 2511.09611)."""

from __future__ import annotations

from ..mmada.modeling import MMaDAForMaskedDiffusion
from .configuration import MMaDAParallelConfig


class MMaDAParallelForMaskedDiffusion(MMaDAForMaskedDiffusion):
    """Loads and saves the published layout, which is MMaDA's."""

    config_class = MMaDAParallelConfig

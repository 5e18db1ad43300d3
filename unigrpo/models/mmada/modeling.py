"""MMaDA: the LLaDA backbone with 8192 image codes appended to its vocabulary (arXiv 2505.15809)."""

from __future__ import annotations

from ..llada.modeling import LLaDAForMaskedDiffusion
from .configuration import MMaDAConfig


class MMaDAForMaskedDiffusion(LLaDAForMaskedDiffusion):
    """Loads and saves the published layout; 291 tensors and 8,082,690,048 parameters at 8B size."""

    config_class = MMaDAConfig

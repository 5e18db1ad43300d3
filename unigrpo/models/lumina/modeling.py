"""Lumina-DiMOO: the LLaDA backbone with 8192 image codes appended to its vocabulary (arXiv 2510.06308)."""

from __future__ import annotations

from ..llada.modeling import LLaDAForMaskedDiffusion
from .configuration import LuminaConfig


class LuminaForMaskedDiffusion(LLaDAForMaskedDiffusion):
    """Loads and saves the published layout; 291 tensors."""

    config_class = LuminaConfig

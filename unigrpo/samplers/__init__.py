"""Samplers fill a canvas. ``SAMPLERS`` is the one place to add one."""

from .semi_autoregressive import SemiAutoregressive


SAMPLERS = {"semi_autoregressive": SemiAutoregressive}

__all__ = ["SAMPLERS", "SemiAutoregressive"]

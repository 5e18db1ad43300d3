"""Samplers fill a canvas. ``SAMPLERS`` is the one place to add one."""

from .emerge import Emerge
from .left_to_right import LeftToRight
from .maskgit import MaskGIT
from .schedules import MASK_SCHEDULES
from .semi_autoregressive import SemiAutoregressive


SAMPLERS = {
    "semi_autoregressive": SemiAutoregressive,
    "left_to_right": LeftToRight,
    "maskgit": MaskGIT,
    "emerge": Emerge,
}

IMAGE_SAMPLERS = ("maskgit", "emerge")
"""What draws ``t2i`` canvases; text canvases need the others, because these know no stop token."""

__all__ = [
    "IMAGE_SAMPLERS",
    "MASK_SCHEDULES",
    "SAMPLERS",
    "Emerge",
    "LeftToRight",
    "MaskGIT",
    "SemiAutoregressive",
]

"""matplotlib, which is an extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console


def pyplot_for(picture: Path) -> Any:
    """``matplotlib.pyplot`` without a display; where it is not installed None, and a line that says how to get it."""
    try:
        import matplotlib
    except ImportError:
        Console().print(f"{picture.name} was not drawn: pip install 'unigrpo[plots]'", markup=False)
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot

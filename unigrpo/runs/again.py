"""The command that goes on with a run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from .recipe import Recipe


def command_again(recipe: Recipe, overrides: Sequence[str], output_dir: str, processes: int) -> str:
    """What to type to go on with a run of ``recipe`` that has written into ``output_dir``."""
    words = [word for word in overrides if not word.startswith("resume_from_checkpoint=")]
    if str(recipe.config.get("output_dir")) != output_dir:
        words = [*(word for word in words if not word.startswith("output_dir=")), f"output_dir={output_dir}"]
    words.append("resume_from_checkpoint=true")
    if processes > 1:
        return f"the launch command again, with {shlex.join(words[-1:])}"
    return shlex.join(["unigrpo", "train", recipe.source, *words])

"""The command that goes on with a run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ..terminal import is_secret, without_secrets
from .recipe import Recipe


STARTING = ("resume_from_checkpoint=", "overwrite=")
"""Words of a command line that say how a run starts."""


def command_again(recipe: Recipe, output_dir: str, processes: int, command: str = "train") -> str:
    """What to type to go on with a run of ``recipe`` under ``unigrpo COMMAND`` that has written into ``output_dir``."""
    words = [word for word in recipe.overrides if not word.startswith(STARTING)]
    if str(recipe.config.get("output_dir")) != output_dir:
        words = [*(word for word in words if not word.startswith("output_dir=")), f"output_dir={output_dir}"]
    start = ["resume_from_checkpoint=true"]
    if recipe.config.get("overwrite") and not any(word.startswith("overwrite=") for word in recipe.overrides):
        start.append("overwrite=false")
    if processes > 1:
        return f"the launch command again, with {shlex.join(start)}"
    return shlex.join(["unigrpo", command, recipe.source, *words, *start])


def shown_words(overrides: Sequence[str]) -> list[str]:
    """The words of a command line with ``***`` for values that are named like a secret or look like one."""
    return [
        f"{word.split('=')[0]}=***" if is_secret(word.split("=")[0].rpartition(".")[2]) else without_secrets(word)
        for word in overrides
    ]

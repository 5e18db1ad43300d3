"""The command: ``python -m tests.gpu --minutes 8 --output DIR [--device cuda|cpu] [--size 8b|mid|tiny]``."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from pathlib import Path


STARTED = time.monotonic()
"""Before anything slow is imported: ``--minutes`` counts from here."""

NEEDED = {
    "torch": "torch",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "peft": "peft",
    "jaxtyping": "jaxtyping",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "numpy": "numpy",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "rich": "rich",
    "packaging": "packaging",
}
"""Modules that are imported, and the wheels that bring them."""

WHAT = "Measures the library on a GPU: laws, speed, the most expensive operations, and a minute of training."

WHEN_A_GPU_IS_AT_HAND = """
when a GPU is at hand:
  Copy the checkout to the machine. It is not installed, and nothing is downloaded: models are made of random numbers
  or travel in the checkout. Python 3.11 or later needs the wheels of

    torch (a CUDA build), transformers, accelerate, peft, jaxtyping, pillow, rich

  and what these bring along: safetensors, tokenizers, numpy, pyyaml, packaging. trl, datasets and math-verify are not
  needed. Then, in the root of the checkout:

    python -m tests.gpu --minutes 8 --output gpu                 80 GB of memory, the real size
    python -m tests.gpu --minutes 8 --output gpu --size mid      a smaller GPU
    python -m tests.gpu --minutes 3 --output gpu --device cpu --size tiny      the same path without a GPU

  gpu/gpu.md is for reading, gpu/gpu.json holds everything. Both are written anew after every measurement, so a run that
  is cut short leaves what it has. It ends by itself within --minutes; what does not fit is left out and said so, and a
  measurement that memory is too small for fails alone. The first of several GPUs is used, unless CUDA_VISIBLE_DEVICES
  says otherwise.

    python -m tests.gpu --from gpu/gpu.json                      the table for the main README

exit status: 0, 1 where a law or a stage failed or time ran out inside one, 2 where it could not begin.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu",
        description=WHAT,
        epilog=WHEN_A_GPU_IS_AT_HAND,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="all of it, imports included (default 8)")
    parser.add_argument("--output", type=Path, help="folder for gpu.json and gpu.md")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu only walks the path")
    parser.add_argument(
        "--size", default="8b", choices=("8b", "mid", "tiny"), help="of the model whose speed is measured"
    )
    parser.add_argument("--peak-tflops", type=float, default=790.0, help="what the device sustains (default 790)")
    parser.add_argument(
        "--from", dest="source", type=Path, help="measure nothing, print the README's table of a gpu.json"
    )
    options = parser.parse_args(arguments)
    if options.source is None and options.output is None:
        parser.error("--output DIR is missing: the folder for gpu.json and gpu.md")
    if options.source is None and options.size == "8b" and options.device == "cpu":
        parser.error("--size 8b is for --device cuda: on a CPU one step takes minutes; take --size mid or tiny")
    if not options.minutes > 0:
        parser.error(f"--minutes {options.minutes} must be more than 0")
    return options


def cannot_begin(device: str) -> str | None:
    """Why nothing can be measured, or None."""
    missing = [wheel for module, wheel in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        return f"these wheels are missing: {', '.join(missing)}; --help lists all that are needed"
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU; --device cpu --size tiny walks the path without one"
    return None


def main(arguments: list[str]) -> int:
    """Runs the stages and returns the exit status."""
    options = parse(arguments)
    if options.source is not None:
        from .report import readme_table

        print(readme_table(options.source))
        return 0
    # No network, and one GPU: a process that sees several is refused by the trainer.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    reason = cannot_begin(options.device)
    if reason is not None:
        print(reason, file=sys.stderr)
        return 2
    from .stages import run_stages

    return run_stages(options, STARTED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

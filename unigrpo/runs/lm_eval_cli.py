"""The words of ``unigrpo lm-eval``; the harness is imported when it runs."""

from __future__ import annotations

import argparse
import importlib.util


LM_EVAL = """examples:
  unigrpo lm-eval ls tasks
  unigrpo lm-eval --model_args path=builtin:arithmetic_trained,draws=8 \\
    --tasks arc_easy --limit 16
  unigrpo lm-eval --model_args path=runs/math,steps=128 --tasks gsm8k

It needs the harness: pip install 'unigrpo[lm-eval]'. What follows lm-eval is its
own. model_args has path (a model, as in `unigrpo evaluate`), draws (of the
evidence bound, default 128) and keys of sampling.
"""


def lm_eval_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of ``unigrpo lm-eval``."""
    parser.usage = "unigrpo lm-eval --model_args path=MODEL[,KEY=VALUE ...] --tasks A,B [...]"
    parser.epilog = LM_EVAL
    parser.set_defaults(handed_on=[])


def run_lm_eval(arguments: argparse.Namespace) -> int:
    """``unigrpo lm-eval ...``: the harness with our model."""
    if not arguments.handed_on:
        raise ValueError(
            "unigrpo lm-eval: give --model_args path=MODEL and --tasks; unigrpo lm-eval --help has examples"
        )
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("unigrpo lm-eval needs lm-evaluation-harness: pip install 'unigrpo[lm-eval]'")
    from .commands import quiet_bars
    from .lm_eval import run

    quiet_bars()
    return run(arguments.handed_on)

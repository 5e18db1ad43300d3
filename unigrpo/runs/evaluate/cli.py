"""The words of ``unigrpo evaluate`` and ``unigrpo compare``. What is heavy is imported when it runs."""

from __future__ import annotations

import argparse
import textwrap

from ...terminal import say
from ..commands import quiet_bars
from .tasks import TASKS


EVALUATE = """examples:
  unigrpo evaluate builtin:arithmetic --tasks arithmetic --limit 32
  unigrpo evaluate builtin:shapes --tasks shapes,shapes_mmu --limit 16
  unigrpo evaluate builtin:arithmetic --tasks arithmetic --limit 16 \\
    --num-samples 8 temperature=0.8
  unigrpo evaluate runs/math --tasks gsm8k,math500 --data gsm8k=test.jsonl
  unigrpo evaluate quickstart --model runs/quickstart      on its held-out rows
"""


def evaluate_arguments(evaluate: argparse.ArgumentParser) -> None:
    """The words of ``unigrpo evaluate``."""
    own = {name: task for name, task in TASKS.items() if task.layout is None}
    names = textwrap.fill(f"tasks: {', '.join(own)}", width=78, subsequent_indent="  ")
    layouts = ", ".join(name for name in TASKS if name not in own)
    evaluate.epilog = f"{EVALUATE}{names}\nexports: {layouts}"
    evaluate.usage = "unigrpo evaluate MODEL_OR_RECIPE [--tasks A,B] [options] [KEY=VALUE ...]"
    evaluate.add_argument(
        "recipe", metavar="MODEL_OR_RECIPE", help="a recipe; with --tasks also a hub id, folder or builtin:NAME"
    )
    evaluate.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="temperature=0.8 steps=32 ...")
    evaluate.add_argument("--tasks", metavar="A,B", help="names or pkg.mod:attr (default: a recipe's held-out rows)")
    evaluate.add_argument(
        "--data", type=_pair, action="append", default=[], metavar="TASK=PATH", help="where the rows of a task are"
    )
    evaluate.add_argument(
        "--export",
        type=_pair,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="draw for a benchmark's own code",
    )
    evaluate.add_argument("--limit", type=count, metavar="N", help="only the first rows of each task")
    evaluate.add_argument("--num-samples", type=count, metavar="N", help="answers a row, for pass@k and majority@k")
    evaluate.add_argument("--seed", type=int, metavar="N", help="of the random numbers (default: the recipe's, or 0)")
    evaluate.add_argument("--model", metavar="DIR", help="another model or adapter than the recipe's")
    evaluate.add_argument("--adapter", metavar="DIR", help="an adapter on the model")
    evaluate.add_argument("--batch-size", type=count, metavar="N", help="changes no number (default: 8)")
    evaluate.add_argument("--output-dir", metavar="DIR", help="default: runs/evaluations/NAME")
    evaluate.add_argument("--output_dir", dest="output_dir", help=argparse.SUPPRESS)
    evaluate.add_argument("--thoughts", action="store_true", help="of r2i: is the thought used in the picture?")


COMPARE = """examples:
  unigrpo evaluate builtin:arithmetic --tasks arithmetic --limit 64
  unigrpo evaluate builtin:arithmetic_trained --tasks arithmetic --limit 64
  unigrpo compare runs/evaluations/arithmetic runs/evaluations/arithmetic_trained

Both have the same tasks, settings, rows and seed; only the model differs.
Intervals are bootstraps over prompts. With one answer a prompt p is that of the
exact sign test (McNemar's), else that of a paired bootstrap.
"""


def compare_arguments(compare: argparse.ArgumentParser) -> None:
    """The words of ``unigrpo compare``."""
    compare.epilog = COMPARE
    compare.add_argument("a", metavar="A", help="folder of an evaluation, the one before")
    compare.add_argument("b", metavar="B", help="folder of an evaluation, the one after")
    compare.add_argument("--anyway", action="store_true", help="compare them also where more than the model differs")
    compare.add_argument("--output", metavar="FILE", help="write the comparison as JSON; a new file")


def run_compare(arguments: argparse.Namespace) -> int:
    """``unigrpo compare A B [--anyway] [--output FILE]``."""
    from .compare import compare

    compare(arguments.a, arguments.b, anyway=arguments.anyway, output=arguments.output)
    return 0


def _pair(text: str) -> tuple[str, str]:
    """``NAME=PATH``."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form TASK=PATH, as in gsm8k=test.jsonl")
    return name, path


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; give a whole number from 1 on")
    return int(text)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """``unigrpo evaluate RECIPE [--model PATH] [--thoughts]``, or ``unigrpo evaluate MODEL_OR_RECIPE --tasks A,B``."""
    quiet_bars()
    if arguments.tasks is not None or arguments.export:
        return _evaluate_tasks(arguments)
    for name in ("data", "adapter", "limit", "num_samples"):
        if getattr(arguments, name):
            raise ValueError(f"--{name.replace('_', '-')} is for benchmarks: add --tasks, or leave it out")
    from ..recipe import load_recipe
    from ..thoughts import evaluate_thoughts
    from ..train import evaluate_recipe

    overrides = [*arguments.overrides, *_more_overrides(arguments)]
    measure = evaluate_thoughts if arguments.thoughts else evaluate_recipe
    measure(load_recipe(arguments.recipe, overrides), arguments.model)
    return 0


def _more_overrides(arguments: argparse.Namespace) -> list[str]:
    """Options that are other ways to write a recipe's keys."""
    keys = {"seed": "seed", "batch_size": "per_device_eval_batch_size", "output_dir": "output_dir"}
    given = {key: getattr(arguments, name) for name, key in keys.items()}
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def _evaluate_tasks(arguments: argparse.Namespace) -> int:
    from .command import evaluate_tasks

    if arguments.thoughts:
        raise ValueError("--thoughts and --tasks measure different things: give one of them")
    try:
        evaluate_tasks(
            arguments.recipe,
            [*filter(None, (arguments.tasks or "").split(",")), *dict(arguments.export)],
            [*arguments.overrides, *_more_overrides(arguments)],
            data=dict(arguments.data + arguments.export),
            model=arguments.model,
            adapter=arguments.adapter,
            limit=arguments.limit,
            num_samples=arguments.num_samples,
        )
    except KeyboardInterrupt:
        say("unigrpo: interrupted; the same command goes on with the answers that are missing", error=True)
        return 130
    return 0

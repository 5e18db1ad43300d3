"""The ``unigrpo`` command."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial

from .. import __version__
from ..errors import Interrupted
from ..terminal import plain_messages, say
from .app.cli import app_arguments, run_app
from .commands import (
    run_agreement,
    run_benchmark,
    run_check,
    run_inspect,
    run_keys,
    run_merge,
    run_recipes,
    run_rewards,
    run_sample,
    run_sft,
    run_train,
)
from .evaluate.cli import compare_arguments, count, evaluate_arguments, run_compare, run_evaluate
from .folder_commands import (
    report_arguments,
    reproduce_arguments,
    run_report,
    run_reproduce,
    run_watch,
    watch_arguments,
)
from .lm_eval_cli import lm_eval_arguments, run_lm_eval
from .mistakes import said_of
from .serve_rewards.cli import run_serve_rewards, serve_rewards_arguments


EPILOG = """from an empty folder:
  unigrpo train quickstart           a small policy learns, in five minutes
  unigrpo sample builtin:arithmetic_trained "Ann buys 194 keys, then 5. Total?"
  unigrpo recipes                    what else can be trained
  unigrpo COMMAND --help             words and examples of a command

on several GPUs:
  accelerate launch -m unigrpo train RECIPE
"""

EXAMPLES = {
    "train": """
  unigrpo train quickstart
  unigrpo train quickstart seed=1 output_dir=runs/seed1
  unigrpo train quickstart lora.r=16 lora.lora_alpha=32 learning_rate=1e-3""",
    "sft": """
  unigrpo sft quickstart_sft         from random weights, in five minutes
  unigrpo train quickstart model.path=runs/quickstart_sft     then rewards""",
    "check": """
  unigrpo check quickstart quickstart_image
  unigrpo check quickstart_sft       also shows rows as they are trained
  unigrpo check math_mmada_8b_lora --offline --memory 40""",
    "keys": """
  unigrpo keys sampler               each sampler with its keys
  unigrpo keys noising beta          a kind of part, and one key
  unigrpo keys my_noise:Tail         of a part of yours, in my_noise.py""",
    "rewards": """
  unigrpo rewards                    the rewards that ship
  unigrpo rewards quickstart --data completions.jsonl""",
    "sample": """
  unigrpo sample builtin:arithmetic_trained "Ann buys 194 keys, then 5. Total?"
  unigrpo sample builtin:emoji "a fox above a hamburger" --task t2i""",
    "agreement": """
  unigrpo agreement quickstart --model builtin:arithmetic_trained --limit 16""",
    "inspect": """
  unigrpo inspect builtin:shapes
  unigrpo inspect Dream-org/Dream-v0-Instruct-7B""",
    "merge": """
  unigrpo train quickstart lora.r=16 max_steps=5 output_dir=runs/lora
  unigrpo merge runs/lora merged""",
    "benchmark": """
  unigrpo benchmark --tasks arithmetic --algorithms unigrpo,diffu_grpo --seeds 0
  unigrpo benchmark --table-only     what there is so far""",
    "recipes": """
  unigrpo recipes
  unigrpo recipes copy quickstart_image --to mine""",
}
"""Of commands whose words do not bring their own. Lines have at most 80 characters, the width of a small terminal."""

HELP = partial(argparse.RawDescriptionHelpFormatter, max_help_position=30)
"""Examples as they are written, and options beside what is said of them."""


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 done, 1 a check failed, 2 a mistake in what was asked for, 130 and 143 after
    Ctrl-C and SIGTERM.
    """
    arguments = parsed(argv)
    with plain_messages():
        try:
            return arguments.run(arguments)
        except Exception as error:
            say(f"unigrpo: error: {said_of(error)}", error=True)
            return 2
        except KeyboardInterrupt as error:
            if not isinstance(error, Interrupted):  # A run has said it.
                say("unigrpo: interrupted", error=True)
            return 130


def parsed(argv: list[str] | None = None) -> argparse.Namespace:
    """The words of a command line; argparse ends the process with status 2 where it cannot read them."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse gives up on KEY=VALUE words that follow an option; they belong to the overrides all the same.
    words = getattr(arguments, "overrides", getattr(arguments, "recipes", None))
    if hasattr(arguments, "handed_on"):
        arguments.handed_on, rest = rest, []
    if rest and (words is None or not all("=" in word and word[0] != "-" for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        words += rest
    return arguments


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="unigrpo",
        usage="unigrpo COMMAND ... [--help] [--version]",
        description="Reinforcement learning of masked-diffusion language models (MMaDA's UniGRPO).",
        epilog=EPILOG,
        formatter_class=HELP,
    )
    parser.add_argument("--version", action="version", version=f"unigrpo {__version__}")
    # As wide as the longest name; a command's usage begins with its own.
    commands = parser.add_subparsers(required=True, metavar="COMMAND ...", prog="unigrpo")

    for name, (run, told, arguments) in COMMANDS.items():
        arguments(_command(commands, name, run, told))
    return parser


def _check_arguments(check: argparse.ArgumentParser) -> None:
    check.usage = "unigrpo check RECIPE ... [KEY=VALUE ...] [options]"
    check.add_argument(
        "recipes",
        nargs="+",
        metavar="RECIPE",
        help="files or names of shipped recipes; KEY=VALUE words hold for all of them",
    )
    check.add_argument(
        "--list-code", action="store_true", help="only list what each would run, read and ask; nothing is imported"
    )
    check.add_argument(
        "--offline", action="store_true", help="do not ask the hub; ids that are not in the cache are accepted"
    )
    check.add_argument(
        "--memory",
        type=_card,
        metavar="GB",
        help="does a run fit a card of so many GB (10^9 bytes), and if not, which keys to turn",
    )


def _rewards_arguments(rewards: argparse.ArgumentParser) -> None:
    rewards.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="file or name of a shipped recipe, with the rewards"
    )
    rewards.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe: rewards.0.weight=1")
    rewards.add_argument(
        "--data",
        metavar="FILE",
        help='answers as JSON lines: {"prompt": ..., "completion": ...} and the columns that the rewards read',
    )
    rewards.add_argument("--output", metavar="FILE", help="write the scores of each line here; a new file")
    rewards.add_argument("--list", action="store_true", help="list the rewards that ship (default without RECIPE)")


def _benchmark_arguments(benchmark: argparse.ArgumentParser) -> None:
    benchmark.usage = "unigrpo benchmark [options] [TASK.KEY=VALUE ...]"
    benchmark.add_argument("--algorithms", metavar="A,B", help="names of algorithms (default: all)")
    benchmark.add_argument("--tasks", metavar="A,B", help="arithmetic, countdown, sudoku, shapes (default: all)")
    benchmark.add_argument("--seeds", metavar="0,1", default="0,1,2", help="default: 0,1,2")
    benchmark.add_argument(
        "--output-dir",
        metavar="DIR",
        default="runs/benchmark",
        help="default: runs/benchmark; what is finished there is not run again",
    )
    benchmark.add_argument("--output_dir", dest="output_dir", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    benchmark.add_argument(
        "--jobs", type=count, metavar="N", default=1, help="runs at a time, a process and a thread each (default: 1)"
    )
    benchmark.add_argument("--table-only", action="store_true", help="run nothing, show what there is")
    benchmark.add_argument("--table_only", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    benchmark.add_argument("overrides", nargs="*", metavar="TASK.KEY=VALUE", help="arithmetic.budget=8000 ...")


def _command(commands, name: str, run: Callable, text: str) -> argparse.ArgumentParser:
    examples = EXAMPLES.get(name)
    epilog = None if examples is None else f"examples:{examples}"
    said = text[0].upper() + text[1:] + "."
    parser = commands.add_parser(
        name, prog=f"unigrpo {name}", help=text, description=said, epilog=epilog, formatter_class=HELP
    )
    parser.set_defaults(run=run)
    return parser


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe that ships")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe: lora.r=16 seed=1 (`unigrpo keys`)"
    )


def _agreement_arguments(agreement: argparse.ArgumentParser) -> None:
    agreement.usage = "unigrpo agreement RECIPE [KEY=VALUE ...] [options]"
    _recipe_arguments(agreement)
    agreement.add_argument("--model", metavar="MODEL", help="another model or adapter folder than the recipe's")
    agreement.add_argument(
        "--limit", type=int, metavar="N", default=128, help="held-out rows of each task, 0 = all (default: 128)"
    )
    agreement.add_argument("--output", metavar="DIR", help="for agreement.json and .png (default: the output_dir)")
    agreement.add_argument(
        "--temperature", type=float, metavar="T", default=0.0, help="default: 0, where decoding is deterministic"
    )
    agreement.add_argument(
        "--thresholds", type=_numbers, metavar="P,P", default="0.95,0.9", help="of confidence (default: 0.95,0.9)"
    )
    agreement.add_argument(
        "--entropies", type=_numbers, metavar="H,H", default="0.1", help="of early exits, in nats (default: 0.1)"
    )


def _numbers(text: str) -> list[float]:
    """``0.95,0.9`` as numbers."""
    numbers = []
    for part in filter(None, text.split(",")):
        try:
            numbers.append(float(part))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r} is not a number; give some as in 0.95,0.9") from None
    return numbers


def _card(text: str) -> float:
    """Memory of a card in GB."""
    try:
        memory = float(text)
    except ValueError:
        memory = math.nan
    if not 0 < memory < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no memory of a card; give its GB, a number above 0 as in 24")
    return memory


def _sample_arguments(sample: argparse.ArgumentParser) -> None:
    sample.usage = "unigrpo sample MODEL PROMPT [PROMPT ...] [options]"
    sample.add_argument("model", metavar="MODEL", help="hub id, folder, adapter folder or builtin:NAME")
    sample.add_argument("prompts", nargs="+", metavar="PROMPT", help="questions, or captions to draw")
    tasks = ("text", "mmu", "t2i", "r2i", "i2i")
    what = "text, mmu look, t2i draw, r2i think, i2i edit"
    sample.add_argument("--task", choices=tasks, metavar="TASK", help=what)
    sample.add_argument("--image", action="append", metavar="FILE", help="to ask about or edit; one, or one a prompt")
    sample.add_argument("--output", metavar="DIR", default="samples", help="for what is drawn (default: samples)")
    sample.add_argument("--num", type=count, metavar="N", default=1, help="answers a prompt (default: 1)")
    sample.add_argument("--seed", type=int, metavar="N", default=0, help="of the random numbers (default: 0)")
    _writing_arguments(
        sample.add_argument_group("how answers are written (as the checkpoint says, else as in brackets)")
    )
    fast = sample.add_argument_group("faster ways to write text, all approximate (see `unigrpo agreement`)")
    caches = ("none", "prefix", "dual", "exact")
    fast.add_argument("--kv-cache", choices=caches, metavar="KIND", help=", ".join(caches))
    fast.add_argument("--confidence-threshold", type=float, metavar="P", help="write at once what is surer")
    fast.add_argument("--exit-entropy", type=float, metavar="H", help="end a block with less doubt, in nats")
    loading = sample.add_argument_group("how the model is loaded")
    loading.add_argument("--dtype", metavar="TYPE", default="auto", help="e.g. bfloat16 (default: the checkpoint's)")
    loading.add_argument("--policy", metavar="NAME", help="or pkg.mod:attr (default: found from the model)")
    loading.add_argument("--image-tokenizer", metavar="ID", help="or path (default: the one that the model names)")


def _writing_arguments(group) -> None:
    group.add_argument("--max-completion-length", type=int, metavar="N", help="positions of a text (256)")
    group.add_argument("--steps", type=int, metavar="N", help="of denoising (one a position; of pictures 16)")
    group.add_argument("--block-length", type=int, metavar="N", help="positions written together (32)")
    group.add_argument("--temperature", type=float, metavar="T", help="0 = greedy (0; of pictures 1)")
    group.add_argument(
        "--guidance-scale", type=float, metavar="S", help="classifier-free, 0 = off (0; of pictures 3.5)"
    )
    group.add_argument("--image-guidance-scale", type=float, metavar="S", help="of edits, from the picture (0)")
    group.add_argument("--image-size", type=int, metavar="N", help="side in pixels (512)")
    remasking = ("low_confidence", "random")
    group.add_argument(
        "--remasking", choices=remasking, metavar="HOW", help="low_confidence or random (low_confidence)"
    )
    group.add_argument("--sampler", metavar="NAME", help="of `unigrpo keys sampler` (of pictures maskgit)")


def _keys_arguments(keys: argparse.ArgumentParser) -> None:
    keys.add_argument(
        "words",
        nargs="*",
        metavar="WORD",
        help="a key, a part, a kind of part, or pkg.mod:attr of yours (default: all)",
    )


def _inspect_arguments(inspect: argparse.ArgumentParser) -> None:
    inspect.add_argument("model", metavar="MODEL", help="hub id, folder, adapter folder or builtin:NAME")
    inspect.add_argument("--policy", metavar="NAME", help="or pkg.mod:attr (default: found from the model)")


def _merge_arguments(merge: argparse.ArgumentParser) -> None:
    merge.add_argument("adapter", metavar="ADAPTER", help="its folder")
    merge.add_argument("output", metavar="OUTPUT", help="the folder to write")
    merge.add_argument("--dtype", metavar="TYPE", default="auto", help="of the weights (default: the base model's)")


def _recipes_arguments(recipes: argparse.ArgumentParser) -> None:
    recipes.usage = "unigrpo recipes [copy NAME ...] [--to DIR]"
    recipes.add_argument("words", nargs="*", metavar="copy NAME", help="names from the list (default: the list)")
    recipes.add_argument("--to", default=".", metavar="DIR", help="where copies go (default: this folder)")


COMMANDS: dict[str, tuple[Callable, str, Callable[[argparse.ArgumentParser], None]]] = {
    "train": (run_train, "train a policy with rewards, as a recipe says", _recipe_arguments),
    "sft": (run_sft, "fine-tune a policy on given answers, as a recipe says", _recipe_arguments),
    "check": (run_check, "find mistakes in recipes before a run", _check_arguments),
    "keys": (run_keys, "list the settings, with defaults and ranges", _keys_arguments),
    "rewards": (run_rewards, "score answers in a file, or list the rewards", _rewards_arguments),
    "serve-rewards": (run_serve_rewards, "answer for rewards over HTTP, for runs elsewhere", serve_rewards_arguments),
    "sample": (run_sample, "ask a policy: print its answers, or save what it draws", _sample_arguments),
    "app": (run_app, "open a page in the browser to talk to a policy", app_arguments),
    "evaluate": (run_evaluate, "measure how good a policy is, with intervals", evaluate_arguments),
    "compare": (run_compare, "compare two evaluations, prompt by prompt", compare_arguments),
    "report": (run_report, "write one page about a run or an evaluation", report_arguments),
    "watch": (run_watch, "show runs side by side while they go on", watch_arguments),
    "reproduce": (run_reproduce, "train again for a result, and judge what comes out", reproduce_arguments),
    "lm-eval": (run_lm_eval, "run lm-evaluation-harness on a policy", lm_eval_arguments),
    "agreement": (run_agreement, "compare fast decoding with exact decoding", _agreement_arguments),
    "inspect": (run_inspect, "show what is understood of a model, without its weights", _inspect_arguments),
    "merge": (run_merge, "merge an adapter into its base model", _merge_arguments),
    "benchmark": (run_benchmark, "compare algorithms on small tasks, at equal cost", _benchmark_arguments),
    "recipes": (run_recipes, "list the recipes that ship, or copy some", _recipes_arguments),
}
"""What each subcommand does, what the list says of it, and its words."""

"""The ``unigrpo`` command."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

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
from .evaluate.cli import compare_arguments, evaluate_arguments, run_compare, run_evaluate
from .folder_commands import (
    report_arguments,
    reproduce_arguments,
    run_report,
    run_reproduce,
    run_watch,
    watch_arguments,
)
from .lm_eval_cli import lm_eval_arguments, run_lm_eval


EPILOG = """from an empty folder:
  unigrpo train quickstart                         a shipped toy policy learns, in three minutes on two cores
  unigrpo sample builtin:arithmetic_trained "Tom has 127 cups and gets 4. Total?"
  unigrpo recipes                                  what else ships; `unigrpo recipes copy NAME` to change one
  unigrpo COMMAND --help                           words and examples of a command
  accelerate launch -m unigrpo train RECIPE        several GPUs
"""

EXAMPLES = {
    "train": """
  unigrpo train quickstart
  unigrpo train quickstart lora.r=16 lora.lora_alpha=32 learning_rate=1e-3
  unigrpo train quickstart seed=1 output_dir=runs/seed1""",
    "sft": """
  unigrpo sft quickstart_sft                            from random weights, in three minutes
  unigrpo train quickstart model.path=runs/quickstart_sft""",
    "check": """
  unigrpo check quickstart quickstart_image             find mistakes before any GPU time
  unigrpo check quickstart_sft                          and rows as they are trained
  unigrpo check math_mmada_8b_lora --offline --memory 24     what does not fit 24 GB, and which key to turn""",
    "keys": """
  unigrpo keys noising beta                             what these read, with defaults and ranges
  unigrpo keys my_noise:Tail                            the same of a part of yours""",
    "rewards": """
  unigrpo rewards                                       the rewards that ship
  unigrpo rewards quickstart --data completions.jsonl   what a recipe's rewards say of answers in a file""",
    "sample": """
  unigrpo sample builtin:arithmetic_trained "Tom has 127 cups and gets 4. Total?"
  unigrpo sample builtin:shapes "a large red circle at the left" --task t2i --num 4
  unigrpo sample builtin:shapes "What shape is it?" --image samples/0000.png""",
    "agreement": """
  unigrpo agreement quickstart --model builtin:arithmetic_trained      what fast decoding changes""",
    "inspect": """
  unigrpo inspect builtin:shapes
  unigrpo inspect Dream-org/Dream-v0-Instruct-7B        without its weights""",
    "merge": """
  unigrpo train quickstart lora.r=16 output_dir=runs/lora && unigrpo merge runs/lora merged/""",
    "benchmark": """
  unigrpo benchmark --tasks arithmetic,shapes --algorithms unigrpo,diffu_grpo --jobs 2""",
    "recipes": """
  unigrpo recipes
  unigrpo recipes copy quickstart_image --to mine""",
}
"""Of commands whose words do not bring their own."""


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 done, 1 a check failed, 2 a mistake in what was asked for, 130 after Ctrl-C."""
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
    with plain_messages():
        try:
            return arguments.run(arguments)
        except (ValueError, FileNotFoundError) as error:
            say(f"unigrpo: error: {error}", error=True)
            return 2
        except KeyboardInterrupt as error:
            if not isinstance(error, Interrupted):  # A run has said it.
                say("unigrpo: interrupted", error=True)
            return 130


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="unigrpo",
        description="Reinforcement-learning post-training of masked-diffusion language models (MMaDA's UniGRPO).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"unigrpo {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for name, (run, told, arguments) in COMMANDS.items():
        arguments(_command(commands, name, run, told))
    return parser


def _check_arguments(check: argparse.ArgumentParser) -> None:
    check.add_argument(
        "recipes",
        nargs="+",
        metavar="RECIPE_OR_KEY=VALUE",
        help="YAML files or names of shipped recipes, and overrides for all",
    )
    check.add_argument(
        "--list-code", action="store_true", help="import nothing: only list the code that each recipe would run"
    )
    check.add_argument(
        "--offline", action="store_true", help="ask the hub for nothing, and accept ids that are not in the cache"
    )
    check.add_argument(
        "--memory",
        type=_card,
        metavar="GB",
        help="also count what a run holds on a card of so many GB (10^9 bytes), and which keys to turn where it is too much",
    )


def _rewards_arguments(rewards: argparse.ArgumentParser) -> None:
    rewards.add_argument("recipe", nargs="?", help="YAML file or name of a shipped recipe, whose rewards are asked")
    rewards.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. rewards.0.weight=1")
    rewards.add_argument(
        "--data", metavar="FILE", help="JSON lines with prompt, completion and the columns that the rewards read"
    )
    rewards.add_argument(
        "--output", metavar="FILE", help="write each row's scores as JSON lines; it must not exist yet"
    )
    rewards.add_argument("--list", action="store_true", help="list the rewards that ship (default without arguments)")


def _benchmark_arguments(benchmark: argparse.ArgumentParser) -> None:
    benchmark.add_argument("--algorithms", metavar="A,B", help="names of presets (default: all)")
    benchmark.add_argument("--tasks", metavar="A,B", help="arithmetic, countdown, sudoku, shapes (default: all)")
    benchmark.add_argument("--seeds", metavar="0,1", default="0,1,2", help="default: 0,1,2")
    benchmark.add_argument(
        "--output-dir", "--output_dir", default="runs/benchmark", help="finished cells there are kept, not run again"
    )
    benchmark.add_argument(
        "--jobs", type=int, default=1, help="cells at a time, one process and thread each (default: 1)"
    )
    benchmark.add_argument("--table-only", "--table_only", action="store_true", help="run nothing, show what there is")
    benchmark.add_argument(
        "overrides", nargs="*", metavar="TASK.KEY=VALUE", help="e.g. arithmetic.budget=8000 shapes.learning_rate=2e-4"
    )


def _command(commands, name: str, run: Callable, text: str) -> argparse.ArgumentParser:
    kind, examples = argparse.RawDescriptionHelpFormatter, EXAMPLES.get(name)
    epilog = None if examples is None else f"examples:{examples}"
    parser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=epilog, formatter_class=kind
    )
    parser.set_defaults(run=run)
    return parser


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file, or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted keys, YAML values: lora.r=16 seed=1")


def _agreement_arguments(agreement: argparse.ArgumentParser) -> None:
    _recipe_arguments(agreement)
    agreement.add_argument("--model", help="another model or adapter folder than the recipe's")
    agreement.add_argument("--limit", type=int, default=128, help="held-out rows of each task, 0 = all (default: 128)")
    agreement.add_argument("--output", metavar="DIR", help="for agreement.json and .png (default: the output_dir)")
    agreement.add_argument(
        "--temperature", type=float, default=0.0, help="default: 0, where decoding is deterministic"
    )
    agreement.add_argument(
        "--thresholds", type=_numbers, default="0.95,0.9", help="confidence thresholds (default: 0.95,0.9)"
    )
    agreement.add_argument("--entropies", type=_numbers, default="0.1", help="exit entropies in nats (default: 0.1)")


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
    sample.add_argument("model", help="hub id, folder, adapter folder or builtin:NAME")
    sample.add_argument("prompts", nargs="+", metavar="PROMPT", help="one or more questions, or captions to draw")
    sample.add_argument(
        "--task",
        choices=("text", "mmu", "t2i", "r2i"),
        help="default: mmu with --image, else text; t2i draws the prompts, r2i thinks first",
    )
    sample.add_argument("--image", action="append", help="picture that the questions are about; one, or one a prompt")
    sample.add_argument("--output", default="samples", help="folder for pictures that are drawn (default: samples)")
    sample.add_argument("--image-size", type=int, help="side in pixels (default: the checkpoint's, or 512)")
    sample.add_argument("--image-tokenizer", help="id or path (default: the one that the model names)")
    sample.add_argument("--sampler", help="maskgit (default) or emerge for pictures")
    sample.add_argument(
        "--max-completion-length", type=int, help="positions the policy may write (default: 256, or the checkpoint's)"
    )
    sample.add_argument(
        "--steps", type=int, help="denoising steps (default: one a position, or the checkpoint's; t2i: 16)"
    )
    sample.add_argument("--block-length", type=int, help="positions in a block (default: 32, or the checkpoint's)")
    sample.add_argument("--temperature", type=float, help="0 = greedy (default; t2i: 1)")
    sample.add_argument("--remasking", choices=("low_confidence", "random"), help="default: low_confidence")
    sample.add_argument("--guidance-scale", type=float, help="classifier-free guidance, 0 = off (default; t2i: 3.5)")
    sample.add_argument("--kv-cache", choices=("none", "prefix", "dual"), help="of text; approximate, faster")
    sample.add_argument(
        "--confidence-threshold", type=float, help="of text; approximate: surer tokens are not waited for"
    )
    sample.add_argument(
        "--exit-entropy", type=float, help="of text; approximate: a block without doubt is written at once"
    )
    sample.add_argument("--num", type=int, default=1, help="answers a prompt (default: 1)")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--dtype", default="auto", help="e.g. bfloat16 (default: the checkpoint's)")
    sample.add_argument("--policy", help="name or pkg.mod:attr (default: found from the model)")


def _keys_arguments(keys: argparse.ArgumentParser) -> None:
    keys.add_argument(
        "words", nargs="*", metavar="WORD", help="a key, a part, a kind of part, or your own pkg.mod:attr"
    )


def _inspect_arguments(inspect: argparse.ArgumentParser) -> None:
    inspect.add_argument("model", help="hub id, folder, adapter folder or builtin:NAME")
    inspect.add_argument("--policy", help="name or pkg.mod:attr (default: found from the model)")


def _merge_arguments(merge: argparse.ArgumentParser) -> None:
    merge.add_argument("adapter", help="adapter folder")
    merge.add_argument("output", help="folder to write")
    merge.add_argument("--dtype", default="auto", help="dtype of the merged weights (default: the base model's)")


def _recipes_arguments(recipes: argparse.ArgumentParser) -> None:
    recipes.add_argument("words", nargs="*", metavar="copy NAME", help="names as listed; without words, the list")
    recipes.add_argument("--to", default=".", metavar="DIR", help="where copies go (default: this folder)")


COMMANDS: dict[str, tuple[Callable, str, Callable[[argparse.ArgumentParser], None]]] = {
    "train": (run_train, "train a policy as a recipe says", _recipe_arguments),
    "sft": (run_sft, "train a policy on given answers as a recipe says", _recipe_arguments),
    "check": (run_check, "check recipes without training", _check_arguments),
    "keys": (run_keys, "what a run or a part reads, with defaults and ranges", _keys_arguments),
    "rewards": (run_rewards, "score completions in a file, or list the rewards", _rewards_arguments),
    "sample": (run_sample, "print answers of a policy", _sample_arguments),
    "app": (run_app, "a page to talk to a policy, with live denoising", app_arguments),
    "evaluate": (run_evaluate, "how good a policy is, with intervals", evaluate_arguments),
    "compare": (run_compare, "which of two evaluations is better, prompt by prompt", compare_arguments),
    "report": (run_report, "one page of what a run or an evaluation left", report_arguments),
    "watch": (run_watch, "runs side by side in a terminal while they go on", watch_arguments),
    "reproduce": (run_reproduce, "measure a result again, against what is expected", reproduce_arguments),
    "lm-eval": (run_lm_eval, "lm-evaluation-harness with one of our models", lm_eval_arguments),
    "agreement": (
        run_agreement,
        "how well each fast way of decoding agrees with exact decoding",
        _agreement_arguments,
    ),
    "inspect": (run_inspect, "what is understood of a model: family, ids, attention, weights", _inspect_arguments),
    "merge": (run_merge, "merge an adapter into full weights of the published layout", _merge_arguments),
    "benchmark": (run_benchmark, "compare algorithms on the toy policies, equal passes each", _benchmark_arguments),
    "recipes": (run_recipes, "list the recipes that ship with the package, or copy some", _recipes_arguments),
}
"""What each subcommand does, what the list says of it, and its words."""

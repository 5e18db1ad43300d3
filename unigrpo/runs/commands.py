"""What each subcommand does. Everything heavy is imported when its command runs, so that ``--help`` stays instant."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import import_named
from ..terminal import console, say


if TYPE_CHECKING:
    from .recipe import Recipe


def run_train(arguments: argparse.Namespace) -> int:
    """``unigrpo train RECIPE [key=value ...]``."""
    from .reach import told_before
    from .recipe import load_recipe
    from .train import run_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if os.environ.get("RANK", "0") == "0":
        say("\n".join(told_before(recipe)))
    quiet_bars()
    run_recipe(recipe)
    return 0


def run_sft(arguments: argparse.Namespace) -> int:
    """``unigrpo sft RECIPE [key=value ...]``."""
    from .reach import told_before
    from .sft import load_sft_recipe, run_sft_recipe

    recipe = load_sft_recipe(arguments.recipe, arguments.overrides)
    if os.environ.get("RANK", "0") == "0":
        say("\n".join(told_before(recipe)))
    quiet_bars()
    run_sft_recipe(recipe)
    return 0


def quiet_bars() -> None:
    """No bars of others' without a terminal: in a file each of their redraws is a line."""
    if sys.stderr.isatty():
        return
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def run_check(arguments: argparse.Namespace) -> int:
    """``unigrpo check RECIPE ... [key=value ...]``: every recipe is checked, one failure is enough for status 1.

    A check imports the code that a recipe names; ``--list-code`` shows it before, and imports nothing. With ``--memory`` a
    recipe that needs more than the card has is a failure too.
    """
    from ..models.hub import asking_once

    if not arguments.list_code:
        quiet_bars()
    files = [item for item in arguments.recipes if "=" not in item]
    overrides = [item for item in arguments.recipes if "=" in item]
    if not files:
        raise ValueError(f"no recipe among {arguments.recipes}")
    with asking_once(arguments.offline):
        failed = sum([not _checked(file, overrides, arguments) for file in files])
    return 1 if failed else 0


def _checked(file: str, overrides: list[str], arguments: argparse.Namespace) -> bool:
    """Prints what is found about one recipe; whether it may run."""
    from .check import check_recipe
    from .check_sft import check_sft_recipe
    from .memory_report import memory_report
    from .reach import code_of, sources_of
    from .sft import load_any_recipe

    shown: list[Any] = []
    try:
        recipe = load_any_recipe(file, overrides)
        if arguments.list_code:
            say("\n  ".join([f"{file}:", *code_of(recipe), *sources_of(recipe)]))
            return True
        fits = True
        if recipe.kind == "sft":
            notes, shown = check_sft_recipe(recipe, arguments.offline)
        else:
            notes = check_recipe(recipe, arguments.offline)
        if arguments.memory is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # The check has shown the recipe's own.
                lines, fits = memory_report(partial(_loaded, file, overrides), arguments.memory)
            notes += lines
    except ValueError as error:
        say(f"{file}: FAILED\n  {error}")
        return False
    say(f"{file}: ok" if fits else f"{file}: FAILED, does not fit a card of {arguments.memory:g} GB")
    for note in notes:
        say(f"  {note}")
    for part in shown:
        say()
        console().print(part)
    return fits


def _loaded(file: str, overrides: list[str], more: Sequence[str] = ()) -> Recipe:
    from .sft import load_any_recipe

    return load_any_recipe(file, [*overrides, *more])


def run_keys(arguments: argparse.Namespace) -> int:
    """``unigrpo keys [WORD ...]``: prints keys with their defaults, ranges and sentences."""
    from .keys import describe

    for line in describe(arguments.words):
        say(line)
    return 0


def _check_prompts(arguments: argparse.Namespace) -> None:
    """``sampler=left_to_right`` is how other commands take an option; as a prompt it would be answered in silence."""
    for prompt in arguments.prompts:
        name, equals, value = prompt.partition("=")
        if equals and name != "prompts" and hasattr(arguments, name):
            raise ValueError(f"{prompt!r} stands where prompts do: write --{name.replace('_', '-')} {value}")


def run_sample(arguments: argparse.Namespace) -> int:
    """``unigrpo sample MODEL PROMPT ...``: prints answers, or saves pictures and a sheet of them."""
    from ..rollout.generate import load_policy
    from ..samplers.semi_autoregressive import EXACT_DECODING
    from ..types import is_picture, spans_of

    _check_prompts(arguments)
    quiet_bars()
    task = arguments.task or ("mmu" if arguments.image else "text")
    policy = load_policy(
        arguments.model,
        policy=arguments.policy,
        dtype=arguments.dtype,
        image_tokenizer=arguments.image_tokenizer,
    )
    repeated = [prompt for prompt in arguments.prompts for _ in range(arguments.num)]
    images = arguments.image
    if images is not None and len(images) > 1:
        if len(images) != len(arguments.prompts):
            raise ValueError(f"{len(images)} --image for {len(arguments.prompts)} prompts; give one, or one a prompt")
        images = [image for image in images for _ in range(arguments.num)]
    names = ("guidance_scale", "image_guidance_scale", "remasking", *EXACT_DECODING)
    given = {key: getattr(arguments, key) for key in names}
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    answers = policy.generate(
        repeated,
        images=images[0] if images is not None and len(images) == 1 else images,
        task=task,
        max_completion_length=arguments.max_completion_length,
        steps=arguments.steps,
        block_length=arguments.block_length,
        temperature=arguments.temperature,
        sampler=arguments.sampler,
        image_size=arguments.image_size,
        seed=arguments.seed,
        **options,
    )
    if is_picture(spans_of(task)[-1]):
        _save_pictures(repeated, arguments.num, answers, Path(arguments.output))
        return 0
    for prompt, answer in zip(repeated, answers, strict=True):
        say(f"> {prompt}\n{answer}\n")
    return 0


def _save_pictures(prompts: list[str], num: int, answers: list[Any], folder: Path) -> None:
    """Pictures, each with its thought beside it where there is one, and a sheet of all, a prompt a line."""
    from ..training.contact_sheet import contact_sheet

    folder.mkdir(parents=True, exist_ok=True)
    drawn = [(answer.picture, answer.thought) if isinstance(answer, tuple) else (answer, "") for answer in answers]
    for number, (picture, thought) in enumerate(drawn):
        picture.save(folder / f"{number:04d}.png")
        if thought:
            (folder / f"{number:04d}.txt").write_text(thought + "\n")
            say(f"> {prompts[number]}\n{thought}\n")
    lines = [drawn[start : start + num] for start in range(0, len(drawn), num)]
    captions = [[thought for _, thought in own] for own in lines]
    sheet = contact_sheet(
        [[picture for picture, _ in own] for own in lines],
        row_labels=prompts[::num],
        captions=captions if any(thought for own in captions for thought in own) else (),
    )
    sheet.save(folder / "sheet.png")
    say(f"wrote {len(drawn)} picture{'s' * (len(drawn) != 1)} and sheet.png to {folder}")


def run_agreement(arguments: argparse.Namespace) -> int:
    """``unigrpo agreement RECIPE [--model PATH] [--limit N] [key=value ...]``."""
    from .agreement.command import agreement
    from .recipe import load_recipe

    quiet_bars()
    agreement(
        load_recipe(arguments.recipe, arguments.overrides),
        model=arguments.model,
        limit=arguments.limit,
        output_dir=arguments.output,
        temperature=arguments.temperature,
        thresholds=arguments.thresholds,
        entropies=arguments.entropies,
    )
    return 0


def run_merge(arguments: argparse.Namespace) -> int:
    """``unigrpo merge ADAPTER OUTPUT``: the whole model, and its card; a ``README.md`` of somebody's own stays."""
    from ..models.adapter_files import check_no_checkpoint
    from ..models.adapters import merged
    from ..models.opening import lineage
    from ..models.reference import is_peft
    from ..rollout.generate import load_policy
    from ..training.card import CARD, Facts, is_ours, merged_card, sealed

    check_no_checkpoint(arguments.output)
    quiet_bars()
    loaded = load_policy(arguments.adapter, dtype=arguments.dtype, device="cpu")
    if not is_peft(loaded.model):
        raise ValueError(f"{arguments.adapter!r} holds no adapter (no adapter_config.json); nothing to merge")
    model = merged(loaded.model)
    model.save_pretrained(arguments.output)
    loaded.policy.processor.save_pretrained(arguments.output)
    adapter, base, *_ = lineage(arguments.adapter)
    card, own = Path(arguments.output) / CARD, Path(adapter) / CARD
    if not card.exists() or is_ours(card):
        facts = Facts(name=card.resolve().parent.name, base=base, kind=type(model))
        said = own.read_text(encoding="utf-8", errors="replace") if own.is_file() else ""
        card.write_text(sealed(merged_card(facts, arguments.adapter, said)), encoding="utf-8")
    say(f"wrote {arguments.output}")
    return 0


def run_inspect(arguments: argparse.Namespace) -> int:
    """``unigrpo inspect MODEL``: what is understood of a checkpoint; 2 where something is missing."""
    from .inspecting import understood

    lines, missing = understood(arguments.model, arguments.policy)
    width = max(len(name) for name, _ in lines)
    say(
        "\n".join(f"{name:{width}}  {value}" for name, value in [*lines, ("missing", "; ".join(missing) or "nothing")])
    )
    return 2 if missing else 0


def run_benchmark(arguments: argparse.Namespace) -> int:
    """``unigrpo benchmark [--algorithms A,B] [--tasks A,B] [--seeds 0,1] ...``: 1 where a cell failed, 130 after Ctrl-C."""
    # By name: the toy worlds stand above the command line.
    benchmark = import_named("unigrpo.toy.benchmark.command:benchmark")
    try:
        results = benchmark(
            algorithms=arguments.algorithms,
            tasks=arguments.tasks,
            seeds=arguments.seeds,
            output_dir=arguments.output_dir,
            jobs=arguments.jobs,
            table_only=arguments.table_only,
            overrides=arguments.overrides,
        )
    except KeyboardInterrupt:
        say("unigrpo: interrupted; the same command goes on with the cells that are missing", error=True)
        return 130
    return 1 if any(entry["failed"] for entry in results["entries"]) else 0


def run_rewards(arguments: argparse.Namespace) -> int:
    """``unigrpo rewards RECIPE --data FILE [--output FILE]``, or the list of rewards."""
    from .recipe import load_recipe
    from .score_file import score_file
    from .score_report import listed

    if arguments.list or (arguments.recipe is None and arguments.data is None):
        lines = listed()
    elif arguments.recipe is None or arguments.data is None:
        raise ValueError(
            "unigrpo rewards: write `unigrpo rewards RECIPE --data completions.jsonl`, or no arguments for the list"
        )
    else:
        lines = score_file(load_recipe(arguments.recipe, arguments.overrides), arguments.data, arguments.output)
    for line in lines:
        say(line)
    return 0


def run_recipes(arguments: argparse.Namespace) -> int:
    """``unigrpo recipes``: what ships with the package; ``unigrpo recipes copy NAME ...``: copies to be changed."""
    from . import packaged

    action, *names = arguments.words or ["list"]
    if action not in ("list", "copy") or (action == "copy") != bool(names):
        raise ValueError(
            f"unigrpo recipes {' '.join(arguments.words)}: write `unigrpo recipes`, or `unigrpo recipes copy NAME ...`"
        )
    packaged.check_known(names)
    for name in names:
        written = packaged.copy(name, Path(arguments.to))
        kind, file = packaged.command(name), written[0]
        launch = f"accelerate launch --config_file {file} -m unigrpo train RECIPE"
        use = launch if kind == "launch" else f"unigrpo {kind} {file}"
        say(f"wrote {', '.join(map(str, written))}; to use it: {use}")
    if names:
        return 0
    commands = {name: packaged.command(name) for name in packaged.names()}
    lists = {
        f"recipes for `unigrpo {own}`": [name for name in commands if commands[name] == own]
        for own in ("train", "sft")
    }
    for title, names in {**lists, "launch files": packaged.launch_files()}.items():
        say(f"{title}:")
        for name in names:
            say(f"  {name:30} {packaged.line(name)}")
    say("\n`unigrpo recipes copy NAME` writes one into this folder, to be changed.")
    return 0

"""What each subcommand does. Everything heavy is imported when its command runs, so that ``--help`` stays instant."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import import_named


if TYPE_CHECKING:
    from .memory import Memory
    from .recipe import Recipe


def run_train(arguments: argparse.Namespace) -> int:
    """``unigrpo train RECIPE [key=value ...]``."""
    from .recipe import load_recipe
    from .train import run_recipe

    run_recipe(load_recipe(arguments.recipe, arguments.overrides))
    return 0


def run_check(arguments: argparse.Namespace) -> int:
    """``unigrpo check RECIPE ... [key=value ...]``: every recipe is checked, one failure is enough for status 1.

    A check imports the code that a recipe names; ``--list-code`` shows it before, and imports nothing. With ``--memory`` a
    recipe that needs more than the card has is a failure too.
    """
    from .build import code_of
    from .check import check_recipe
    from .recipe import load_recipe

    files = [item for item in arguments.recipes if "=" not in item]
    overrides = [item for item in arguments.recipes if "=" in item]
    if not files:
        raise ValueError(f"no recipe among {arguments.recipes}")
    failed = 0
    for file in files:
        try:
            recipe = load_recipe(file, overrides)
            if arguments.list_code:
                print("\n  ".join([f"{file}:", *code_of(recipe)]))
                continue
            notes, fits = check_recipe(recipe, arguments.offline), True
            if arguments.memory is not None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # The check has shown the recipe's own.
                    lines, fits = _memory(partial(_loaded, file, overrides), arguments.memory)
                notes += lines
        except ValueError as error:
            failed += 1
            print(f"{file}: FAILED\n  {error}")
            continue
        failed += not fits
        print(f"{file}: ok" if fits else f"{file}: FAILED, does not fit a card of {arguments.memory:g} GB")
        for note in notes:
            print(f"  {note}")
    return 1 if failed else 0


def _loaded(file: str, overrides: list[str], more: Sequence[str] = ()) -> Recipe:
    from .recipe import load_recipe

    return load_recipe(file, [*overrides, *more])


def _memory(load: Callable[..., Recipe], card: float) -> tuple[list[str], bool]:
    """What a run holds on a card of that many GB, and where it is too much the keys to turn; whether it fits.

    ``load`` gives the recipe with some more overrides.
    """
    from .memory import PHASES, memory_of

    memory = memory_of(load())
    lines = [
        "memory by arithmetic, in GB of 10^9 bytes, of one process that shares no weights; CUDA's own comes on top:"
    ]
    for part in memory.parts:
        when = "always" if part.phases == PHASES else ", ".join(part.phases)
        lines.append(f"  {part.name:17}{_gb(part.bytes):>6}  {when:15}  {part.how}")
    lines += [f"  {note}" for note in memory.notes]
    lines.append("  sums: " + ", ".join(f"{phase} {_gb(count)}" for phase, count in memory.phases.items()))
    most, peak = next(iter(memory.phases.items()))
    if peak <= card * 1e9:
        return [*lines, f"  fits: {_gb(peak)} GB of {card:g}"], True
    lines.append(
        f"  does not fit: {_gb(peak)} GB of {card:g}, in the {most}; keys to turn, and what each saves alone:"
    )
    return lines + _keys_to_turn(load, memory, card * 1e9), False


def _keys_to_turn(load: Callable[..., Recipe], memory: Memory, card: float) -> list[str]:
    """One line a key, those that save most first, and one with those that together are enough."""
    from .memory import memory_of

    over = [phase for phase, count in memory.phases.items() if count > card]
    found = []
    for values in _turns(load()):
        after = memory_of(load(values[0].split("; "))).phases
        each = {own: memory.phases[own] - after.get(own, 0) for own in over}
        saved = max(each.values())
        # Of all that it helps, the largest phase.
        phase = next((own for own in over if each[own] > 0.9 * saved), over[0])
        if saved > card / 200:
            found.append((saved, phase, values))
    found.sort(key=lambda own: -own[0])
    lines = [f"    {values[0].replace(';', ''):62} {_gb(saved):>5} of the {phase}" for saved, phase, values in found]
    peak, taken = memory.phases[over[0]], {}
    # What leaves the run as it is comes first, and is turned further before what changes it is turned at all.
    for kind in (True, False):
        keys = [values for _, _, values in found if (values[0].split("=")[0] not in CHANGE_THE_RUN) is kind]
        for values, step in [(values, step) for step in range(3) for values in keys if step < len(values)]:
            trial = {**taken, values[0]: values[step]}
            lower = max(memory_of(load("; ".join(trial.values()).split("; "))).phases.values())
            if peak > card and lower < peak:
                peak, taken = lower, trial
    words = " ".join(taken.values()).replace(";", "") or "no key helps"
    if peak <= card:
        return [*lines, f"    {words}: {_gb(peak)} GB, which fit"]
    return [
        *lines,
        f"    {words}: {_gb(peak)} GB, which do not fit; share the weights (FSDP, ZeRO-3), or train a smaller model",
    ]


CHANGE_THE_RUN = ("lora", "lora.r", "image_size", "task_overrides.t2i.image_size", "task_overrides.mmu.image_size")
"""Keys that are not about memory and speed alone."""


def _turns(recipe: Recipe) -> list[list[str]]:
    """A key with its values, the mildest first, as overrides; several that belong together stand between "; "."""
    from ..data.image_codes import sides
    from .build import build_config

    args, model, lora = build_config(recipe), recipe.model, recipe.lora or {}
    batch, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    rows = max(batch * args.steps_per_generation, args.per_device_eval_batch_size if recipe.eval_datasets else 0)
    rows = min(rows, args.rollout_batch_size or rows)
    more = "" if args.steps_per_generation == accumulation else "; steps_per_generation={}"
    smaller = f"per_device_train_batch_size={{}}; gradient_accumulation_steps={{}}{more}"
    sizes = (batch, accumulation, args.steps_per_generation)
    where = [f"task_overrides.{task}." for task, own in args.task_overrides.items() if "image_size" in own]
    where += [""] if "image_size" in recipe.config or not where else []
    side = max(max(sides(args.for_task(task).image_size or 512)) for task in ("mmu", "t2i")) // 2 // 16 * 16
    found = [
        [] if lora else ["lora={r: 64, lora_alpha: 64}"],
        ["model.load_in_4bit=true"] if lora and not model.load_in_4bit and not model.load_in_8bit else [],
        [] if args.gradient_checkpointing else ["gradient_checkpointing=true"],
        [f"rollout_batch_size={rows // by}" for by in (2, 4, 8) if rows >= by],
        [smaller.format(sizes[0] // by, sizes[1] * by, sizes[2] * by) for by in (2, 4, 8) if batch % by == 0],
        [] if args.offload_image_tokenizer else ["offload_image_tokenizer=true"],
        [] if args.offload_reward_models else ["offload_reward_models=true"],
        [f"lora.r={lora.get('r', 8) // 2}"] if lora.get("r", 8) > 1 and lora else [],
        ["; ".join(f"{own}image_size={side}" for own in where)],
    ]
    found += [
        [f"task_overrides.{task}.kv_cache=none"] for task in ("text", "mmu") if args.for_task(task).kv_cache != "none"
    ]
    return [values for values in found if values]


def _gb(count: float) -> str:
    """Bytes as GB."""
    return f"{count / 1e9:.1f}" if count > 5e7 else f"{count / 1e9:.2g}"


def run_sample(arguments: argparse.Namespace) -> int:
    """``unigrpo sample MODEL PROMPT ...``: prints answers, or saves pictures and a sheet of them."""
    from ..config.task import EXACT_DECODING
    from ..rollout.generate import load_policy

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
    options: dict[str, Any] = {}
    if arguments.guidance_scale is not None or task != "t2i":
        options["guidance_scale"] = arguments.guidance_scale or 0.0
    for_text = {key: getattr(arguments, key) for key in ("remasking", *EXACT_DECODING)}
    options |= {key: value for key, value in for_text.items() if value is not None}
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
    if task == "t2i":
        _save_pictures(arguments.prompts, arguments.num, answers, Path(arguments.output))
        return 0
    for prompt, answer in zip(repeated, answers, strict=True):
        print(f"> {prompt}\n{answer}\n")
    return 0


def _save_pictures(prompts: list[str], num: int, pictures: list[Any], folder: Path) -> None:
    from ..training.contact_sheet import contact_sheet

    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number:04d}.png")
    rows = [pictures[start : start + num] for start in range(0, len(pictures), num)]
    contact_sheet(rows, row_labels=prompts).save(folder / "sheet.png")
    print(f"wrote {len(pictures)} pictures and sheet.png to {folder}")


def run_evaluate(arguments: argparse.Namespace) -> int:
    """``unigrpo evaluate RECIPE [--model PATH] [key=value ...]``."""
    from .recipe import load_recipe
    from .train import evaluate_recipe

    evaluate_recipe(load_recipe(arguments.recipe, arguments.overrides), arguments.model)
    return 0


def run_agreement(arguments: argparse.Namespace) -> int:
    """``unigrpo agreement RECIPE [--model PATH] [--limit N] [key=value ...]``."""
    from .agreement.command import agreement
    from .recipe import load_recipe

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
    """``unigrpo merge ADAPTER OUTPUT``."""
    from ..models.reference import is_peft
    from ..rollout.generate import load_policy

    loaded = load_policy(arguments.adapter, dtype=arguments.dtype, device="cpu")
    if not is_peft(loaded.model):
        raise ValueError(f"{arguments.adapter!r} holds no adapter (no adapter_config.json); nothing to merge")
    merged = loaded.model.merge_and_unload()
    merged.save_pretrained(arguments.output)
    loaded.policy.processor.save_pretrained(arguments.output)
    print(f"wrote {arguments.output}")
    return 0


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
        print("unigrpo: interrupted; the same command goes on with the cells that are missing", file=sys.stderr)
        return 130
    return 1 if any(entry["failed"] for entry in results["entries"]) else 0


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
        use = "accelerate launch --config_file {} -m unigrpo train RECIPE" if "/" in name else "unigrpo train {}"
        print(f"wrote {', '.join(map(str, written))}; to use it: {use.format(written[0])}")
    if names:
        return 0
    for title, names in (("recipes", packaged.names()), ("launch files", packaged.launch_files())):
        print(f"{title}:")
        for name in names:
            print(f"  {name:22} {packaged.line(name)}")
    print(
        "\n`unigrpo train NAME` runs a recipe; `unigrpo recipes copy NAME` writes one into this folder, to be changed."
    )
    return 0

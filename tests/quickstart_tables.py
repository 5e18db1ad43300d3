"""What the quickstarts' tables are made of: the rows to run, and how their results are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from .figures import between


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """``unigrpo COMMAND RECIPE OVERRIDES``; ``{before}`` in an override is the folder of the row's run before it."""

    recipe: str
    overrides: tuple[str, ...] = ()
    command: str = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is measured together.

    Attributes:
        name: the table and the row in it, ``quickstart/lora``.
        label: what the table calls it.
        runs: one after the other.
        sampled: the last run is measured at temperature 1 too, where its recipe measures the surest answer.
        thoughts: pictures of the last run are drawn under other thoughts too (``unigrpo evaluate --thoughts``).
    """

    name: str
    label: str
    runs: tuple[Run, ...]
    sampled: bool = False
    thoughts: bool = False

    @property
    def table(self) -> str:
        return self.name.partition("/")[0]


def row(name: str, label: str, *overrides: str, **measured: bool) -> Row:
    """A row of one run: of the recipe that its table is called after."""
    recipe = name.partition("/")[0]
    return Row(name=name, label=label, runs=(Run(recipe=recipe, overrides=overrides),), **measured)


def road(seed: int) -> Row:
    """From random weights by given answers to rewards."""
    taught = Run(recipe="quickstart_sft", command="sft", overrides=(f"seed={seed}",))
    rewarded = Run(recipe="quickstart", overrides=(f"seed={seed}", "model.path={before}"))
    return Row(name=f"quickstart_sft/seed-{seed}", label=f"seed {seed}", runs=(taught, rewarded))


def shuffled(*names: str) -> list[str]:
    return [f"rewards.{number}.name=tests.support.controls:shuffled_{own}" for number, own in enumerate(names)]


LORA = ("lora.r=16", "lora.lora_alpha=32", "learning_rate=1e-3")
TEXT_CONTROL, IMAGE_CONTROL = shuffled("correctness", "format"), shuffled("clip_score")

ROWS = (
    row("quickstart/seed-0", "seed 0", "seed=0"),
    row("quickstart/seed-1", "seed 1", "seed=1"),
    row("quickstart/seed-2", "seed 2", "seed=2"),
    row("quickstart/seed-14654921", "seed 14654921, from a commit hash", "seed=14654921"),
    row("quickstart/lora", f"LoRA: `{' '.join(LORA)}`", *LORA),
    row("quickstart/shuffled", "control: the same rewards, shuffled among answers", *TEXT_CONTROL, sampled=True),
    row("quickstart_image/seed-0", "seed 0", "seed=0"),
    row("quickstart_image/seed-1", "seed 1", "seed=1"),
    row("quickstart_image/seed-2", "seed 2", "seed=2"),
    row("quickstart_image/shuffled", "control: the same scores, shuffled among pictures", *IMAGE_CONTROL),
    *(row(f"quickstart_emoji/seed-{own}", f"seed {own}", f"seed={own}") for own in range(3)),
    row("quickstart_emoji/shuffled", "control: the same scores, shuffled among pictures", *IMAGE_CONTROL),
    row("quickstart_mixed/seed-0", "seed 0"),
    *(road(seed) for seed in (0, 1)),
    *(row(f"quickstart_think_draw/seed-{own}", f"seed {own}", f"seed={own}", thoughts=True) for own in range(3)),
    row(
        "quickstart_think_draw/shuffled", "control: the same scores, shuffled", *IMAGE_CONTROL, thoughts=True, sampled=True
    ),
)  # fmt: skip


# ---- the tables ----


def commit(found: dict[str, Any]) -> str:
    return "an earlier commit" if found["commit"] is None else f"`{found['commit'][:7]}`"


def change(found: dict[str, Any]) -> str:
    """``47.1 % → 83.6 % [80.5, 86.7]``."""
    before, after = found["before"], found["after"]
    interval = f"[{100 * after['low']:.1f}, {100 * after['high']:.1f}]"
    return f"{100 * before['mean']:.1f} % → {100 * after['mean']:.1f} % {interval}"


def gain(found: dict[str, Any]) -> str:
    return f"{found['gain_points']:+.1f} points".replace("-", "−")


def text_lines(own: Row, found: dict[str, Any]) -> list[tuple[str, ...]]:
    lines = {own.label: found.get("quickstart"), f"{own.label}, at temperature 1": found.get("temperature 1")}
    return [(label, change(accuracy), gain(accuracy)) for label, accuracy in lines.items() if accuracy]


def image_lines(own: Row, found: dict[str, Any]) -> list[tuple[str, ...]]:
    accuracy = found[own.table]
    scores = [accuracy["rewards"][when] for when in ("before", "after")]
    # Its one reward, under the name of the score or of the shuffled one.
    means = [f"{value:.1f}" for own in scores for name, value in own.items() if name.endswith("clip_score/mean")]
    return [(own.label, change(accuracy), gain(accuracy), " → ".join(means))]


MEASURES = {
    "t2i": ("draw a caption (`t2i`)", "the pixels, {count} pictures"),
    "mmu": ("answer about a picture (`mmu`)", "the exact answer, {count} questions"),
    "text": ("add (`text`)", "the integer, {count} sums"),
}


def mixed_lines(own: Row, found: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (task, how.format(count=found[name]["after"]["count"]), change(found[name]), gain(found[name]))
        for name, (task, how) in MEASURES.items()
    ]


def road_lines(own: Row, found: dict[str, Any]) -> list[tuple[str, ...]]:
    roads = {"fine-tuning": "quickstart_sft", "then rewards": "quickstart"}
    return [(f"{own.label}, {what}", change(found[name]), gain(found[name])) for what, name in roads.items()]


UNDER = {
    "right thoughts": ("given", "of_prompt"),
    "empty": ("empty", "of_prompt"),
    "another riddle's, right for the riddle": ("swapped", "of_prompt"),
    "right for the thought": ("swapped", "of_thought"),
}
"""Columns of pictures under other thoughts, and where ``thoughts.json`` has them."""


def thought_lines(own: Row, found: dict[str, Any]) -> list[tuple[str, ...]]:
    accuracy, thoughts = found["quickstart_think_draw"], found["thoughts"]
    under = [
        tuple(thoughts[when][how][which]["mean"] for when in ("before", "after")) for how, which in UNDER.values()
    ]
    columns = [f"{100 * before:.1f} → {100 * after:.1f} %" for before, after in under]
    lines = [(own.label, change(accuracy), gain(accuracy), *columns)]
    if sampled := found.get("temperature 1"):
        lines.append(
            (f"{own.label}, thoughts at temperature 1", change(sampled), gain(sampled), *("" for _ in columns))
        )
    return lines


TABLES: dict[str, tuple[tuple[str, ...], Callable[[Row, dict[str, Any]], list[tuple[str, ...]]]]] = {
    "quickstart": (("run (3 minutes on 2 cores)", "held-out greedy accuracy", "gain"), text_lines),
    "quickstart_image": (("run", "pixels right, held-out captions", "gain", "CLIP score"), image_lines),
    "quickstart_emoji": (("run", "pixels right, held-out captions", "gain", "CLIP score"), image_lines),
    "quickstart_mixed": (("task", "measured by", "before → after", "gain"), mixed_lines),
    "quickstart_sft": (("run", "held-out greedy accuracy", "gain"), road_lines),
    "quickstart_think_draw": (("run", "pixels right under own thoughts", "gain", *UNDER), thought_lines),
}
"""Heads of the tables, and what a row adds to its own; the commit comes last in all of them."""


def table(name: str, results: dict[str, Any]) -> list[str]:
    """A table's lines; each row names the commit that it was measured at."""
    head, lines_of = TABLES[name]
    lines = [(*head, "code"), ("---",) * (len(head) + 1)]
    for own in (own for own in ROWS if own.table == name and own.name in results):
        found = results[own.name]
        lines += [(*line, commit(found)) for line in lines_of(own, found["measured"])]
    return [f"| {' | '.join(line)} |" for line in lines]


SUMMARY = {
    "quickstart": ("adds; the integer is right, greedy", "quickstart"),
    "quickstart_emoji": ("draws two emoji as captions say; the pixels are right", "quickstart_emoji"),
    "quickstart_image": ("draws captions; the pixels are right", "quickstart_image"),
    "quickstart_think_draw": ("thinks a riddle out and draws it; the pixels are right", "quickstart_think_draw"),
}
"""The main README's few lines: recipe, what is measured, and under which name the results have it."""


def summary(results: dict[str, Any]) -> list[str]:
    """A line a recipe: its first seed before and after, how far all seeds rose, and the shuffled control."""
    head = (
        "`unigrpo train ...`",
        "what is measured, held out",
        "seed 0",
        "all seeds",
        "shuffled rewards, temperature 1",
        "code",
    )
    lines = [head, ("---",) * len(head)]
    for name, (what, where) in SUMMARY.items():
        if f"{name}/seed-0" not in results:
            continue
        seeds = {own: found for own, found in results.items() if own.startswith(f"{name}/seed-")}
        gains = sorted(found["measured"][where]["gain_points"] for found in seeds.values())
        first, control = seeds[f"{name}/seed-0"], results.get(f"{name}/shuffled")
        moved = (
            gain(control["measured"].get("temperature 1", control["measured"][where])) if control else "not measured"
        )
        rose = f"{len(gains)} seeds: {gains[0]:+.1f} to {gains[-1]:+.1f} points"
        lines.append((f"`{name}`", what, change(first["measured"][where]), rose, moved, commit(first)))
    return [f"| {' | '.join(line)} |" for line in lines]


def with_tables(text: str, results: dict[str, Any]) -> str:
    """``text`` with those tables of ``results`` for which it has marks."""
    measured = {own.table for own in ROWS if own.name in results}
    for name, lines in {"summary": summary, **{name: partial(table, name) for name in measured}}.items():
        start, end = f"<!-- measured:{name} -->", f"<!-- /measured:{name} -->"
        text = between(text, start, end, lines(results)) if start in text else text
    return text

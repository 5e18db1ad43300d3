"""The page: what a folder holds, in one file that asks no network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .answers import denoised, sheets, worst
from .curves import Curve, figure
from .headline import headline
from .markup import escaped, folded, pairs, section
from .read import RunFolder


HERE = Path(__file__).parent

TRAIN_CURVES = {
    "KL to the initial policy": ("kl", "kl_exact"),
    "Clip fraction": ("clip_ratio/region_mean",),
    "Loss": ("loss",),
    "Answer length, tokens": ("completions/mean_length", "completions/max_length"),
    "Groups of equal rewards": ("frac_reward_zero_std",),
    "Gradient norm": ("grad_norm",),
    "Entropy, nats": ("entropy",),
    "Learning rate": ("learning_rate",),
}
"""Charts of a run with rewards and the metrics in each, after the rewards; of one with given answers those that it logs."""

PREFIXES = re.compile(r"^(eval_)?(rewards/|completions/)?")
"""What names of lines are shown without."""

NOTES = {
    "Groups of equal rewards": "share of prompts whose answers were all rewarded alike: these teach nothing",
    "Clip fraction": "share of token ratios outside the clip range",
}


def page(folder: RunFolder, denoising: dict[str, list[dict[str, Any]]] | None = None) -> str:
    """The whole page; ``denoising`` replaces the answers that the folder has recorded."""
    recorded = folder.denoising if denoising is None else denoising
    title = name_of(folder)
    body = [headline(folder)]
    if folder.kind != "evaluation":
        body.append(curves(folder))
    body += [sheets(folder), denoised(recorded), worst(folder), started(folder), settings(folder), versions(folder)]
    return document(
        title,
        {"train": "reinforcement learning", "sft": "fine-tuning", "evaluation": "evaluation"}[folder.kind],
        "".join(body),
    )


def document(title: str, kind: str, body: str) -> str:
    """A page of our own around ``body``; style and script stand in it."""
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f'<link rel="icon" href="data:,">\n<title>{escaped(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<header><h1>{escaped(title)}</h1>'
        f"<p>{escaped(kind)}</p></header>\n<main>\n{body}</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def name_of(folder: RunFolder) -> str:
    """The recipe and the folder, or the evaluated model."""
    where = folder.path.resolve().name
    if folder.kind == "evaluation":
        model = folder.results.get("model")
        path = model.get("path") if isinstance(model, dict) else model
        return f"{path} · {where}" if path else where
    recipe = folder.about.get("recipe") or folder.summary.get("recipe")
    return where if recipe is None or Path(str(recipe)).stem == where else f"{Path(str(recipe)).stem} · {where}"


def curves(folder: RunFolder) -> str:
    """Charts over optimizer steps, and a sentence on what is missing."""
    names = list(dict.fromkeys(name for own in folder.metrics for name in own))
    if not folder.metrics:
        return section("Curves", note="metrics.jsonl holds no line yet: nothing was logged.")
    drawn = [figure(own) for own in charts(folder, names)]
    missing = ["Over optimizer steps."]
    if folder.step and len({own.get("step") for own in folder.metrics}) == 1:
        missing.append("One step was logged, so that each curve is a dot.")
    if folder.kind == "train" and not any(name.startswith("reward") for name in names):
        missing.append("No reward was logged yet.")
    if not any(name.startswith("eval_") for name in names):
        missing.append("Held-out rows were not measured on the way: <code>eval_strategy=steps</code> does.")
    return section("Curves", f'<div class="charts">{"".join(drawn)}</div>', note=" ".join(missing))


def charts(folder: RunFolder, names: list[str]) -> list[Curve]:
    """Rewards, then ``TRAIN_CURVES``, then held-out measurements."""

    def chart(title: str, metrics: list[str]) -> Curve:
        lines = {PREFIXES.sub("", name).removesuffix("/mean"): folder.points(name) for name in metrics}
        return Curve(title=title, lines=lines, note=NOTES.get(title, ""))

    by_task = [name for name in names if name.startswith("reward/")]
    each = [name for name in names if name.startswith("rewards/") and name.endswith("/mean")]
    found = [
        chart("Reward", ["reward", *(by_task if len(by_task) > 1 else ())]),
        chart("Each reward", each),
    ]
    found += [chart(title, list(metrics)) for title, metrics in TRAIN_CURVES.items()]
    held_out = [
        name for name in names if name.startswith("eval_reward") and (name.endswith("/mean") or name == "eval_reward")
    ]
    losses = [name for name in names if name.startswith("eval_") and name.endswith("loss")]
    return [*found, chart("Held-out reward", held_out), chart("Held-out loss", losses)]


def started(folder: RunFolder) -> str:
    """The command, the data and the time."""
    if folder.kind == "evaluation":
        names = ("model", "recipe", "seed", "limit", "seconds")
        known = {name: folder.results[name] for name in names if folder.results.get(name) is not None}
        return section("Evaluated", pairs(known)) if known else ""
    about = folder.about
    if not about:
        return section(
            "Started by",
            note="The folder has no <code>unigrpo_run.json</code>, so that nothing is known of the start.",
        )
    words = about.get("overrides")
    command = ["unigrpo", str(about.get("command", folder.kind)), str(about.get("recipe", "")), *map(str, words or ())]
    line = f"<pre>{escaped(' '.join(command))}</pre>" if about.get("recipe") else ""
    note = "" if isinstance(words, list) else "Overrides on the command line were not recorded."
    rest = {name: value for name, value in about.items() if name not in ("command", "overrides", "recipe")}
    return section("Started by", line, pairs({**rest, **(folder.record.identity if folder.record else {})}), note=note)


def settings(folder: RunFolder) -> str:
    """What the run keeps to its end, and what may change on the way; of an evaluation its settings."""
    found = folder.results.get("settings") or {}
    if folder.record is not None:
        found = {**folder.record.kept, **folder.record.told}
    if not found:
        return section("Settings", note="No settings were recorded.")
    return folded("Settings", pairs(found))


def versions(folder: RunFolder) -> str:
    """Versions of the packages, and the engine."""
    source = folder.results if folder.kind == "evaluation" else folder.summary
    found = {
        **(source.get("versions") or {}),
        **{f"engine.{name}": own for name, own in (source.get("engine") or {}).items()},
    }
    if not found:
        return section("Versions", note="They are written when a run comes to its end.")
    return folded("Versions", pairs(found))

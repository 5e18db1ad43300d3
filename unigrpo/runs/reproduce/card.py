"""The card of a reproduction: its numbers with everything they depend on, sealed by a hash, and what of it differs here."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ...terminal import masked
from ...training.checkpoints.run_record import RunRecord, changes
from ..again import shown_words
from ..recipe import Recipe, load_recipe
from ..report.read import is_number
from ..train import versions
from .plan import expected_text, short
from .table import REPRODUCTIONS, Budget, Expected


CARD = "card.json"
FORMAT = 1


def settings_of(own: Recipe) -> dict[str, Any]:
    """A recipe as it is read, without what belongs to this machine or this start."""
    found = asdict(own)
    for key in ("source", "folder", "overrides", "allow_hosts"):
        del found[key]
    own_keys = ("output_dir", "resume_from_checkpoint", "overwrite", "disable_tqdm")
    found["config"] = {key: value for key, value in found["config"].items() if key not in own_keys}
    return json.loads(json.dumps(masked(found), default=str))


def recipe_of(name: str, budget: Budget, words: list[str]) -> Recipe:
    """The recipe of a reproduction with its budget's overrides and those of the command line."""
    return load_recipe(REPRODUCTIONS[name].recipe, [*budget.overrides, *words])


@cache
def code_digest() -> str:
    """16 hexadecimal digits of the package's own code and recipes, wherever it is installed."""
    root, found = Path(__file__).parents[2], hashlib.sha256()
    for folder, _, files in sorted(os.walk(root, followlinks=True)):
        for name in sorted(files):
            if name.endswith((".py", ".yaml", ".txt")):
                path = Path(folder) / name
                found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def hardware() -> str:
    """What it was computed on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


def value_of(summary: Mapping[str, Any], measure: str, label: str) -> dict[str, Any] | None:
    """The measure before or after, in the unit of the expectation, with its interval and count where it has them."""
    if measure == "accuracy":
        found = summary.get(f"held_out_accuracy_{label}")
        if not found:
            return None
        return {"count": found["count"], **{key: round(100 * found[key], 4) for key in ("mean", "low", "high")}}
    value = summary.get(f"held_out_rewards_{label}", {}).get(measure)
    return {"mean": round(value, 4)} if is_number(value) else None


def verdict(
    expected: Expected, before: dict[str, Any] | None, after: dict[str, Any] | None, changed: list[str]
) -> str:
    """What the numbers say of the expectation, in a sentence."""
    if before is None or after is None:
        return "not measured: the run left no held-out numbers"
    gain = after["mean"] - before["mean"]
    parts = [("before", before["mean"], expected.before), ("gain", gain, expected.gain)]
    outside = [
        f"{name} {value:.1f} is not in [{low:g}, {high:g}]"
        for name, value, (low, high) in parts
        if not low <= value <= high
    ]
    if changed:
        return f"not comparable: settings were changed ({' '.join(changed)})"
    return (
        f"outside the expectation: {', '.join(outside)}"
        if outside
        else "reproduced: within what was expected beforehand"
    )


def make_card(
    name: str, budget_name: str, budget: Budget, words: list[str], summary: dict[str, Any], record: RunRecord | None
) -> dict[str, Any]:
    """The card of a finished run, sealed."""
    expected, changed = budget.expected, shown_words(words)
    before, after = (value_of(summary, expected.measure, label) for label in ("before", "after"))
    card = {
        "format": FORMAT,
        "name": name,
        "title": REPRODUCTIONS[name].title,
        "budget": budget_name,
        "changed": changed,
        "expected": json.loads(json.dumps(asdict(expected))),
        "measured": {"before": before, "after": after, "gain": gain_of(before, after)},
        "verdict": verdict(expected, before, after, changed),
        "steps": summary.get("optimizer_steps"),
        "seconds": summary.get("train_seconds"),
        "hardware": hardware(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": summary.get("versions", versions()),
        "code": code_digest(),
        "settings": settings_of(recipe_of(name, budget, words)),
        "run": {**(record.identity if record else {}), "kept": record.kept if record else {}},
    }
    card = json.loads(json.dumps(card))
    return {**card, "hash": seal(card)}


def gain_of(before: dict[str, Any] | None, after: dict[str, Any] | None) -> float | None:
    """After less before."""
    return round(after["mean"] - before["mean"], 4) if before and after else None


def seal(card: dict[str, Any]) -> str:
    """SHA-256 of everything on the card but the hash itself: it shows that a card was changed, not who wrote it."""
    text = json.dumps({key: value for key, value in card.items() if key != "hash"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_card(path: str) -> tuple[list[str], bool]:
    """What is found of a card in a file, a line each, and whether it is whole: unchanged since it was sealed, its verdict that of its numbers.

    What differs from this installation is said, and is no fault of the card.

    Raises:
        ValueError: there is no card in the file.
    """
    card = read_card(Path(path))
    lines = [f"{path}: {card['name']}, budget {card['budget']}: {card['verdict']}"]
    whole = card.get("hash") == seal(card)
    lines.append("hash: as it was sealed" if whole else "hash: FAILED, the card was changed after it was sealed")
    before, after = card["measured"].get("before"), card["measured"].get("after")
    expected = _expected(card)
    honest = verdict(expected, before, after, card["changed"]) == card["verdict"] and card["measured"].get(
        "gain"
    ) == gain_of(before, after)
    lines.append(
        "verdict: follows from its numbers" if honest else "verdict: FAILED, it does not follow from its numbers"
    )
    different = differences(card)
    lines += [f"differs here: {line}" for line in different] or [
        "settings, versions and code: the same as of this installation"
    ]
    return lines, whole and honest


def read_card(path: Path) -> dict[str, Any]:
    """The card in a file.

    Raises:
        ValueError: there is none that can be read.
    """
    kinds = {
        "name": str,
        "budget": str,
        "verdict": str,
        "changed": list,
        "measured": dict,
        "settings": dict,
        "versions": dict,
    }
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']!r}, not {FORMAT}")
        wrong = [key for key, kind in kinds.items() if not isinstance(card[key], kind)]
        wrong += [] if all(isinstance(word, str) for word in card["changed"]) else ["changed"]
        # Comparing them once finds numbers that are none.
        verdict(_expected(card), card["measured"]["before"], card["measured"]["after"], card["changed"])
        if wrong:
            raise ValueError(f"{wrong[0]} is no {kinds[wrong[0]].__name__}")
    except OSError as error:
        raise ValueError(f"--check {str(path)!r} cannot be read ({error.strerror}): give a card.json") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--check {str(path)!r} is no card of `unigrpo reproduce` ({type(error).__name__}: {error})"
        ) from None
    return card


def _expected(card: dict[str, Any]) -> Expected:
    """The expectation on a card."""
    ranges = {key: (float(card["expected"][key][0]), float(card["expected"][key][1])) for key in ("before", "gain")}
    return Expected(measure=str(card["expected"]["measure"]), source=str(card["expected"]["source"]), **ranges)


def differences(card: dict[str, Any]) -> list[str]:
    """What this installation would do otherwise: expectation, settings, versions, code."""
    own = REPRODUCTIONS.get(card["name"])
    budget = own.budgets.get(card["budget"]) if own else None
    if budget is None:
        return [f"there is no {card['name']!r} with budget {card['budget']!r}"]
    here = json.loads(json.dumps(asdict(budget.expected)))
    found = [f"expected.{line}" for line in changes(card["expected"], here)]
    try:
        settings = settings_of(
            recipe_of(card["name"], budget, [word for word in card["changed"] if "=***" not in word])
        )
        found += [f"settings.{line}" for line in changes(card["settings"], settings)]
    except ValueError as error:
        found.append(f"settings cannot be read here: {error}")
    found += [f"versions.{line}" for line in changes(card["versions"], versions())]
    return found + (
        [] if card.get("code") == code_digest() else [f"code was {card.get('code')} and is {code_digest()}"]
    )


def shown_numbers(card: dict[str, Any]) -> tuple[str, str]:
    """Before and after in large, and the gain beside what was expected."""
    unit = " %" if card["expected"]["measure"] == "accuracy" else ""

    def number(own: dict[str, Any] | None) -> str:
        return "not measured" if own is None else f"{own['mean']:.1f}{unit}"

    measured, expected = card["measured"], _expected(card)
    gain = "" if measured["gain"] is None else f"gain {measured['gain']:+.1f}; "
    ends = [
        f"[{own['low']:.1f}, {own['high']:.1f}]"
        for own in (measured["before"], measured["after"])
        if own and "low" in own
    ]
    gain = (f"95 % intervals {' and '.join(ends)}; " if ends else "") + gain
    return f"{number(measured['before'])} → {number(measured['after'])}", f"{gain}expected: {expected_text(expected)}"


def measure_name(card: dict[str, Any]) -> str:
    """The measure for a reader, with the rows that it is of."""
    after = card["measured"]["after"] or {}
    rows = f" on {after['count']} rows" if "count" in after else ""
    return f"held-out {short(card['expected']['measure'])}{rows}"

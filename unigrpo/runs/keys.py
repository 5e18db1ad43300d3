"""``unigrpo keys``: every key with its default, its range and its sentence, from the part that reads it."""

from __future__ import annotations

import difflib
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from types import MappingProxyType
from typing import Any

from transformers import TrainingArguments

from ..algorithm.advantages import ADVANTAGE_ESTIMATORS
from ..algorithm.combining import RewardTerm
from ..algorithm.denoising import MaskedDenoising
from ..algorithm.loss import PolicyLoss
from ..config.arguments import OWN_KEYS, UniGRPOConfig
from ..config.denoising_arguments import DENOISING_KEYS, MaskedDenoisingConfig
from ..config.denoising_presets import OBJECTIVES
from ..config.presets import PRESETS
from ..config.run_keys import RunKeys
from ..config.task import PARTS, TaskKeys
from ..parts import Key, choose, keys_of


KINDS: dict[str, Mapping[str, Any]] = {**PARTS, "advantage_estimator": ADVANTAGE_ESTIMATORS}
WHOLE = {
    "of the run": dict(OWN_KEYS) | dict(keys_of(RunKeys)),
    "of each task": keys_of(TaskKeys),
    "of the loss": keys_of(PolicyLoss),
    "of a reward in a recipe": keys_of(RewardTerm),
    "of fine-tuning (`unigrpo sft`)": DENOISING_KEYS,
    "of a fine-tuning objective": keys_of(MaskedDenoising),
}
OF_A_RUN = [*WHOLE["of the run"].values(), *WHOLE["of the loss"].values()]
INHERITED = {
    kind: {
        own.name: own.default if own.default_factory is MISSING else own.default_factory()
        for own in fields(arguments)
        if own.init and own.name in TrainingArguments.__dataclass_fields__
    }
    for kind, arguments in (("train", UniGRPOConfig), ("sft", MaskedDenoisingConfig))
}
"""Keys of transformers that a recipe of either command takes, with their defaults here."""
WIDTH = 120


def describe(words: Sequence[str] = ()) -> Iterator[str]:
    """Lines about the keys, parts and kinds of parts that ``words`` name; about everything without words.

    Raises:
        ValueError: a word that names nothing.
    """
    if words:
        for word in words:
            yield from _about(word)
        return
    for title, keys in WHOLE.items():
        yield f"Keys {title}"
        yield from _keys(keys)
    for kind in KINDS:
        yield from _about(kind)
    for name in OBJECTIVES:
        yield from _objective(name)
    ours = {name for keys in WHOLE.values() for name in keys}
    yield "Keys of transformers' TrainingArguments; `unigrpo keys NAME` has the default of one"
    names = ", ".join(sorted(INHERITED["train"].keys() - ours))
    yield textwrap.fill(names, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _about(word: str) -> Iterator[str]:
    if word in KINDS:
        yield f"{word}: NAME, or {{name: NAME, key: value}}, or pkg.mod:attr of your own"
        every = [keys_of(part) for part in KINDS[word].values()]
        shared = {name: about for name, about in every[0].items() if all(about == own.get(name) for own in every)}
        yield from _keys(shared)
        for name, part in KINDS[word].items():
            yield from _part(f"{word} {name}", part, without=shared)
        return
    if ":" in word:
        yield from _part(word, choose("part", word, {}).part)
        return
    parts = [(kind, name, part) for kind, table in KINDS.items() for name, part in table.items()]
    named = [(f"{kind} {name}", part) for kind, name, part in parts if name == word]
    readers = [(f"{kind} {name}", keys_of(part)) for kind, name, part in parts]
    readers = [(title, keys[word]) for title, keys in [*WHOLE.items(), *readers] if word in keys]
    if not named and not readers:
        if word in OBJECTIVES:
            yield from _objective(word)
            return
        if word in INHERITED["train"]:
            yield from _inherited(word)
            return
        if word not in PRESETS:
            keys = {
                key
                for keys in (*WHOLE.values(), *INHERITED.values(), *(keys_of(part) for *_, part in parts))
                for key in keys
            }
            near = difflib.get_close_matches(
                word, [*keys, *KINDS, *(name for _, name, _ in parts), *PRESETS, *OBJECTIVES], n=1
            )
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{word!r} is no key and no part: {hint}`unigrpo keys` lists all")
        yield f"algorithm {word}"
        yield from (f"  {key}: {value}" for key, value in PRESETS[word].items())
    for title, part in named:
        yield from _part(title, part)
    for title, about in readers:
        yield f"Key {title}" if title in WHOLE else title
        yield from _keys({word: about})


def _inherited(word: str) -> Iterator[str]:
    defaults = {kind: "none" if keys[word] is None else str(keys[word]) for kind, keys in INHERITED.items()}
    train, sft = defaults["train"], defaults["sft"]
    yield "Key of transformers' TrainingArguments, whose documentation says what it does"
    yield f"  {word}: {train}" + ("" if train == sft else f" (`unigrpo sft`: {sft})")
    yield ""


def _objective(name: str) -> Iterator[str]:
    text = " ".join((inspect.getdoc(OBJECTIVES[name]) or "").partition("\n\n")[0].split())
    yield textwrap.fill(f"objective {name}: {text}", WIDTH, subsequent_indent="    ")
    for task, keys in OBJECTIVES[name]().items():
        yield f"  {task}: " + (", ".join(f"{key}={value}" for key, value in keys.items()) or "the defaults")
    yield ""


def _part(title: str, part: Any, without: Mapping[str, Key] = MappingProxyType({})) -> Iterator[str]:
    text = " ".join((inspect.getdoc(part) or "").partition("\n\n")[0].split())
    yield textwrap.fill(f"{title}: {text}" if text else title, WIDTH, subsequent_indent="    ")
    yield from _keys({name: about for name, about in keys_of(part).items() if name not in without})


def _keys(keys: Mapping[str, Key]) -> Iterator[str]:
    for name, about in keys.items():
        # What a run gets that sets nothing: its algorithm is unigrpo then. A part of one's own may have a key of that name.
        usual = PRESETS["unigrpo"].get(name, about.default) if about in OF_A_RUN else about.default
        default = "none" if usual is None else str(usual)
        said = about.range.replace("not be negative", "at least 0").removeprefix("lie in ").removeprefix("be ")
        limits = "" if said == "finite" else f", {said}"
        choices = f", one of {' '.join(about.choices)}" if about.choices else ""
        yield f"  {name}: {default}{choices}{limits}"
        if about.help:
            yield textwrap.fill(about.help, WIDTH, initial_indent="      ", subsequent_indent="      ")
    yield ""

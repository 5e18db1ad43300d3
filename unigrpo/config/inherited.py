"""Keys that belong to others' dataclasses, ``TrainingArguments`` and those of peft: typed by their own annotations.

The types are read, not listed: they differ between versions, and a field that is new is checked like the others.
"""

from __future__ import annotations

import enum
import json
import math
import multiprocessing
import numbers
import os
import re
import reprlib
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from transformers import TrainingArguments
from transformers.debug_utils import DebugOption
from transformers.trainer_pt_utils import AcceleratorConfig

from ..errors import check_choice
from ..parts import is_finite


AT_LEAST = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("eval_accumulation_steps", "torch_empty_cache_steps", "dataloader_prefetch_factor"), 1),
    **dict.fromkeys(("ddp_bucket_cap_mb", "ddp_timeout"), 1),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "warmup_ratio"), 0),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon", "label_smoothing_factor", "num_train_epochs"), 0),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps", "save_total_limit", "eval_delay"), 0),
    **dict.fromkeys(("seed", "data_seed", "dataloader_num_workers", "neftune_noise_alpha"), 0),
    "max_steps": -1,
    "lora.r": 1,
    "lora.lora_dropout": 0,
}
"""The least that a number may be."""

BELOW = {
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor", "warmup_ratio", "lora.lora_dropout"), 1),
    **dict.fromkeys(("seed", "data_seed"), 2**32),
}
"""What a number must stay under."""

FILES = ("accelerator_config", "deepspeed", "fsdp_config")
"""Mappings that may be a path; the others may be JSON only."""

NESTED = {"accelerator_config": AcceleratorConfig}
"""Mappings of which a dataclass is made."""

PLAIN = (str, bytes, numbers.Number, list, tuple, set, frozenset, type(None))

NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
"""A number as text: YAML reads ``1e-4``, without a dot, as text."""

MAY_BE_NONE = ("debug", "report_to", "max_grad_norm", "resume_from_checkpoint")
"""None means "not given" there, whatever the annotation says: parsers of the command line write it."""

MISFIT = object()


def settle_inherited(args: Any) -> None:
    """Gives the fields of ``TrainingArguments`` their types: numbers written as text become numbers.

    Raises:
        ValueError: a value of another type, out of range, or not among the choices; the message names field and cure.
    """
    own_fields = {own.name: own for own in fields(args)}
    for name, kind in _hints(TrainingArguments).items():
        value = getattr(args, name)
        own = own_fields[name]
        default, choices = own.default, _choices(name) or tuple(own.metadata.get("choices") or ())
        if (type(value) is type(default) and value == default) or (value is None and name in MAY_BE_NONE):
            continue
        # A text for the command line's sake; a recipe says true.
        if isinstance(own.metadata.get("const"), bool) or name == "resume_from_checkpoint":
            kind = kind | bool
        setattr(args, name, settled(name, value, kind, choices))


def settle_fields(kind: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``values`` as fields of the dataclass ``kind``, typed; ``where``, with a dot, is put before their names.

    Raises:
        ValueError: an unknown field, or a value that it does not take.
    """
    hints = _hints(kind)
    for name in values:
        check_choice(f"{where[:-1]} key", name, tuple(hints))
    return {name: settled(f"{where}{name}", value, hints[name]) for name, value in values.items()}


def settled(name: str, value: Any, kind: Any, choices: tuple[str, ...] = ()) -> Any:
    """``value`` as one of the type ``kind``, in the range and among the choices that ``name`` has.

    Raises:
        ValueError: it is none.
    """
    options = _options(kind)
    choices = choices or tuple(word for option in options for word in _words_of(option))
    found = _first(_exact, value, options)
    found = _first(_read, value, options) if found is MISFIT else found
    if isinstance(value, Mapping):
        parts = NESTED.get(name) or next((own for own in options if isinstance(own, type) and is_dataclass(own)), None)
        # peft makes its parts of mappings; transformers takes made ones, but for those in NESTED.
        if parts is not None and (name in NESTED or "." in name):
            return settle_fields(parts, value, f"{name}.")
    if found is MISFIT or not _in_range(name, found):
        if isinstance(value, str) and choices:
            check_choice(name, value, choices)
        quotes = ", without quotes" if isinstance(value, str) and bool in options and str not in options else ""
        raise ValueError(f"{name}={_shown(name, value)} must be {_described(name, options)}{quotes}")
    words = found.split() if name == "debug" and isinstance(found, str) else found
    for word in words if isinstance(words, list | tuple) else [words]:
        if choices and (isinstance(word, str) or name == "report_to") and not _of_pattern(word, choices):
            check_choice(name, word.value if isinstance(word, enum.Enum) else word, choices)
    if isinstance(found, str) and dict in map(_bare, options):
        _check_file(name, found)
    return found


def _first(attempt: Callable[[Any, Any], Any], value: Any, options: tuple[Any, ...]) -> Any:
    """What ``attempt`` makes of ``value`` with the first of the types that it fits."""
    return next((own for own in (attempt(value, option) for option in options) if own is not MISFIT), MISFIT)


def _options(kind: Any) -> tuple[Any, ...]:
    """The types of a union, one by one."""
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(option for part in get_args(kind) for option in _options(part))
    return (kind,)


def _bare(kind: Any) -> Any:
    return get_origin(kind) or kind


def _exact(value: Any, kind: Any) -> Any:
    """``value`` if it is of the type ``kind``, else ``MISFIT``."""
    bare = _bare(kind)
    if kind is Any:
        fits = True
    elif kind in (None, type(None)):
        fits = value is None
    elif bare is Literal:
        fits = any(value is own or (isinstance(own, str) and value == own) for own in get_args(kind))
        fits = fits or _of_pattern(value, _words_of(kind))
    elif bare in (int, float):
        number = numbers.Integral if bare is int else numbers.Real
        fits = isinstance(value, number) and not isinstance(value, bool) and is_finite(value)
    elif bare in (list, tuple, set):
        return _items(value, kind)
    elif bare is dict:
        # Also what a library makes of a mapping, an object of a class of its own.
        inner = _options(get_args(kind)[1]) if get_args(kind) else (Any,)
        fits = not isinstance(value, (*PLAIN, type))
        if isinstance(value, Mapping):
            fits = all(_first(_exact, item, inner) is not MISFIT for item in value.values())
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        fits = isinstance(value, kind) or value in _words_of(kind)
    else:
        fits = not isinstance(bare, type) or isinstance(value, bare)
    return value if fits else MISFIT


def _items(value: Any, kind: Any) -> Any:
    """A list whose items are of the type that ``kind`` has for them."""
    if not isinstance(value, list | tuple | set):
        return MISFIT
    inner = [own for own in get_args(kind) if own is not Ellipsis]
    if _bare(kind) is tuple and len(inner) > 1:
        if len(inner) != len(value):
            return MISFIT
    else:
        inner = [*inner, Any][:1] * len(value)
    fits = all(_first(_exact, item, _options(own)) is not MISFIT for item, own in zip(value, inner, strict=True))
    return value if fits else MISFIT


def _read(value: Any, kind: Any) -> Any:
    """``value`` converted to ``kind`` where nothing is lost, else ``MISFIT``: ``"1e-4"``, ``100.0`` steps, a path."""
    if isinstance(value, os.PathLike) and kind is str:
        return os.fspath(value)
    if isinstance(value, str) and kind in (int, float) and NUMBER.fullmatch(value):
        value = float(value) if set(value) & set(".eE") else int(value)
    elif kind is not int or not isinstance(value, float):
        return MISFIT
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    return _exact(value, kind)


def _in_range(name: str, value: Any) -> bool:
    if value is None or not isinstance(value, numbers.Real):
        return True
    return value < BELOW.get(name, math.inf) and not value < AT_LEAST.get(name, -math.inf)


def _choices(name: str) -> tuple[str, ...]:
    """The words that a field takes, where its type does not say so."""
    if name == "report_to":
        from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

        return ("none", "all", *INTEGRATION_TO_CALLBACK)
    if name == "debug":
        return tuple(option.value for option in DebugOption)
    if name == "dataloader_multiprocessing_context":
        return tuple(multiprocessing.get_all_start_methods())
    return ("no", "all", "non_padding") if name == "include_num_input_tokens_seen" else ()


def _words_of(kind: Any) -> tuple[str, ...]:
    """The words that an enum or a ``Literal`` takes."""
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return tuple(str(own.value) for own in kind)
    return tuple(own for own in get_args(kind) if isinstance(own, str)) if get_origin(kind) is Literal else ()


def _of_pattern(word: Any, choices: tuple[str, ...]) -> bool:
    """peft writes ``pissa_niter_[number of iters]`` for ``pissa_niter_4``."""
    heads = [choice.partition("[")[0] for choice in choices if "[" in choice]
    return isinstance(word, str) and any(word.startswith(head) and word[len(head) :].isdigit() for head in heads)


def _check_file(name: str, text: str) -> None:
    """A text where a mapping is expected is JSON, or for ``FILES`` a path."""
    if text.lstrip().startswith("{"):
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}={reprlib.repr(text)} is not JSON: {error}") from error
    elif name not in FILES:
        raise ValueError(f"{name}={reprlib.repr(text)} must be a mapping, or JSON of one")
    elif name != "deepspeed" and not os.path.isfile(text):  # deepspeed also takes its settings in base64.
        raise ValueError(f"{name}={text!r} is not a file: give the path of a JSON file, or the mapping itself")


def _described(name: str, options: tuple[Any, ...]) -> str:
    """What a field takes, in words."""
    words = list(dict.fromkeys(_word(option) for option in options))
    text = " or ".join(sorted(words, key=lambda word: word == "None"))
    low, high = AT_LEAST.get(name), BELOW.get(name)
    if low is not None:
        text = text.replace("number", f"number of at least {low}" + ("" if high is None else f" and below {high}"), 1)
    return text


def _word(kind: Any) -> str:
    bare, inner = _bare(kind), get_args(kind)
    known = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}
    if bare in known:
        return known[bare]
    if kind in (None, type(None)):
        return "None"
    if bare in (list, tuple, set):
        return "a list" + (f" of {_word(inner[0]).removeprefix('a ')} items" if inner else "")
    if bare is Literal:
        return f"one of {list(inner)}"
    if _words_of(kind):
        return f"one of {list(_words_of(kind))}"
    return f"a {getattr(bare, '__name__', bare)}"


def _shown(name: str, value: Any) -> str:
    return "***" if name.endswith("token") else reprlib.repr(value)


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    """Field -> type of a dataclass."""
    hints = get_type_hints(kind)
    return {own.name: hints[own.name] for own in fields(kind) if own.init}

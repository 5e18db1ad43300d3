"""The one way in for checkpoints: data, never code, and no larger than the files say.

Code that lies in a checkpoint's folder is imported only with ``trust_remote_code=True``. The default is False and not
transformers' None, which asks on standard input.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from ..errors import CheckpointError
from .adapter_files import ADAPTER_FILE
from .checkpoint_files import MANY_LAYERS, check_declared, check_loaded, check_names, check_numbers, hub_file, reading
from .hub import finding


IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
"""Options of loading that name kernels, which may be code of the hub. They are the caller's; a checkpoint's are dropped."""


def load_config(path: str, **kwargs: Any) -> Any:
    """The configuration of a checkpoint, an id or a folder.

    Raises:
        ValueError: it cannot be read, or needs code of its own and ``trust_remote_code`` is not True.
        SourceError: there is nothing at ``path``, or no way to it.
    """
    _check_whole(path)
    with reading(f"config.json of {path!r}"), finding(path, f"model {str(path)!r}"):
        return _own_kernels(AutoConfig.from_pretrained(path, **{"trust_remote_code": False, **kwargs}), kwargs)


def _check_whole(path: str) -> None:
    """Raises ``ValueError`` for an adapter in place of a model."""
    if Path(path, ADAPTER_FILE).is_file() and not Path(path, "config.json").is_file():
        raise ValueError(
            f"{path!r} is an adapter, not a model: `unigrpo merge {path} FOLDER` first, or pass "
            "PeftModel.from_pretrained(base, adapter, is_trainable=True) from Python"
        )


def load_module(model_class: Any, path: str, **kwargs: Any) -> Any:
    """``model_class.from_pretrained(path, **kwargs)`` of files that may be damaged or hostile.

    ``allow_missing=[...]`` among ``kwargs`` names parameters, with ``*`` for any letters, that may keep random values.

    Raises:
        CheckpointError: weights of another family, or parameters of a transformers model that do not come from the files.
        ValueError: the files cannot be read, need code of their own without ``trust_remote_code=True``, hold more than
            tensors, or are far smaller than the configuration says; or ``weights_only=False``, which would unpickle.
        SourceError: there is nothing at ``path``, or no way to it.
    """
    if not kwargs.get("weights_only", True):
        raise ValueError("weights_only=False would unpickle the checkpoint, which can run code; leave it out")
    check_dtype(kwargs.get("dtype"))
    _check_whole(path)
    kwargs.setdefault("trust_remote_code", False)
    allow_missing, what = kwargs.pop("allow_missing", ()), f"model {str(path)!r}"
    with reading(what), finding(path, what):
        if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
            return model_class.from_pretrained(path, **kwargs)
        for name in IMPLEMENTATIONS:
            kwargs.setdefault(name, None)
        config_class = getattr(model_class, "config_class", None)
        config = None
        checked = config_class is not None and "config" not in kwargs
        if checked and (file := hub_file(path, "config.json", **kwargs)) is not None:
            check_family(file, config_class, what)
            check_kinds(file, config_class, what)
            config, _ = config_class.from_pretrained(path, **kwargs, return_unused_kwargs=True)
            check_declared(_own_kernels(config, kwargs), model_class, path, what, **kwargs)
            kwargs.pop("force_download", None)  # All of it was, just now.
        try:
            return _complete(model_class.from_pretrained, path, what, allow_missing, **kwargs)
        except RuntimeError:
            if config is not None:
                # Of tensors that it converts transformers says only that something is wrong.
                check_names(config, model_class, path, what, **kwargs)
            raise


def check_dtype(dtype: Any) -> None:
    """Raises ``ValueError`` for a ``dtype`` of loading in which no weights compute: it is "auto", a name of torch's, or the thing itself."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype not in ("auto", None) and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"dtype={dtype!r} is none for weights: give auto, float32, bfloat16 or float16")


NOT_FROM_SCRATCH = {
    "quantization_config": "packs weights that were trained",
    "device_map": "places weights while they are read",
    "allow_missing": "names what files lack",
}
"""Options that say something of weights in files, and what."""


def check_from_scratch(options: Mapping[str, Any] | None, adapters: bool) -> None:
    """Raises ``ValueError`` for options that do not go with ``from_scratch``."""
    options = options or {}
    asked = options.get("from_scratch")
    if not isinstance(asked, bool | None):
        raise ValueError(f"from_scratch={asked!r} must be true or false")
    for name, what in NOT_FROM_SCRATCH.items() if asked else ():
        if options.get(name):
            raise ValueError(f"from_scratch=True reads no weights, and {name} {what}: leave out one of the two")
    if asked and adapters:
        raise ValueError(
            "from_scratch=True with an adapter would leave the random weights under it as they are: train the whole model "
            "(lora: null)"
        )


def fresh_module(model_class: Any, path: str, seed: int, **kwargs: Any) -> Any:
    """A module of the configuration at ``path``, whose weights its class draws from ``seed``; no weights are read.

    Args:
        seed: the same one makes the same weights, on the CPU and in float32, whatever was drawn before.
        kwargs: of ``from_pretrained``, as far as they are no matter of weights.

    Raises:
        CheckpointError: the configuration of another family.
        ValueError: it cannot be read, or ``model_class`` is no ``PreTrainedModel``.
        SourceError: there is nothing at ``path``, or no way to it.
        TypeError: an option that the configuration does not take.
    """
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise ValueError(
            f"from_scratch=True needs a model_class derived from PreTrainedModel, and it is {model_class!r}"
        )
    check_dtype(kwargs.get("dtype"))
    check_from_scratch({"from_scratch": True, **kwargs}, False)
    _check_whole(path)
    dtype, what = kwargs.pop("dtype", "auto"), f"model {str(path)!r}"
    kernels = {name: kwargs.pop(name, None) for name in IMPLEMENTATIONS}
    trusted = {"trust_remote_code": kwargs.pop("trust_remote_code", False)}
    with reading(what), finding(path, what):
        if (file := hub_file(path, "config.json", **kwargs)) is not None:
            check_family(file, model_class.config_class, what)
        config, left = model_class.config_class.from_pretrained(path, **trusted, **kwargs, return_unused_kwargs=True)
        left = sorted(left.keys() - trusted.keys())
        if left:
            raise TypeError(f"unexpected keyword argument {left[0]!r}: nothing takes it from scratch")
        check_numbers(config.to_dict(), what, MANY_LAYERS)
        config.name_or_path = str(path)
        dtype = config.dtype if dtype == "auto" else dtype
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            module = model_class(_own_kernels(config, kernels))
        return module.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32)


def _complete(load: Callable, path: str, what: str, allow_missing: Sequence[str] | str = (), **kwargs: Any) -> Any:
    """What ``load`` makes of ``path``, once all of it is known to come from the files."""
    kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, found = load(path, **kwargs)
    check_loaded(what, found, allow_missing)
    return model


def check_family(file: Path, config_class: Any, what: str) -> None:
    """Raises ``CheckpointError`` for a configuration that says it is another model's."""
    said = json.loads(file.read_text(encoding="utf-8"))
    wanted, found = config_class.model_type, said.get("model_type")
    taken = (wanted, *getattr(config_class, "converts", ()), *getattr(config_class, "published_types", ()))
    if set(said.get("architectures") or ()) & set(getattr(config_class, "published_architectures", ())):
        return
    if isinstance(found, str) and found and wanted and found not in taken:
        raise CheckpointError(
            f"{what}: this is a {found} checkpoint, opened as {wanted}: set policy to one of its own family"
        )


NUMBERS = {"int", "float", "int | None", "float | None"}
"""How configurations of this library say in their arguments that a field is a number; those of transformers look for themselves."""


def check_kinds(file: Path, config_class: Any, what: str) -> None:
    """Raises ``ValueError`` for a text, a mapping or a truth value where a configuration has a number."""
    said = json.loads(file.read_text(encoding="utf-8"))
    for kind in config_class.__mro__:
        for name, hint in getattr(vars(kind).get("__init__"), "__annotations__", {}).items():
            if hint in NUMBERS and isinstance(said.get(name), str | dict | bool):
                raise ValueError(f"{what}: {name}={said[name]!r} in config.json must be a number")


def _own_kernels(config: Any, options: dict[str, Any]) -> Any:
    """The configuration without the kernels that it names, of its parts too; with those of the ``options``."""
    for name in IMPLEMENTATIONS:
        if hasattr(config, f"_{name}"):
            setattr(config, f"_{name}", options.get(name))
    return config


def load_processor(processor_class: Any, path: str) -> Any:
    """A tokenizer or processor from a folder or an id; code that lies there never runs.

    Raises:
        ValueError: the files cannot be read, or need code of their own.
        SourceError: there is nothing at ``path``, or no way to it.
    """
    # Classes of transformers take the option; a class of the user's own may not.
    known = getattr(processor_class, "__module__", "").partition(".")[0] in ("transformers", "unigrpo")
    with reading(f"tokenizer of {str(path)!r}"), finding(path, f"tokenizer of {str(path)!r}"):
        return processor_class.from_pretrained(path, **({"trust_remote_code": False} if known else {}))


def load_classifier(path: str) -> Any:
    """A sequence-classification model with one output, from a folder or an id; code that lies there never runs.

    Raises:
        CheckpointError: parameters that do not come from the files, such as the head of a model that was never a reward.
        ValueError: the files cannot be read, need code, or are far smaller than the configuration says.
        SourceError: there is nothing at ``path``, or no way to it.
    """
    kind = AutoModelForSequenceClassification
    with reading(f"reward model {path!r}"), finding(path, f"reward model {path!r}"):
        build = partial(kind.from_config, trust_remote_code=False)
        config = load_config(path, num_labels=1)
        check_declared(config, build, path, f"reward model {path!r}")
        return _complete(kind.from_pretrained, path, f"reward model {path!r}", config=config, trust_remote_code=False)

"""The one way in for checkpoints: data, never code, and no larger than the files say.

Code that lies in a checkpoint's folder is imported only with ``trust_remote_code=True``. The default is False and not
transformers' None, which asks on standard input.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from .checkpoint_files import check_declared, check_numbers, hub_file, read_weights, reading, shapes
from .hub import finding


ADAPTER_FILE = "adapter_config.json"

LARGEST_SETTING = 2**20
"""A whole number in an adapter's configuration is a rank, a scale or a count of layers."""


def load_config(path: str, **kwargs: Any) -> Any:
    """The configuration of a checkpoint, an id or a folder.

    Raises:
        ValueError: it cannot be read, or needs code of its own and ``trust_remote_code`` is not True.
        SourceError: there is nothing at ``path``, or no way to it.
    """
    with reading(f"config.json of {path!r}"), finding(path, f"model {str(path)!r}"):
        return AutoConfig.from_pretrained(path, **{"trust_remote_code": False, **kwargs})


def load_module(model_class: Any, path: str, **kwargs: Any) -> Any:
    """``model_class.from_pretrained(path, **kwargs)`` of files that may be damaged or hostile.

    Raises:
        ValueError: the files cannot be read, need code of their own without ``trust_remote_code=True``, hold more than
            tensors, or are far smaller than the configuration says; or ``weights_only=False``, which would unpickle.
        SourceError: there is nothing at ``path``, or no way to it.
    """
    if not kwargs.get("weights_only", True):
        raise ValueError("weights_only=False would unpickle the checkpoint, which can run code; leave it out")
    kwargs.setdefault("trust_remote_code", False)
    with reading(f"model {str(path)!r}"), finding(path, f"model {str(path)!r}"):
        config_class = getattr(model_class, "config_class", None)
        own = isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)
        checked = own and config_class is not None and "config" not in kwargs
        if checked and hub_file(path, "config.json", **kwargs) is not None:
            config, _ = config_class.from_pretrained(path, **kwargs, return_unused_kwargs=True)
            check_declared(config, model_class, path, f"model {str(path)!r}", **kwargs)
            kwargs.pop("force_download", None)  # All of it was, just now.
        return model_class.from_pretrained(path, **kwargs)


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
        ValueError: the files cannot be read, need code, or are far smaller than the configuration says.
        SourceError: there is nothing at ``path``, or no way to it.
    """
    kind = AutoModelForSequenceClassification
    with reading(f"reward model {path!r}"), finding(path, f"reward model {path!r}"):
        build = partial(kind.from_config, trust_remote_code=False)
        check_declared(load_config(path, num_labels=1), build, path, f"reward model {path!r}")
        return kind.from_pretrained(path, num_labels=1, trust_remote_code=False)


def adapter_base(path: str) -> str:
    """The base model that an adapter folder names.

    Raises:
        ValueError: its configuration is damaged, names code, or is of another size than its weights.
    """
    file = Path(path) / ADAPTER_FILE
    with reading(repr(str(file))):
        settings = json.loads(file.read_text(encoding="utf-8"))
        base = settings["base_model_name_or_path"]
        if not isinstance(base, str):
            raise ValueError(f"{str(file)!r}: base_model_name_or_path={base!r} names no model")
        _check_adapter(settings, Path(path))
    return base


def load_adapter(model: Any, path: str) -> Any:
    """``model`` with the adapter of a folder that ``adapter_base`` has read.

    Raises:
        ValueError: the adapter is damaged, does not fit the model, or holds more than tensors.
    """
    from peft import PeftModel

    with reading(f"adapter {path!r}"):
        return PeftModel.from_pretrained(model, path)


def _check_adapter(settings: dict[str, Any], folder: Path) -> None:
    where = repr(str(folder / ADAPTER_FILE))
    if settings.get("megatron_config") is not None:
        # peft imports whatever module ``megatron_core`` names.
        raise ValueError(f"{where} sets megatron_config, with which an adapter names code to import; remove it")
    check_numbers(settings, where, LARGEST_SETTING)
    ranks = [settings.get("r"), *(settings.get("rank_pattern") or {}).values()]
    ranks = [rank for rank in ranks if isinstance(rank, int)]
    large = [value for value in (*settings.values(), *ranks) if isinstance(value, int) and value > LARGEST_SETTING]
    if large:
        raise ValueError(f"{where} has a setting of {large[0]:,}, which is no rank and no count")
    safe, plain = folder / "adapter_model.safetensors", folder / "adapter_model.bin"
    found: dict[str, tuple[int, ...]] = {}
    if safe.is_file():
        found = shapes(safe)
    elif plain.is_file():
        found = {name: tuple(value.shape) for name, value in read_weights(plain).items()}
    longest = max((max(shape, default=0) for shape in found.values()), default=LARGEST_SETTING)
    if ranks and max(ranks) > longest:
        raise ValueError(f"{where} has rank {max(ranks)}, and no side of its weights is longer than {longest}")

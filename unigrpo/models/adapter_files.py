"""Adapters from anywhere: a folder that says what it is, bounded, and read to the last tensor."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import CheckpointError
from .checkpoint_files import (
    FULL_WEIGHTS,
    check_complete,
    check_numbers,
    first_line,
    hub_file,
    read_weights,
    reading,
    shapes,
)
from .hub import hub_answers, looks_local
from .patterns import check_patterns


ADAPTER_FILE = "adapter_config.json"

BASE_FILE = "base_adapter.json"
"""Beside an adapter that lies on another one: which weights that one had."""

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
BESIDE = (
    *WEIGHTS,
    BASE_FILE,
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""What else of an adapter's id on the hub is read, where it is there."""

LARGEST_SETTING = 2**20
"""A whole number in an adapter's configuration is a rank, a scale or a count of layers."""

FEW_RANKS = 1024
"""A rank up to this costs little, whatever the weights are: some kinds store them in parts, or cut the rank by themselves."""


def check_no_checkpoint(folder: str | Path) -> None:
    """Raises ``CheckpointError`` for a folder that a model's or an adapter's files lie in already: they would mix."""
    found = [ADAPTER_FILE] if Path(folder, ADAPTER_FILE).exists() else []
    found += whole_model(folder)
    if found:
        raise CheckpointError(f"{str(folder)!r} holds a checkpoint already ({found[0]}); give another folder")


def whole_model(folder: str | Path) -> list[str]:
    """Names of the files of a whole model's weights in a folder, which need not be there."""
    names = sorted(own.name for own in Path(folder).iterdir()) if Path(folder).is_dir() else []
    return [name for name in names if FULL_WEIGHTS.fullmatch(name)]


def adapter_folder(path: str) -> str:
    """The folder of the cache for the id of an adapter on the hub; everything else as it is.

    Nobody is asked about a folder, a shipped checkpoint, or in offline mode.
    """
    if looks_local(path) or os.path.exists(path):
        return path
    hub_answers()
    found = hub_file(path, ADAPTER_FILE)
    if found is None:
        return path
    for name in BESIDE:
        # Of the same commit, also where somebody writes to it meanwhile.
        hub_file(path, name, revision=found.parent.name)
    return str(found.parent)


def adapter_base(path: str) -> str:
    """The base model that an adapter folder names.

    Raises:
        CheckpointError: the folder holds a whole model too.
        ValueError: its configuration is damaged, names code, or is of another size than its weights.
    """
    file = Path(path) / ADAPTER_FILE
    if whole := whole_model(path):
        raise CheckpointError(
            f"{path!r} holds an adapter ({ADAPTER_FILE}) and a whole model ({whole[0]}), as after two runs in one folder: move "
            "the files of one of them elsewhere"
        )
    with reading(repr(str(file))):
        settings = json.loads(file.read_text(encoding="utf-8"))
        base = settings["base_model_name_or_path"]
        if not isinstance(base, str):
            raise ValueError(f"{str(file)!r}: base_model_name_or_path={base!r} names no model")
        _check_adapter(settings, Path(path))
    return base


def adapter_digest(folder: str | Path) -> str | None:
    """SHA-256 of the weights' file in an adapter's folder; None where it has none."""
    file = next((own for own in map(Path(folder).joinpath, WEIGHTS) if own.is_file()), None)
    if file is None:
        return None
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_base_adapter(folder: str | Path, base: str | Path) -> None:
    """Raises ``CheckpointError`` where the adapter in ``folder`` was trained on other weights than ``base``, an adapter, has now.

    Folders of earlier versions, and of PEFT alone, do not say which these were, and are believed.
    """
    file = Path(folder) / BASE_FILE
    if not file.is_file():
        return
    with reading(repr(str(file))):
        told = json.loads(file.read_text(encoding="utf-8"))["sha256"]
    if told != adapter_digest(base):
        raise CheckpointError(
            f"adapter {str(folder)!r} was trained on the adapter in {str(base)!r}, whose weights are others now: set "
            f"base_model_name_or_path in {ADAPTER_FILE} to a folder that still holds them, or delete {file.name} to open it on "
            "the new ones"
        )


def load_adapter(model: Any, path: str, allow_missing: Sequence[str] | str = (), trained: bool = False) -> Any:
    """``model`` with the adapter of a folder that ``adapter_base`` has read; ``allow_missing`` as in ``load_module``.

    With ``trained`` its weights require gradients.

    Raises:
        CheckpointError: tensors that the adapter lacks, or that have no place or another shape in it.
        ValueError: the adapter is damaged, does not fit the model, has a pattern that takes too long, or holds more than tensors.
    """
    from peft import PeftModel, get_peft_model_state_dict

    what = f"adapter {path!r}"
    with reading(what):
        settings = json.loads((Path(path) / ADAPTER_FILE).read_text(encoding="utf-8"))
        check_patterns(settings, [name for name, _ in model.named_modules()], f"{path}/{ADAPTER_FILE}")
        found = stored_shapes(Path(path))
        if not found:
            raise CheckpointError(f"{what} has no weights: there must be {WEIGHTS[0]} beside {ADAPTER_FILE}")
        vocabulary = {
            id(own) for part in (model.get_input_embeddings(), model.get_output_embeddings()) for own in _weights(part)
        }
        own = {name for name, parameter in model.named_parameters() if id(parameter) in vocabulary}
        try:
            adapted = PeftModel.from_pretrained(model, path, is_trainable=trained)
        except (RuntimeError, KeyError) as error:
            raise _unfit(error, what) from error
        except ImportError as error:
            raise ValueError(f"{what} needs a package that is not here: {error}") from error
        wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        # An adapter may bring the vocabulary's matrices of the base along, under their own names.
        extra = {name for name in found.keys() - wanted.keys() if as_in_base(name) not in own}
        check_complete(what, wanted.keys() - found.keys(), extra, (), allow_missing, OTHER_BASE)
    return adapted


def as_in_base(name: str) -> str:
    """A tensor's name in the model under the adapter; a layer that an adapter stands on is its ``base_layer``."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _weights(part: nn.Module | None) -> list[nn.Parameter]:
    return [] if part is None else list(part.parameters())


UNLIKE = re.compile(r"size mismatch for (\S+): [^\[]*\[([\d, ]*)\][^\[]*\[([\d, ]*)\]")
"""What torch says of tensors of another shape: name, stored shape, shape in the model."""

OTHER_BASE = "Check that it was trained on this base model, with this adapter_config.json"


def _unfit(error: Exception, what: str) -> Exception:
    """The error of a library about names or shapes, with the names; others stay as they are."""
    if isinstance(error, KeyError) and "." in str(error):
        return CheckpointError(f"{what} does not fit the model: missing [{first_line(error)}]. {OTHER_BASE}.")
    unlike = [f"{name} is ({own}) and must be ({wanted})" for name, own, wanted in UNLIKE.findall(str(error))]
    if not unlike:
        return error
    try:
        check_complete(what, (), (), unlike, (), OTHER_BASE)
    except CheckpointError as told:
        return told
    return error


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of an adapter's tensors; empty where the folder has none."""
    safe, plain = map(folder.joinpath, WEIGHTS)
    if safe.is_file():
        return shapes(safe)
    return {name: tuple(value.shape) for name, value in read_weights(plain).items()} if plain.is_file() else {}


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
    found = stored_shapes(folder)
    longest = max((max(shape, default=0) for shape in found.values()), default=LARGEST_SETTING)
    if ranks and max(ranks) > max(longest, FEW_RANKS):
        raise ValueError(f"{where} has rank {max(ranks)}, and no side of its weights is longer than {longest}")

"""A policy's module from wherever it was left: a whole model, an adapter on one, or an adapter on what another has made of one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import SourceError
from . import DiffusionPolicy, resolve_policy
from .adapter_files import ADAPTER_FILE, adapter_base, adapter_digest, adapter_folder, check_base_adapter, load_adapter
from .builtin import model_path
from .hub import asking_once
from .loading import check_from_scratch, load_config, load_processor
from .nearest import family_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What lies at a path.

    Attributes:
        model: a ``PreTrainedModel``, or a ``PeftModel`` where the path is an adapter's.
        family: its policy class.
        processor: the one saved beside an adapter, with the prompt options that it was trained with; None = the base's.
    """

    model: Any
    family: type[DiffusionPolicy]
    processor: Any = None


@asking_once()
def lineage(path: str) -> list[str]:
    """``path``, the base that it names if it is an adapter, the base of that, and last a whole model.

    Names of shipped checkpoints, and ids of adapters on the hub, are folders in it.

    Raises:
        ValueError: an adapter whose configuration is damaged, or adapters that name each other as their bases.
    """
    found = [adapter_folder(model_path(path))]
    while os.path.isfile(os.path.join(found[-1], ADAPTER_FILE)):
        base = adapter_folder(model_path(adapter_base(found[-1])))
        if os.path.exists(base) and any(Path(base).samefile(own) for own in found):
            raise ValueError(
                f"adapter {path!r} ends nowhere, its bases name each other ({' -> '.join([*found, base])}): set "
                f"base_model_name_or_path in {ADAPTER_FILE} to the model that it was trained on"
            )
        found.append(base)
    return found


@contextmanager
def finding_base(adapters: Sequence[str]) -> Iterator[None]:
    """Says of a whole model that is not to be had which of ``adapters`` it is the base of."""
    try:
        yield
    except SourceError as error:
        if not adapters:
            raise
        raise type(error)(
            f"{error}. It is the base that adapter {adapters[-1]!r} names: write where it is into base_model_name_or_path of "
            f"its {ADAPTER_FILE}, or take a whole model, which `unigrpo merge` makes where both are"
        ) from error


@asking_once()
def open_model(
    path: str,
    policy: str | type[DiffusionPolicy] | None = None,
    allow_missing: Sequence[str] | str = (),
    trained: bool = False,
    from_scratch: bool = False,
    seed: int = 0,
    **options: Any,
) -> Opened:
    """What lies at ``path``: a hub id or a folder of a model or an adapter, or ``builtin:NAME``.

    An adapter whose base is an adapter's folder too is put on that base with its adapter merged in.

    Args:
        policy, allow_missing: as in ``load_policy``.
        trained: the adapter's weights require gradients.
        from_scratch: the weights are drawn from ``seed``, and none are read.
        options: of ``from_pretrained`` of the whole model.

    Raises:
        CheckpointError, SourceError, ValueError: as in ``load_policy``; also an adapter that cannot be merged, where another one
            lies on it, or whose weights are not those that the other one was trained on.
    """
    from .adapters import merged

    *adapters, base = lineage(path)
    with finding_base(adapters):
        family = resolve_policy(
            family_of(base, policy)
            or load_config(base, trust_remote_code=bool(options.get("trust_remote_code"))).model_type
        )
    if allow_missing:
        options["allow_missing"] = allow_missing
    if from_scratch:
        check_from_scratch({"from_scratch": from_scratch, **options}, bool(adapters))
        return Opened(model=family.fresh_model(base, seed, **options), family=family)
    for folder, below in pairwise(adapters):
        check_base_adapter(folder, below)
    with finding_base(adapters):
        model: Any = family.load_model(base, **options)
    for number, folder in enumerate(reversed(adapters)):
        model = load_adapter(merged(model) if number else model, folder, allow_missing, trained)
    if len(adapters) > 1:
        model.get_base_model().base_adapter = adapter_digest(adapters[1])
    saved = bool(adapters) and (Path(adapters[0]) / "processor_config.json").exists()
    processor = load_processor(family.processor_class, adapters[0]) if saved else None
    return Opened(model=model, family=family, processor=processor)

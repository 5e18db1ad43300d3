"""Which command a recipe belongs to: ``unigrpo train`` is for rewards, ``unigrpo sft`` for given answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from ..config.arguments import UniGRPOConfig
from ..config.denoising_arguments import MaskedDenoisingConfig
from ..errors import RecipeError


_SFT = {own.name for own in fields(MaskedDenoisingConfig) if own.init}
_TRAIN = {own.name for own in fields(UniGRPOConfig) if own.init}
ONLY = {
    "train": frozenset({"rewards", "sft_datasets", "allow_hosts", *_TRAIN} - _SFT),
    "sft": frozenset({"sampling", *_SFT} - _TRAIN),
}
"""Command -> the keys that its recipes have and those of the other have not."""


def kind_of(data: Iterable[Any]) -> str:
    """``"train"`` or ``"sft"``: the command that runs a recipe whose keys are ``data``.

    Rewards decide. A recipe without them is for ``sft``, unless its other keys say that they were forgotten.
    """
    keys = _words(data)
    return "train" if "rewards" in keys or (keys & ONLY["train"] and not keys & ONLY["sft"]) else "sft"


def refuse_other(data: Iterable[Any], kind: str, source: str) -> None:
    """Raises ``RecipeError`` for a recipe that is clearly for the other command than ``kind``; it names that command."""
    keys = _words(data)
    given = sorted(keys & ONLY["sft"])
    if kind == "sft" and "rewards" in keys:
        raise RecipeError(
            f"{source} has rewards: it is a recipe for `unigrpo train {source}`; one for `unigrpo sft` has none"
        )
    if kind == "train" and "rewards" not in keys and given:
        raise RecipeError(
            f"{source} has {given[0]!r} and no rewards: it is a recipe for `unigrpo sft {source}`, which trains on given answers"
        )


def key_of_other(key: str, kind: str) -> str | None:
    """A word on a key that only recipes of the other command than ``kind`` have; None for any other."""
    other = "train" if kind == "sft" else "sft"
    return f"recipes for `unigrpo {other}` have it" if key in ONLY[other] else None


def _words(data: Iterable[Any]) -> set[str]:
    return {key for key in data if isinstance(key, str)}

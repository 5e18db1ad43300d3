"""What a trainer is given as a dataset, brought to rows: a table, a path, a ``DatasetDict`` of one split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import beside, open_rows


def rows_of(given: Any, name: str) -> Any:
    """``given`` as something with a length whose items are rows.

    Args:
        given: a ``datasets.Dataset``, a list of rows, a DataFrame of pandas or polars, a path as ``open_rows`` takes it, or a
            ``DatasetDict`` with one split. Anything else is handed back as it is.
        name: of the argument, for errors.

    Raises:
        ValueError: a path that cannot be read, or a mapping of several datasets where one is asked for.
    """
    if isinstance(given, str | Path):
        try:
            return beside(open_rows(str(given)), str(given))
        except ValueError as error:
            raise type(error)(f"{name}: {error}") from error
    library = type(given).__module__.partition(".")[0]
    if type(given).__name__ == "DataFrame" and library == "pandas":
        # A table has NaN where a row has nothing.
        return given.astype(object).where(given.notna(), None).to_dict("records")
    if type(given).__name__ == "DataFrame" and library == "polars":
        return given.to_dicts()
    if isinstance(given, Mapping):
        if is_splits(given) and len(given) == 1:
            return next(iter(given.values()))
        first = next(iter(given), "train")
        kind, cure = ("DatasetDict with the splits", f"give one, as in dataset[{first!r}]")
        if not is_splits(given):
            kind, cure = "mapping with the keys", "give one dataset"
        raise ValueError(f"{name} is a {kind} {list(given)}: {cure}")
    return given


def is_splits(given: Any) -> bool:
    """Whether ``given`` is a ``DatasetDict``."""
    return type(given).__name__ == "DatasetDict" and type(given).__module__.partition(".")[0] == "datasets"


def sets_of(given: Any, name: str) -> Any:
    """As ``rows_of``, but a mapping names held-out sets; so does a ``DatasetDict`` unless one of several splits is for training."""
    if not isinstance(given, Mapping) or (is_splits(given) and (len(given) == 1 or "train" in given)):
        return rows_of(given, name)
    return {own: rows_of(rows, f"{name}[{own!r}]") for own, rows in given.items()}

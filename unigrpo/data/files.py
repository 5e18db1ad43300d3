"""Files, folders and ids of the hub in which people keep rows, opened by the readers of ``datasets``."""

from __future__ import annotations

import glob
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import SourceError
from ..models.checkpoint_files import first_line
from ..models.hub import finding


FILE_KINDS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".arrow": "arrow", ".txt": "text", ".tar": "webdataset",
}  # fmt: skip
"""Files that can be datasets, and the reader of ``datasets`` for each."""

PACKED = (".gz", ".bz2", ".xz")
"""Endings after that of a kind; such files are unpacked while they are read."""

READERS = (*dict.fromkeys(FILE_KINDS.values()), "imagefolder")
"""Readers of ``datasets`` that may stand for the path where ``data_files`` names the files."""

CURES = {
    "csv": "a table needs one line of column names, as many fields in every line, quotes around fields with line breaks, and UTF-8",
    "json": "it must hold one JSON object a line, or one list of objects, in UTF-8",
    "text": "it must be text in UTF-8",
    "webdataset": "it must be a tar of files whose names are KEY.png, KEY.txt and so on",
    "imagefolder": "metadata.jsonl or metadata.csv must have a column file_name, of pictures in the folder",
}
"""What is said of a file that a reader does not read, beside the reason."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


def kind_of(path: str) -> str | None:
    """The reader for a file of that name; None for what is no file of rows."""
    own = Path(path)
    return FILE_KINDS.get(own.with_suffix("").suffix if own.suffix in PACKED else own.suffix)


def is_on_hub(path: str | list[str]) -> bool:
    """Whether that path of a dataset is asked of the hub: no file, and nothing that is here."""
    return isinstance(path, str) and kind_of(path) is None and not os.path.exists(path)


def open_rows(path: str | list[str], *, name: str | None = None, split: str = "train", data_files: Any = None) -> Any:
    """The rows of a path as a ``datasets.Dataset``.

    Args:
        path: a file of ``FILE_KINDS``, a pattern such as ``rows/*.parquet``, or a list of these, all of one kind; a folder of
            ``Dataset.save_to_disk``; a folder of pictures with ``metadata.jsonl`` or ``metadata.csv``, or with ``NAME.txt``
            beside ``NAME.png``, which becomes its ``prompt``; another folder, or an id of the hub; or one of ``READERS``
            with ``data_files``.
        name: of a configuration on the hub.
        split: may be a part, such as ``"train[:100]"``. Files are one split, whatever it is called.
        data_files: files in an id of the hub or in a folder.

    Raises:
        ValueError: what is there cannot be read; one sentence that names it and the cure.
        SourceError: nothing is there.
    """
    if isinstance(path, str) and path in READERS and data_files is not None:
        reader, path = path, [data_files] if isinstance(data_files, str) else data_files
        if not isinstance(path, list):
            raise ValueError(f"dataset {reader!r}: data_files={data_files!r} must be a file, or a list of files")
        return _files(path, split, reader)
    if isinstance(path, list) or (kind_of(path) is not None and not os.path.isdir(path)):
        return _files([path] if isinstance(path, str) else path, split)
    folder, is_folder = Path(path), os.path.isdir(path)
    if is_folder and ((folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()):
        return _saved(folder, split)
    if is_folder and data_files is None and any(own.suffix.lower() in PICTURES for own in folder.glob("**/*")):
        return _pictures(folder, split)
    if os.path.isfile(path) and folder.suffix != ".py":
        raise ValueError(f"dataset {path!r} is a file of no kind that is read; write it as one of {list(FILE_KINDS)}")
    from datasets import load_dataset

    with finding(path, f"dataset {path!r}"), _told(path, ""):
        return load_dataset(path, name, split=split, data_files=data_files)


def beside(rows: Any, path: str | list[str], image_folder: str | None = None) -> Any:
    """``rows`` whose pictures named by relative paths have whole ones.

    They are relative to ``image_folder``, else to the folder of the file; what is not there but in the current folder stays.
    """
    folder = image_folder
    if folder is None:
        paths = [path] if isinstance(path, str) else path
        folders = {str(Path(own).parent) for own in paths if kind_of(own) is not None}
        if len(folders) != 1:
            return rows
        (folder,) = folders
    base = Path(folder)
    if image_folder is not None and not base.is_dir():
        raise SourceError(
            f"image_folder {image_folder!r} is not there: name the folder that the rows' pictures lie in"
        )

    def whole(value: Any) -> Any:
        if isinstance(value, list):
            return [whole(own) for own in value]
        if not isinstance(value, str) or not value or Path(value).is_absolute():
            return value
        here = image_folder is None and not os.path.exists(base / value) and os.path.exists(value)
        return value if here else str(base / value)

    for column in ("image", "images"):
        if column in rows.column_names and _is_text(rows.features[column]):
            values = [whole(value) for value in rows[column]]
            rows = rows.remove_columns(column).add_column(column, values)
    return rows


def _is_text(feature: Any) -> bool:
    feature = getattr(feature, "feature", feature)
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _files(paths: list[str], split: str, reader: str | None = None) -> Any:
    found = [file for path in paths for file in _expanded(path)]
    readers = sorted({str(reader or kind_of(file)) for file in found})
    if len(readers) != 1 or readers[0] == "None":
        raise ValueError(
            f"dataset {paths!r} names files of several kinds, or of one that is not read: give files of one kind of "
            f"{list(FILE_KINDS)}, and further ones as a dataset of their own"
        )
    try:
        return _read(readers[0], found, split)
    except ValueError:
        for file in found if len(found) > 1 else ():
            _read(readers[0], [file], split)  # Which of them it is.
        raise


def _expanded(path: str) -> list[str]:
    """The file of that name, or those that a pattern names, in order."""
    if "://" in path:
        raise ValueError(f"dataset file {path!r} is an address; fetch it, and give the file")
    if os.path.isfile(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []
    found = [own for own in found if Path(own).is_file()]
    if not found:
        raise ValueError(f"dataset file {path!r} does not exist" + (" (a pattern)" if glob.has_magic(path) else ""))
    return found


def _read(reader: str, files: list[str], split: str) -> Any:
    from datasets import load_dataset

    tabbed = [Path(file).name.removesuffix(Path(file).suffix if file.endswith(PACKED) else "") for file in files]
    options = {"sep": "\t"} if all(name.endswith(".tsv") for name in tabbed) else {}
    shown = files[0] if len(files) == 1 else files
    with _told(shown, reader):
        rows = load_dataset(
            reader, data_files={split.partition("[")[0]: list(map(glob.escape, files))}, split=split, **options
        )
        if reader == "json":
            rows.data.validate(full=True)  # The reader takes bytes that are no UTF-8 into a text.
    return rows.rename_column("text", "prompt") if reader == "text" else rows


def _saved(folder: Path, split: str) -> Any:
    """A folder of ``save_to_disk``."""
    from datasets import DatasetDict, load_from_disk

    with _told(str(folder), "arrow"):
        rows = load_from_disk(str(folder))
    base = split.partition("[")[0]
    if isinstance(rows, DatasetDict):
        if base not in rows:
            raise ValueError(f"dataset {str(folder)!r} has no split {base!r}, only {list(rows)}; set split")
        rows = rows[base]
    return _part(rows, split)


def _part(rows: Any, split: str) -> Any:
    """The part of ``rows`` that a split such as ``"train[:100]"`` names."""
    from datasets import ReadInstruction

    (part,) = ReadInstruction.from_spec(split).to_absolute({split.partition("[")[0]: len(rows)})
    first, last = part.from_ or 0, len(rows) if part.to is None else part.to
    return rows if (first, last) == (0, len(rows)) else rows.select(range(first, last))


def _pictures(folder: Path, split: str) -> Any:
    """A folder of pictures and what is said of them."""
    from datasets import load_dataset

    own_folder = folder / split.partition("[")[0]
    base = own_folder if own_folder.is_dir() else folder
    files = sorted(own for own in base.glob("**/*") if own.suffix.lower() in PICTURES)
    if not any(own.with_suffix(".txt").is_file() for own in files):
        with _told(str(folder), "imagefolder"):
            return load_dataset("imagefolder", data_dir=str(folder), split=split)
    lone = next((own for own in files if not own.with_suffix(".txt").is_file()), None)
    if lone is not None:
        raise ValueError(
            f"dataset {str(folder)!r}: {lone.name} has no caption {lone.with_suffix('.txt').name} beside it, as other pictures "
            "there have; write one, or move the picture away"
        )
    from datasets import Dataset, Image

    with _told(str(folder), "text"):
        captions = [own.with_suffix(".txt").read_text(encoding="utf-8").strip() for own in files]
    rows = Dataset.from_dict({"image": [str(own) for own in files], "prompt": captions})
    return _part(rows.cast_column("image", Image(decode=False)), split)


@contextmanager
def _told(path: str | list[str], reader: str) -> Iterator[None]:
    """What a reader raises becomes one sentence that names the file; errors of the disk stay as they are."""
    from datasets.exceptions import DatasetGenerationError

    try:
        yield
    except SourceError:
        raise
    except StopIteration as error:
        raise ValueError(f"dataset {path!r} is empty: it needs one row or more") from error
    except (ValueError, RuntimeError, KeyError, EOFError, DatasetGenerationError, tarfile.TarError, OSError) as error:
        if isinstance(error, OSError) and (error.errno is not None or not reader):
            raise
        reason = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        cure = f"; {CURES[reader]}" if reader in CURES else ""
        said = f"({type(reason).__name__}: {first_line(reason)})" if reader else f"({first_line(reason)})"
        raise ValueError(f"dataset {path!r} cannot be read {said}{cure}") from error

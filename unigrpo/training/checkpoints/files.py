"""Files and folders that are there whole or not at all, whatever moment a process or its machine dies at."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import ssl
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import CheckpointError


MANIFEST = "unigrpo_manifest.json"
"""The list of a finished folder's files, written last."""

HASHED = 256 * 2**20
"""Files up to this size are also known by their CRC-32 (2 GiB/s); an 8B model's shards and optimizer by size alone."""

INCOMPLETE, REMOVED = ".incomplete-", ".removed-"
"""Prefixes of folders that are being written or deleted; nobody else's pattern for checkpoints matches them."""

SHOWN = 3
"""Faults of a folder that a message names."""


DISK_ERRORS = "ENOSPC EDQUOT EFBIG EIO EREMOTEIO EROFS EACCES EPERM ENOENT EEXIST ENOTDIR EISDIR ENOTEMPTY EBUSY"
DISK_ERRORS += " ESTALE ENODEV ENXIO ENAMETOOLONG ELOOP EMLINK"
DISK_ERRNOS = {getattr(errno, name) for name in DISK_ERRORS.split() if hasattr(errno, name)}
"""What file systems refuse a file with, as far as this machine's system knows the names."""

NETWORK_ERRORS = (ConnectionError, TimeoutError, ssl.SSLError, socket.gaierror, socket.herror)
"""Their numbers can be those of other errors: ``ssl`` and name servers count their own."""


def write_text(path: Path, text: str) -> None:
    """``path`` with ``text``, by one process; readers, and a run after a crash, see the old file or the new one."""
    aside = path.with_name(f".{path.name}.new")
    try:
        with aside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """One more line in ``path``, on disk."""
    with path.open("a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, data: Any) -> None:
    """``write_text`` of indented JSON."""
    write_text(path, json.dumps(data, indent=2) + "\n")


# ---- folders ----


def files_of(folder: Path) -> list[Path]:
    """All files below ``folder`` but its manifest, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def sync_tree(folder: Path) -> None:
    """Everything below ``folder``, on disk. Each machine that wrote some of it has to call this."""
    for path in files_of(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for own in [path for path in folder.rglob("*") if path.is_dir()] + [folder]:
        sync_folder(own)


def sync_folder(folder: Path) -> None:
    """The names in ``folder``, on disk, where its system can: Windows opens no folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def seal(folder: Path) -> None:
    """Writes the manifest of ``folder``, whose files are on disk: from now on ``fault`` finds it whole."""
    files = {path.relative_to(folder).as_posix(): describe(path) for path in files_of(folder)}
    write_json(folder / MANIFEST, {"format": 1, "files": files})


def describe(path: Path) -> dict[str, int]:
    """The size of a file and, up to ``HASHED``, its CRC-32."""
    with path.open("rb") as file:
        # Of the open file: a network file system may still know another process's file by an older size.
        size, found = os.fstat(file.fileno()).st_size, 0
        if size > HASHED:
            return {"bytes": size}
        while part := file.read(2**22):
            found = zlib.crc32(part, found)
    return {"bytes": size, "crc32": found}


def publish(aside: Path, folder: Path) -> None:
    """Renames the sealed ``aside`` to ``folder``; a folder that stood there is replaced.

    Dying between the two renames leaves the sealed folder aside, where ``finish`` finds it.
    """
    discard(folder)
    os.rename(aside, folder)
    sync_folder(folder.parent)


def discard(folder: Path) -> None:
    """Deletes ``folder``; one that is half deleted never bears its name."""
    if not folder.exists():
        return
    away = folder.with_name(f"{REMOVED}{folder.name}")
    shutil.rmtree(away, ignore_errors=True)
    os.rename(folder, away)
    shutil.rmtree(away, ignore_errors=True)


def aside_of(folder: Path) -> Path:
    """Where ``folder`` is written before it is published: the same name, in a hidden folder beside it."""
    return folder.with_name(f"{INCOMPLETE}{folder.name}") / folder.name


def finish(parent: Path) -> None:
    """Clears what a killed process left in ``parent``; a folder that it had sealed but not renamed is published."""
    for hidden in sorted(parent.glob(f"{INCOMPLETE}*")):
        own = hidden / hidden.name.removeprefix(INCOMPLETE)
        if fault(own) is None and not (parent / own.name).exists():
            publish(own, parent / own.name)
        shutil.rmtree(hidden, ignore_errors=True)
    for hidden in parent.glob(f"{REMOVED}*"):
        shutil.rmtree(hidden, ignore_errors=True)


def fault(folder: Path, contents: bool = True) -> str | None:
    """Why ``folder`` is not what was sealed, None if it is.

    Args:
        contents: also compare the contents of files that the manifest knows a CRC-32 of.
    """
    if not os.path.isdir(folder):
        return "it is not a folder" if os.path.exists(folder) else "it does not exist"
    if not (folder / MANIFEST).exists():
        return f"it has no {MANIFEST}: its writing was cut short, or another program wrote it"
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        found = [reason for name, sealed in files.items() if (reason := file_fault(folder / name, sealed, contents))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read: {type(error).__name__}: {error}"
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more or None


def file_fault(path: Path, sealed: dict[str, int], contents: bool) -> str | None:
    """Why a file is not the one that was sealed."""
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    if size != sealed["bytes"]:
        return f"{path.name} has {size} bytes, not {sealed['bytes']}"
    if contents and "crc32" in sealed and describe(path) != sealed:
        return f"{path.name} is not what was written (its CRC-32 differs)"
    return None


def sealed_bytes(folder: Path) -> int:
    """The size of a sealed folder."""
    return sum(file["bytes"] for file in json.loads((folder / MANIFEST).read_text())["files"].values())


# ---- disks that do not take it ----


def check_writable(path: str | Path, name: str | Path | None = None) -> None:
    """Raises ``CheckpointError`` unless files can be written into the folder ``path``, which is made if need be.

    Args:
        name: the ``output_dir`` that the message names, ``path`` by default.
    """
    folder = Path(path)
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with probe.open("wb") as file:
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"nothing can be written into output_dir={str(name or path)!r}: {error}. Set output_dir to a folder that "
            "this user may write to, on a disk with free space"
        ) from error


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Around a write to ``path``: a disk that does not take it becomes a ``CheckpointError`` that names it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, CheckpointError) or not is_disk_fault(error):
            raise
        if not path.parent.is_dir():
            raise CheckpointError(
                f"{path} could not be written: its folder was there when the run began, and has been removed, renamed or replaced since. "
                "Put it back, then start the same command with resume_from_checkpoint=True, or begin anew in another output_dir"
            ) from error
        raise CheckpointError(
            f"{path} could not be written, the disk does not take it ({type(error).__name__}: {error}). "
            f"{space_left(path)}. Free space or raise the quota, then start the same command with resume_from_checkpoint=True"
        ) from error


def is_disk_fault(error: BaseException) -> bool:
    """True for what Python, torch, safetensors and tokenizers raise when a disk does not take a file.

    The system's number of the error decides. A network's errors, and a hub's, are ``OSError`` too and no disk's.
    """
    if isinstance(error, NETWORK_ERRORS):
        return False
    if isinstance(error, OSError):
        return error.errno in DISK_ERRNOS
    if type(error).__name__ == "SafetensorError":
        return True
    numbers = {int(number) for number in re.findall(r"os error (\d+)", str(error))}
    return bool(numbers & DISK_ERRNOS or re.search(r"PytorchStreamWriter|inline_container|unexpected pos", str(error)))


def space_left(folder: Path) -> str:
    """What is free for this user on the disk of ``folder``, or of the first folder above it that exists, in words."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    said = f"{shutil.disk_usage(folder).free:,} bytes are free"
    if hasattr(os, "statvfs"):
        disk = os.statvfs(folder)
        # Systems that make inodes as they go count none at all.
        said += ", and no inode for one more file: delete some" if disk.f_files and not disk.f_favail else ""
    return said

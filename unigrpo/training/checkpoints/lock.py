"""One process at a time in a run's folder: a file in it says whose it is, and since when."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from ...errors import CheckpointError
from .files import named


LOCK = "_lock.json"
"""The file. Uploads to the hub leave out what begins with ``_``: it names a machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a folder.

    Attributes:
        host: the machine's name.
        pid: of the process there.
        birth: when that process began, see ``birth_of``: its number may be another's later.
        since: when it took the folder, UTC.
    """

    host: str
    pid: int
    birth: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def is_same(self, other: Holder) -> bool:
        """The same process, whenever it took the folder."""
        return (self.host, self.pid, self.birth) == (other.host, other.pid, other.birth)

    @property
    def is_gone(self) -> bool:
        """True for a process of this machine that has ended; of others nothing is known from here."""
        return self.host == socket.gethostname() and birth_of(self.pid) != self.birth


def birth_of(pid: int) -> str | None:
    """When a process of this machine began, as no later process of the same number did; None for one that has ended.

    Counted from the machine's start, which setting its clock does not change. Where the system does not tell, all that is
    known is that there is such a process: ``""``.
    """
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            return ""
        return ""
    try:
        # Behind the name, which may hold anything but ends at the last bracket: the state is field 3, the start field 22.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else f"{boot} {fields[19]}"


def this_process() -> Holder:
    """What a lock of this process says."""
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return Holder(host=socket.gethostname(), pid=os.getpid(), birth=birth_of(os.getpid()) or "", since=since)


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Around all that one process writes into ``folder``, which is there. Blocks of one process may be nested.

    A lock that a killed process left is taken over, also where another process has its number by now.

    Raises:
        CheckpointError: another process is at work there, or may be: one of another machine, or of a file that cannot be read.
    """
    path, own = Path(folder) / LOCK, this_process()
    taken = _take(path, own)
    try:
        yield
    finally:
        # Not in a process that was forked inside the block.
        if taken and own.pid == os.getpid():
            # What went wrong in the block counts, and a lock of a process that has ended holds nobody up.
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _take(path: Path, own: Holder) -> bool:
    """Writes the lock ``path``; False where this process holds it already."""
    with _one_after_the_other(path.parent):
        holder = read_lock(path)
        if holder is not None and holder.is_same(own):
            return False
        if holder is not None and holder.is_gone:
            path.unlink(missing_ok=True)
        elif holder is not None:
            raise CheckpointError(_in_use(path, holder))
        try:
            file = path.open("x")
        except FileExistsError:
            found = read_lock(path)
            raise CheckpointError(_in_use(path, found) if found else f"{path} was just made by another run") from None
        try:
            with named(path), file:
                json.dump(asdict(own), file)
        except CheckpointError:
            path.unlink(missing_ok=True)
            raise
    return True


@contextlib.contextmanager
def _one_after_the_other(folder: Path) -> Iterator[None]:
    """Processes of this machine look and take one after the other; a folder whose system cannot do that lets all in."""
    if os.name == "nt":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_lock(path: Path) -> Holder | None:
    """Who holds the lock ``path``, None where there is none.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        return Holder(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} should say which process is at work there, and cannot be read ({type(error).__name__}: {error}). If "
            "none is, delete this file and start again"
        ) from error


def _in_use(path: Path, holder: Holder) -> str:
    where = f"{path.parent} is in use by {holder}"
    if holder.host == socket.gethostname():
        return f"{where}. Wait for it or stop it, or set another output_dir"
    return (
        f"{where}: another machine, so that whether it still runs cannot be seen from here. If it does not, delete {path} "
        "and start again; if it does, set another output_dir"
    )

"""Which errors are the user's to mend, or the machine's, and what is said of them in place of a traceback."""

from __future__ import annotations

import reprlib


SHOWN = reprlib.Repr()
SHOWN.maxstring = 300


def said_of(error: Exception) -> str:
    """One sentence for a mistake in what was asked for, and for a file that the system does not open, read or write.

    Raises:
        Exception: ``error`` itself, where it is neither.
    """
    from ..training.checkpoints.files import is_disk_fault

    if isinstance(error, ValueError | FileNotFoundError):
        return str(error)
    if not is_disk_fault(error):
        raise error
    reason = getattr(error, "strerror", None) or str(error)
    place = getattr(error, "filename", None)
    what = "a file" if place is None else SHOWN.repr(str(place))
    return f"{what} cannot be opened, read or written: {reason}. Free space there, or give another path"

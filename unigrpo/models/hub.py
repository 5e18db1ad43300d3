"""What is asked of the hub, and what is said where something is neither here nor there."""

from __future__ import annotations

import difflib
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session
from transformers.utils import cached_file

from ..errors import NotReachableError, SourceError
from ..terminal import without_secrets


PATIENCE = 4.0
"""Seconds in which the hub has to answer when it is asked whether it is there."""

SWITCHES = {
    "huggingface_hub.constants": ("HF_HUB_OFFLINE",),
    "datasets.config": ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
}
"""What says offline in the libraries that ask; transformers reads huggingface_hub's. They are read from the environment
when a library is imported, and from here on after that.
"""


class _Asked:
    """What a block of ``asking_once`` has found out: None before the hub was asked, else whether it answers."""

    depth = 0
    answers: bool | None = None


@contextmanager
def asking_once(offline: bool = False) -> Iterator[None]:
    """A block in which the hub is asked at most once whether it is there, by ``hub_answers``; then not at all if it is not.

    Blocks may lie in each other: what is found out holds to the end of the outermost, which leaves all as it was.

    Args:
        offline: the hub is not asked at all.
    """
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    attributes = {(module, name): getattr(module, name) for module, name in _switches()}
    _Asked.depth += 1
    try:
        if offline:
            _ask_nobody()
        yield
    finally:
        _Asked.depth -= 1
        if not _Asked.depth:
            _Asked.answers = None
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
            for module, name in _switches():
                setattr(module, name, attributes.get((module, name), constants.HF_HUB_OFFLINE))


def hub_answers() -> bool:
    """Is the hub there? Inside ``asking_once`` it is asked once, for ``PATIENCE`` seconds, and left in peace if not."""
    if constants.HF_HUB_OFFLINE:
        return False
    if _Asked.answers is not None:
        return _Asked.answers
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
        answers = True
    except Exception:  # Whatever the network, a proxy or the client of this version makes of it.
        answers = False
    if _Asked.depth:
        _Asked.answers = answers
        if not answers:
            _ask_nobody()
    return answers


def _switches() -> list[tuple[Any, str]]:
    return [
        (sys.modules[module], name) for module, names in SWITCHES.items() if module in sys.modules for name in names
    ]


def _ask_nobody() -> None:
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    for module, name in _switches():
        setattr(module, name, True)


def looks_local(path: str) -> bool:
    """A path that is written like a folder, so that a typing error is not taken for the id of a hub."""
    return not path or path.startswith((".", "/", "~")) or "\\" in path or path.count("/") > 1


@contextmanager
def finding(path: str | Path, what: str) -> Iterator[None]:
    """What libraries raise inside the block because ``path`` is not to be had becomes one sentence.

    Errors of the disk, such as one that is full, stay as they are.

    Raises:
        SourceError: there is no such folder, id or file in it, or no access to it.
        NotReachableError: it is to be fetched, and the hub does not answer or must not be asked.
    """
    place = str(path)
    if looks_local(place) and not os.path.exists(place):
        raise SourceError(f"{what} is not there: no folder {place!r}{_near(place)}; check the path")
    try:
        yield
    except (SourceError, MemoryError):
        raise
    except Exception as error:
        said = _reason(error, place)
        if said is None:
            raise
        # A client quotes the header that it could not send, with the token.
        raise said[0](f"{what} {without_secrets(said[1])}") from (
            error if str(error) == without_secrets(str(error)) else None
        )


@contextmanager
def pushing(name: str) -> Iterator[None]:
    """What libraries raise inside the block because nothing can be written to the hub's ``name`` becomes one sentence.

    Raises:
        NotReachableError: the hub does not answer or must not be asked.
        SourceError: it does not let this user write there.
    """
    cure = "or leave push_to_hub out and send the folder later with `hf upload`"
    try:
        yield
    except Exception as error:
        chain = _chain(error)
        status = _status(chain)
        if status in (401, 403):
            raise SourceError(
                f"push_to_hub: the hub does not let this user write to {name!r}: log in with `hf auth login`, or give a hub_token "
                f"with the right to write there, {cure}"
            ) from None
        if status is None and not _is_of_network(chain):
            raise
        why = (
            "offline mode is set, unset HF_HUB_OFFLINE"
            if constants.HF_HUB_OFFLINE
            else "the hub does not answer, check the network"
        )
        why = why if status is None else f"the hub answers with status {status}, try again"
        raise NotReachableError(f"push_to_hub: {name!r} cannot be written: {why}, {cure}") from None


def _chain(error: BaseException) -> list[BaseException]:
    """An error and those that led to it."""
    chain, own = [error], error
    while (own := own.__cause__ or own.__context__) is not None and own not in chain:
        chain.append(own)
    return chain


def _status(chain: list[BaseException]) -> int | None:
    """The status with which the hub answered."""
    return next((own.response.status_code for own in chain if getattr(own, "response", None) is not None), None)


def fetched(path: str, file: str, what: str, revision: str | None = None) -> str | None:
    """Where a file of an id or a folder lies, once it is in the cache; None for a folder without it."""
    with finding(path, what):
        return cached_file(path, file, revision=revision)


def _reason(error: BaseException, place: str) -> tuple[type[SourceError], str] | None:
    """The class and the words for an error of a library, None for one of another kind."""
    network = _is_of_network([error])
    if not network and not isinstance(error, OSError | HFValidationError):
        return None
    if not network and not isinstance(error, PermissionError) and getattr(error, "errno", None) is not None:
        return None
    chain = _chain(error)

    def raised(*kinds: type[BaseException]) -> bool:
        return any(isinstance(own, kinds) for own in chain)

    status = _status(chain)
    if raised(PermissionError):
        return SourceError, f"gives no access to {place!r}: permission is denied; change its owner or mode"
    if raised(GatedRepoError) or (status == 403 and raised(HfHubHTTPError)):
        return (
            SourceError,
            f"gives no access: ask for it at {constants.ENDPOINT}/{place}, then log in with `hf auth login`",
        )
    if raised(RevisionNotFoundError):
        return SourceError, "has no such revision; look at its branches and tags on the hub"
    if raised(RepositoryNotFoundError) or type(error).__name__ == "DatasetNotFoundError":
        return SourceError, (
            f"is not there: no folder {place!r} here, and no public one of this name on the hub{_near(place)}; check the "
            "spelling, or log in with `hf auth login` if it is private"
        )
    if raised(HFValidationError):
        return SourceError, f"is not there: no folder {place!r} here, and no id of the hub is written so{_near(place)}"
    if _is_of_network(chain) or raised(LocalEntryNotFoundError) or (status and raised(HfHubHTTPError)):
        why, cure = "the hub does not answer", "check the network"
        if constants.HF_HUB_OFFLINE and _Asked.answers is None:
            why, cure = "offline mode is set", "unset HF_HUB_OFFLINE"
        return NotReachableError, (
            f"is not reachable: no folder {place!r} here, not in the cache, and {why}{_near(place)}; {cure}, or give a folder"
        )
    if raised(EntryNotFoundError) or type(error) is OSError:
        # transformers says which file a folder lacks.
        return SourceError, f"lacks a file: {str(error).splitlines()[0][:300] if str(error) else place}"
    return None


def _is_of_network(chain: list[BaseException]) -> bool:
    clients = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
    return any(
        isinstance(own, ConnectionError | TimeoutError | socket.gaierror)
        or type(own).__module__.partition(".")[0] in clients
        for own in chain
    )


def _near(place: str) -> str:
    """A folder beside that has nearly this name."""
    folder = Path(place)
    try:
        beside = [own.name for own in folder.parent.iterdir() if own.is_dir()]
    except (OSError, ValueError):
        return ""
    near = difflib.get_close_matches(folder.name, beside, n=1)
    return f"; did you mean {str(folder.parent / near[0])!r}?" if near else ""

"""Answers of a server that are kept: the latest in memory, all of them in a file where one is named."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

from ._reply import Reply, Token


HEAD = '{"key": "'
"""How every line of a file begins."""


class AnswerCache:
    """Replies by the content of their request.

    Args:
        owner: name of the reward, for errors.
        size: replies in memory; the one that was used longest ago goes first. 0: none are kept, in the file neither.
        file: a JSON Lines file, read by the first use and added to by each new reply, also by several processes at once.

    Raises:
        ValueError: ``file`` does not end in ``.jsonl``.
    """

    def __init__(self, owner: str, size: int, file: str | None) -> None:
        if file is not None and Path(file).suffix != ".jsonl":
            raise ValueError(
                f"{owner}: cache_file must be a path that ends in .jsonl, such as 'runs/judge.jsonl', got {file!r}"
            )
        self.owner, self.size, self.file = owner, size, file
        self._kept: OrderedDict[str, Reply] = OrderedDict()
        self._read = file is None or size == 0

    @staticmethod
    def key(url: str, body: dict[str, Any]) -> str:
        """SHA-256 of a request: of where it goes and of all that it says, pictures included."""
        text = json.dumps([url, body], sort_keys=True, ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def get(self, key: str) -> Reply | None:
        """The reply to that request, if it is still there.

        Raises:
            ValueError: the file holds something else.
        """
        if not self._read:
            self._load()
        # Two calls at once only ever lose a reply here: each of the two steps is whole.
        reply = self._kept.pop(key, None)
        if reply is not None:
            self._kept[key] = reply
        return reply

    def put(self, key: str, reply: Reply) -> None:
        """Keeps a reply, in the file too."""
        if self.size == 0:
            return
        self._keep(key, reply)
        if self.file is not None:
            tokens = None if reply.tokens is None else [[token.text, token.options] for token in reply.tokens]
            # The break comes first, so that a line whose writing was interrupted spoils no other.
            line = "\n" + json.dumps({"key": key, "reply": [reply.text, reply.cut, tokens]})
            Path(self.file).parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)

    def _keep(self, key: str, reply: Reply) -> None:
        self._kept.pop(key, None)
        self._kept[key] = reply
        while len(self._kept) > self.size:
            self._kept.popitem(last=False)

    def _load(self) -> None:
        """Reads the file, without what an interruption left of a line."""
        self._read = True
        path = Path(self.file or "")
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                own = json.loads(line)
                text, cut, tokens = own["reply"]
                kept = None if tokens is None else tuple(Token(t, tuple(map(tuple, top))) for t, top in tokens)
                self._keep(str(own["key"]), Reply(text, bool(cut), kept))
            except (ValueError, KeyError, TypeError) as error:
                if isinstance(error, json.JSONDecodeError) and (line.startswith(HEAD) or HEAD.startswith(line)):
                    continue
                raise ValueError(
                    f"{self.owner}: cache_file {self.file!r}, line {number}, is no answer that was kept ({error!r}): "
                    "give another name, or move the file away"
                ) from None

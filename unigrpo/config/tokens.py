"""Tokens of the hub among a run's arguments: used while it lasts, and never stored."""

from __future__ import annotations

import json
from typing import Any


class TokensUnsaved:
    """A mixin of arguments that are pickled beside weights, in a folder that is made to be passed on."""

    def __copy__(self) -> Any:
        """With the tokens, which a copy made through ``__getstate__`` would lack."""
        made = object.__new__(type(self))
        vars(made).update(vars(self))
        return made

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, and no token is shown."""
        values = super().to_dict()  # type: ignore[misc]  # of the arguments that this is mixed into
        options = values.get("model_init_kwargs")
        if isinstance(options, dict) and options.get("token"):
            values["model_init_kwargs"] = {**options, "token": "<TOKEN>"}
        return values

    def __str__(self) -> str:
        return f"{type(self).__name__}({json.dumps(self.to_dict(), indent=2, default=str)})"

    __repr__ = __str__

    def __getstate__(self) -> dict[str, Any]:
        """What checkpoints store: everything but the hub's tokens."""
        options = getattr(self, "model_init_kwargs", None)
        if isinstance(options, dict):
            options = {name: value for name, value in options.items() if name != "token"}
        return {**vars(self), "hub_token": None, "model_init_kwargs": options}

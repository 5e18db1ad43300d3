"""Tokens of the hub among a run's arguments: used while it lasts, and never stored."""

from __future__ import annotations

from typing import Any


class TokensUnsaved:
    """A mixin of arguments that are pickled beside weights, in a folder that is made to be passed on."""

    def __copy__(self) -> Any:
        """With the tokens, which a copy made through ``__getstate__`` would lack."""
        made = object.__new__(type(self))
        vars(made).update(vars(self))
        return made

    def __getstate__(self) -> dict[str, Any]:
        """What checkpoints store: everything but the hub's tokens."""
        options = getattr(self, "model_init_kwargs", None)
        if isinstance(options, dict):
            options = {name: value for name, value in options.items() if name != "token"}
        return {**vars(self), "hub_token": None, "model_init_kwargs": options}

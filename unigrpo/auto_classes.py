"""``import unigrpo`` is enough for the Auto classes of transformers to know the families, and stays instant."""

from __future__ import annotations

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any


AUTO_CLASSES = "transformers.models.auto.configuration_auto"
"""The module that every Auto class imports."""


class AfterImport(MetaPathFinder):
    """Imports ``unigrpo.models``, which registers the families, once ``AUTO_CLASSES`` has been imported by anybody.

    It waits for the outermost module of transformers: inside its import others are still half made.
    """

    def __init__(self) -> None:
        self._depth = 0

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The usual one, whose loader comes back here; None for modules of others."""
        spec = PathFinder.find_spec(name, path, target) if name.startswith("transformers.") else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            self._depth += 1
            try:
                execute(module)
            finally:
                self._depth -= 1
            if not self._depth and AUTO_CLASSES in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                importlib.import_module("unigrpo.models")

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register_families() -> None:
    """Registers the families now where the Auto classes are there already, else as soon as they are."""
    if AUTO_CLASSES in sys.modules and not getattr(sys.modules[AUTO_CLASSES].__spec__, "_initializing", False):
        importlib.import_module("unigrpo.models")
    elif not any(isinstance(finder, AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, AfterImport())

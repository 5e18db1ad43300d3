"""Folder layouts in which other benchmarks look for pictures. Each is read and written as that benchmark's own code does."""

from __future__ import annotations

from typing import Any


LAYOUTS: dict[str, Any] = {}

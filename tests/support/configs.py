"""Configurations for tests, on the CPU and without trackers."""

from __future__ import annotations

from unigrpo.config.arguments import UniGRPOConfig


def config(**values) -> UniGRPOConfig:
    return UniGRPOConfig("unused", **{"use_cpu": True, "report_to": "none", **values})

"""Checks of your own parts, for your own tests: ``check_policy``, ``check_sampler``, ``check_reward``.

Each is a plain function that raises ``AssertionError`` with a sentence that says what is wrong and how to cure it.
"""

from .policy import check_policy
from .reward import check_reward
from .sampler import check_sampler


__all__ = ["check_policy", "check_reward", "check_sampler"]

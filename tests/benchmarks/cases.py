"""``CASES`` is the one place to add a case: a name for ``--only`` and a function from a ``Bench`` to its results."""

from __future__ import annotations

from collections.abc import Callable

from . import (
    cases_block_likelihood,
    cases_buckets,
    cases_growth,
    cases_images,
    cases_sft,
    cases_text,
    cases_update,
    memory,
)
from .bench import Bench
from .measure import Result


CASES: dict[str, Callable[[Bench], list[Result]]] = {
    "text": cases_text.text_greedy,
    "text-sampled": cases_text.text_sampled,
    "t2i": cases_images.text_to_image,
    "trimmed": cases_images.trimmed_padding,
    "update": cases_update.updates,
    "buckets": cases_buckets.buckets,
    "block-likelihood": cases_block_likelihood.block_likelihood,
    "sft": cases_sft.sft,
    "finished": cases_text.finished_rows,
    "empty": cases_text.empty_steps,
    "caches": cases_text.caches,
    "growth": cases_growth.growth,
    "memory": memory.memory,
}

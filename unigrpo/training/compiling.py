"""``torch.compile`` where it pays: inside the transformer blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..config.arguments import UniGRPOConfig


RECOMPILE_LIMIT = 64
"""Kinds of calls a block is compiled for."""


def compile_blocks(args: UniGRPOConfig, *models: nn.Module | None) -> None:
    """Compiles each transformer block of ``models`` in place where ``torch_compile`` asks for it; names do not change.

    The forward around the blocks is left alone: it selects rows by value and has a head with a gradient of its own, which
    would break the graph, or be compiled anew for every count of rows. Blocks are the modules of the classes that a model
    lists in ``_no_split_modules``, what adapters have put into them included. Sizes are dynamic, because rows leave a batch
    and lengths vary.

    Raises:
        ValueError: a model lists no blocks, or none that it has.
    """
    if not args.torch_compile:
        return
    # One block serves forwards with and without gradients, mask, cache and selected rows, and single rows count as a kind
    # of their own. Beyond the limit, 8 unless raised, a kind is run uncompiled.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    # Fused bf16 arithmetic would keep more digits, and others with a gradient than without: the old policy's
    # log-probabilities would no longer be those of the update.
    torch._inductor.config.emulate_precision_casts = True
    for model in models:
        if model is None:
            continue
        names = set(getattr(model, "_no_split_modules", None) or ())
        blocks = [module for module in model.modules() if type(module).__name__ in names]
        if not blocks:
            base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
            raise ValueError(
                f"torch_compile=True compiles transformer blocks, and {type(base).__name__}._no_split_modules="
                f"{sorted(names)} names none that it has: list the class names of its blocks there, or set "
                "torch_compile=False"
            )
        for block in blocks:
            block.compile(dynamic=True, backend=args.torch_compile_backend, mode=args.torch_compile_mode)

"""MMaDA's network and its likelihood a second time, in float64, from the published layout of the weights.

Nothing of the library computes anything here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def network(weights: dict[str, Tensor], config, ids: Tensor) -> Tensor:
    """Logits ``[S, L, V]`` of ``ids [S, L]`` without padding: pre-norm blocks with rotary attention to both sides, gated MLPs."""
    heads, size = config.n_heads, config.d_model // config.n_heads
    inverse = config.rope_theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(ids.shape[1], dtype=torch.float64)[:, None] * inverse
    cos, sin = (torch.cat([own, own], dim=1) for own in (angles.cos(), angles.sin()))

    def norm(x: Tensor, name: str) -> Tensor:
        return weights[name] * x / (x.square().mean(dim=-1, keepdim=True) + config.rms_norm_eps).sqrt()

    def rotated(x: Tensor) -> Tensor:
        return x * cos + torch.cat([-x[..., size // 2 :], x[..., : size // 2]], dim=-1) * sin

    x = weights["model.transformer.wte.weight"][ids]
    for layer in range(config.n_layers):
        at = f"model.transformer.blocks.{layer}."
        h = norm(x, at + "attn_norm.weight")
        q, k, v = (
            (h @ weights[f"{at}{name}_proj.weight"].T).unflatten(2, (heads, size)).transpose(1, 2) for name in "qkv"
        )
        seen = (rotated(q) @ rotated(k).transpose(2, 3) / math.sqrt(size)).softmax(dim=-1) @ v
        x = x + seen.transpose(1, 2).flatten(2) @ weights[at + "attn_out.weight"].T
        h = norm(x, at + "ff_norm.weight")
        gate = h @ weights[at + "ff_proj.weight"].T
        x = x + (gate * gate.sigmoid() * (h @ weights[at + "up_proj.weight"].T)) @ weights[at + "ff_out.weight"].T
    return norm(x, "model.transformer.ln_f.weight") @ weights["model.transformer.ff_out.weight"].T


def distribution(
    weights: dict[str, Tensor], config, ids: Tensor, hidden: Tensor, task: str, temperature: float, guidance: float
) -> tuple[Tensor, int]:
    """Log-probabilities ``[S, L, W]`` of what ``task`` may write under each of ``hidden [S, L]``, and the first column's id.

    ``guidance`` is of pictures alone.
    """
    noisy, offset = ids.masked_fill(hidden, config.mask_token_id), config.image_token_offset
    logits = network(weights, config, noisy)
    if task != "t2i":
        closed = torch.arange(offset) == config.mask_token_id
        return (logits[..., :offset] / temperature).masked_fill(closed, -math.inf).log_softmax(dim=-1), 0
    # Of the unconditional answer only what stands before the picture is another one: an empty caption.
    special = config.special_token_ids
    start = int((ids == special["soi"]).nonzero())
    empty = torch.tensor([special["t2i"], config.bos_token_id, config.eos_token_id]).expand(len(noisy), 3)
    free = network(weights, config, torch.cat([empty, noisy[:, start:]], dim=1))[:, 3:]
    guided = free + (guidance + 1) * (logits[:, start:] - free)
    logits = torch.cat([logits[:, :start], guided], dim=1)
    return (logits[..., offset : offset + config.codebook_size] / temperature).log_softmax(dim=-1), offset

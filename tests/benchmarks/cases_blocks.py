"""Block diffusion: rollouts of a block-causal decoder beside kept keys, which are exact, against the same without."""

from __future__ import annotations

import copy

import torch

from unigrpo.models import DiffusionPolicy
from unigrpo.models.decoder import A2DQwen3Config, A2DQwen3ForMaskedDiffusion
from unigrpo.samplers import Block

from .bench import Bench, streams, text_canvas
from .measure import EXACT, Result, compared, interleave


SIZE = 4
"""Positions of a block, SDAR's; a step commits two of them."""


def block_model(bench: Bench) -> tuple[A2DQwen3ForMaskedDiffusion, DiffusionPolicy]:
    """A Qwen3 in blocks of the size of the bench's model, with its vocabulary and random weights, where that is."""
    own, weight = bench.model.config, next(bench.model.parameters())
    config = A2DQwen3Config(
        vocab_size=own.vocab_size,
        hidden_size=own.d_model,
        intermediate_size=own.mlp_hidden_size,
        num_hidden_layers=own.n_layers,
        num_attention_heads=own.n_heads,
        num_key_value_heads=own.n_heads,
        head_dim=own.d_model // own.n_heads,
        tie_word_embeddings=False,
        mask_token_id=own.mask_token_id,
        attention="block_causal",
        block_size=SIZE,
    )
    with torch.random.fork_rng(devices=[]), torch.device(bench.device):
        torch.manual_seed(0)
        model = A2DQwen3ForMaskedDiffusion._from_config(config, dtype=weight.dtype).eval()
    policy = copy.copy(bench.policy)
    policy.block_size = SIZE
    return model, policy


def kept_blocks(bench: Bench) -> list[Result]:
    """T = 0, a group of answers, each a third of its row; nothing stops one."""
    length = bench.sizes.prompt + bench.sizes.answer
    answer, (model, policy) = length // 3, block_model(bench)
    canvas = text_canvas(bench, 2 * bench.sizes.batch, length - answer, answer)
    settings = {"steps": max(answer // 2, 2), "temperature": 0.0, "stop": "never"}

    def fill(kind: str):
        return Block(**settings, kv_cache=kind)(model, policy, canvas, generators=streams(len(canvas.ids)))

    timed = interleave({"plain": lambda: fill("none"), "ours": lambda: fill("exact")}, bench.sizes.rounds)
    ours, plain = (timed[side].value for side in ("ours", "plain"))
    checks = {
        "tokens equal": torch.equal(ours.canvas.ids, plain.canvas.ids) and torch.equal(ours.step_map, plain.step_map),
        "log-probabilities equal": bool(((ours.sampling_logps - plain.sampling_logps).abs() < 1e-4).all()),
    }
    note = f"blocks of {SIZE}; plain: our sampler with kv_cache='none'"
    return [compared("kept blocks", EXACT, timed, goal=4.0, floor=3.0, checks=checks, note=note)]

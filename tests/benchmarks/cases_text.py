"""Text rollouts: speed against the plain sampler, rows that finish early, steps that commit nothing, caches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from unigrpo.samplers import SemiAutoregressive
from unigrpo.types import Canvas

from .bench import Bench, plain_stream, streams, text_canvas
from .expected import parts_of
from .measure import APPROXIMATE, EXACT, EXACT_LAW, Result, chi_square, compared, interleave, same_law
from .plain import Clock, text_rollout


BLOCKS_OF_ROWS = (1, 1, 2, 2, 3, 3, 4, 4)
"""After how many of four blocks each row of the finished-rows case stops."""


def sampler(bench: Bench, **changes) -> SemiAutoregressive:
    """The workload's sampler in production mode, except that nothing stops a row."""
    sizes = bench.sizes
    settings = {"steps": sizes.steps, "block_length": sizes.block_length, "temperature": 0.0, "stop": "never"}
    return SemiAutoregressive(**{**settings, **changes})


def fill(bench: Bench, canvas: Canvas, **changes):
    """The rollout of ``canvas``, every row with a stream of its own."""
    return sampler(bench, **changes)(bench.model, bench.policy, canvas, generators=streams(len(canvas.ids)))


def plain_fill(bench: Bench, canvas: Canvas, temperature: float, clock: Clock) -> torch.Tensor:
    """The same canvas through the plain sampler."""
    sizes = bench.sizes
    return text_rollout(
        bench.plain,
        canvas.ids,
        sizes.prompt,
        steps=sizes.steps,
        block_length=sizes.block_length,
        temperature=temperature,
        clock=clock,
        generator=plain_stream(bench),
    )


def workload(bench: Bench) -> Canvas:
    """The canvas of the text cases."""
    return text_canvas(bench, bench.sizes.batch, bench.sizes.prompt, bench.sizes.answer)


def text_greedy(bench: Bench) -> list[Result]:
    """T = 0: the tokens are the plain sampler's."""
    canvas, clock = workload(bench), Clock()
    timed = interleave(
        {"plain": lambda: plain_fill(bench, canvas, 0.0, clock), "ours": lambda: fill(bench, canvas)},
        bench.sizes.rounds,
    )
    same = torch.equal(timed["ours"].value.canvas.ids, timed["plain"].value)
    return [_text_result(bench, "text T=0", EXACT, timed, clock, 4.5, 3.0, {"tokens equal": same})]


def text_sampled(bench: Bench) -> list[Result]:
    """T = 1: other random numbers, the same law."""
    canvas, clock = workload(bench), Clock()
    timed = interleave(
        {"plain": lambda: plain_fill(bench, canvas, 1.0, clock), "ours": lambda: fill(bench, canvas, temperature=1.0)},
        bench.sizes.rounds,
    )
    statistic = law_statistic(bench)
    checks = {
        "chi-square of draws": same_law(statistic),
        "all written": bool((timed["ours"].value.step_map[canvas.fill_mask] >= 0).all()),
    }
    return [_text_result(bench, "text T=1", EXACT_LAW, timed, clock, 9.0, 6.0, checks, chi_square=statistic)]


def law_statistic(bench: Bench) -> float:
    """Chi-square per degree of freedom of many first draws at one position, under the plain model's softmax."""
    canvas = text_canvas(bench, 1, 1, 1)
    probs = bench.plain.logits(canvas.ids)[0, -1].detach().double().softmax(-1)
    rows = canvas.take(torch.zeros(bench.sizes.law_draws, dtype=torch.int64))
    rollout = fill(bench, rows, steps=1, block_length=1, temperature=1.0)
    return chi_square(rollout.canvas.ids[:, -1], probs)


def _text_result(bench, name, kind, timed, clock, goal, floor, checks, **extra) -> Result:
    steps, plain = bench.sizes.steps, timed["plain"]
    parts = parts_of(name, clock, sum(plain.seconds), 1000 * plain.median / steps)
    extra |= {"plain_parts": parts, "ours_ms_per_step": 1000 * timed["ours"].median / steps}
    return compared(name, kind, timed, goal=goal, floor=floor, checks=checks, extra=extra)


@contextmanager
def stopping_rows(bench: Bench, first_words: list[int], ends: list[int]) -> Iterator[None]:
    """A model that writes a stop token at position ``ends[i]`` of the row whose first word is ``first_words[i]``.

    It does so with certainty, hence first of its block; all later blocks are then behind the stop token.
    """
    stop, place = bench.policy.stop_token_ids[0], dict(zip(first_words, ends, strict=True))

    def force(module, args, kwargs, output):
        rows, columns = kwargs["select"].nonzero(as_tuple=True)
        target = torch.tensor([place[word] for word in kwargs["input_ids"][:, 0].tolist()])
        forced = columns == target[rows]
        if output.logits is not None:
            output.logits[forced, stop] = output.logits.amax() + 50.0
        else:
            output.tokens[forced], output.logps[forced] = stop, 0.0
        return output

    hook = bench.model.register_forward_hook(force, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def finished_rows(bench: Bench) -> list[Result]:
    """Rows that met their stop token leave the batch; the other side denoises them to the end."""
    block, steps = bench.sizes.stop_block, 4 * bench.sizes.stop_steps
    prompt, rows = min(bench.sizes.prompt, 64), len(BLOCKS_OF_ROWS)
    canvas = text_canvas(bench, rows, prompt, 4 * block, whole_vocabulary=False)
    canvas.ids[:, 0] = torch.arange(rows)
    lengths = [block * blocks for blocks in BLOCKS_OF_ROWS]
    settings = {"steps": steps, "block_length": block}
    with stopping_rows(bench, list(range(rows)), [prompt + length - 1 for length in lengths]):
        timed = interleave(
            {
                "plain": lambda: fill(bench, canvas, stop="never", **settings),
                "ours": lambda: fill(bench, canvas, stop="first", **settings),
            },
            bench.sizes.rounds,
        )
        alone = fill(bench, canvas.take(torch.tensor([2])), stop="first", **settings)
    ours = timed["ours"].value
    work = 4 * rows / sum(BLOCKS_OF_ROWS)
    found = {
        "checks": {
            "lengths": ours.completion_mask.sum(dim=1).tolist() == lengths,
            "a row alone equals it in the batch": torch.equal(ours.canvas.ids[2], alone.canvas.ids[0]),
        },
        "note": "plain: our sampler with stop='never'",
        "extra": {"work_ratio": work},
    }
    return [compared("finished rows", EXACT, timed, goal=work, floor=0.85 * work, **found)]


def empty_steps(bench: Bench) -> list[Result]:
    """Twice as many steps as tokens cost what as many steps as tokens do."""
    tokens = bench.sizes.empty_tokens
    canvas = text_canvas(bench, bench.sizes.batch, min(bench.sizes.prompt, 64), tokens)
    timed = interleave(
        {
            "half": lambda: fill(bench, canvas, steps=tokens, block_length=tokens),
            "ours": lambda: fill(bench, canvas, steps=2 * tokens, block_length=tokens),
        },
        bench.sizes.rounds,
    )
    found = {
        "checks": {"tokens equal": torch.equal(timed["half"].value.canvas.ids, timed["ours"].value.canvas.ids)},
        "note": "plain: twice our time for steps = tokens, which is what running the empty steps would cost",
        "extra": {"work_ratio": 2.0},
    }
    once = compared("empty steps", EXACT, timed, plain="half", goal=2.0, floor=1.7, **found)
    return [replace(once, plain=2 * once.plain)]


def caches(bench: Bench) -> list[Result]:
    """Key-value caches against the plain sampler. Random weights say nothing of their quality, see the README."""
    canvas, clock = workload(bench), Clock()
    sides = {kind: lambda kind=kind: fill(bench, canvas, kv_cache=kind) for kind in ("none", "prefix", "dual")}
    sides["plain"] = lambda: plain_fill(bench, canvas, 0.0, clock)
    timed = interleave(sides, bench.sizes.rounds)
    floor = bench.sizes.dual_cache_floor
    return [_cache_result(canvas, "prefix", None, None, timed), _cache_result(canvas, "dual", 6.0, floor, timed)]


def _cache_result(canvas: Canvas, kind: str, goal: float | None, floor: float | None, timed) -> Result:
    """Nothing is cached at the first step, so its tokens must be those of exact decoding."""
    exact, cached, written = timed["none"].value, timed[kind].value, canvas.fill_mask
    first = exact.step_map == 0
    checks = {
        "all written": bool((cached.step_map[written] >= 0).all()),
        "first step equal": torch.equal(cached.step_map == 0, first)
        and torch.equal(cached.canvas.ids[first], exact.canvas.ids[first]),
    }
    note = f"x{timed['none'].median / timed[kind].median:.2f} over our exact decoding"
    return compared(f"{kind} cache", APPROXIMATE, timed, kind, goal=goal, floor=floor, checks=checks, note=note)

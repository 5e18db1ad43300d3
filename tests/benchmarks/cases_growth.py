"""Time grows linearly: with the number of completions, and with the number of scored tokens."""

from __future__ import annotations

from functools import partial

from .bench import Bench, text_canvas, update_batch
from .cases_text import fill
from .cases_update import update, vocabulary
from .measure import EXACT, Result, Timed, interleave, linear_fit


def growth(bench: Bench) -> list[Result]:
    """Both lines. What does not depend on x is the intercept."""
    return [_completions(bench), _scored_tokens(bench)]


def _completions(bench: Bench) -> Result:
    """One block a completion; the batch grows."""
    sizes = bench.sizes
    length, prompt = sizes.block_length, min(sizes.prompt, 64)
    canvases = {rows: text_canvas(bench, rows, prompt, length) for rows in sizes.growth_batches}
    sides = {str(rows): partial(fill, bench, canvas, steps=4) for rows, canvas in canvases.items()}
    return _result("linear in completions", "completions", interleave(sides, sizes.rounds))


def _scored_tokens(bench: Bench) -> Result:
    """Updates of the same rows, more and more of their tokens scored."""
    sizes = bench.sizes
    batches = [update_batch(bench, sizes.update_rows, sizes.update_length, hidden) for hidden in sizes.growth_hidden]

    def step(batch):
        bench.model.zero_grad(set_to_none=True)
        return update(bench, batch, old_pass=False)

    with vocabulary(bench.model, trainable=False):
        sides = {str(int(batch.hidden.sum())): partial(step, batch) for batch in batches}
        timed = interleave(sides, sizes.rounds)
    return _result("linear in scored tokens", "scored tokens", timed)


def _result(name: str, axis: str, timed: dict[str, Timed]) -> Result:
    x, seconds = [float(key) for key in timed], [min(side.seconds) for side in timed.values()]
    fit = linear_fit(x, seconds)
    note = f"R^2 of a line; {1000 * fit['slope']:.3g} ms each, {1000 * fit['intercept']:.3g} ms fixed"
    extra = {"axis": axis, "x": x, "seconds": seconds, **fit}
    return Result(name=name, kind=EXACT, value=fit["r2"], goal=0.99, floor=0.95, note=note, extra=extra)

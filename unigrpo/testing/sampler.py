"""``check_sampler``: what everything behind a sampler relies on."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..models import DiffusionPolicy
from ..samplers.base import signed_guidance
from ..types import Canvas, Guidance, Rollout
from .require import require
from .rollouts import TOLERANCE, Recorded, check_all_written, check_recorded_logps, check_rollout, difference, streams
from .stops import check_counts, check_tail_is_not_denoised, check_tails, common_tokens, forwards_of
from .world import PROMPTS, TWINS, TinyPolicy, tiny_model


def check_sampler(
    sampler: Callable[..., Rollout],
    model: Any = None,
    policy: DiffusionPolicy | None = None,
    canvas: Canvas | None = None,
    *,
    task: str = "text",
    exact_steps: bool = True,
    ends_at_stop: bool = True,
    needs_mask_id: bool = False,
    temperature: float | None = None,
    guidance_scale: float | None = None,
) -> None:
    """Everything that training, noise and logs rely on when ``sampler`` fills a canvas.

    It is called some ten times as ``sampler(model, policy, canvas, on_step=..., generators=[...])``.

    Args:
        model, policy, canvas: all three of them, or none: then a tiny model with random weights fills tiny canvases, with
            and without a mask id. A model is left in eval mode.
        task: of the tiny canvases: ``"text"`` for samplers of text, ``"t2i"`` for samplers of pictures.
        exact_steps: whether the recorded log-probabilities are the model's own. False for samplers that keep keys and values.
        ends_at_stop: whether the tail behind a stop token becomes padding. False for samplers that write on; what counts
            ends with the stop token all the same.
        needs_mask_id: True for samplers that only serve policies with a mask id.
        temperature, guidance_scale: what the recorded log-probabilities are at; None = the sampler's field of that name, or
            1 (for temperature 0, too) and 0.

    Raises:
        AssertionError: one sentence: what is wrong, where, and the cure.
        ValueError: some of model, policy and canvas, but not all.
    """
    law = _Law(
        temperature=(getattr(sampler, "temperature", 1.0) if temperature is None else temperature) or 1.0,
        guidance=signed_guidance(sampler) if guidance_scale is None else guidance_scale,
        exact=exact_steps,
        ends_at_stop=ends_at_stop,
    )
    for where, trial in _trials(sampler, model, policy, canvas, task, needs_mask_id):
        try:
            _check(trial, law)
        except AssertionError as error:
            name = getattr(sampler, "__name__", type(sampler).__name__)
            raise AssertionError(f"{name}{where}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Law:
    temperature: float
    guidance: Guidance
    exact: bool
    ends_at_stop: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """A sampler and what it is tried on; ``own`` says that the canvas and the model are the kit's."""

    sampler: Callable[..., Rollout]
    model: Any
    policy: DiffusionPolicy
    canvas: Canvas
    own: bool

    def run(self, rows: list[int] | None = None, on_step: Callable[[int, int], None] | None = None) -> Rollout:
        """The rollout of all rows, or of ``rows`` in that order, each with its own fresh generator."""
        every = streams(len(self.canvas.ids))
        rows = list(range(len(every))) if rows is None else rows
        canvas = self.canvas.take(torch.tensor(rows))
        generators, kept = [every[row] for row in rows], copy.deepcopy(canvas)
        rollout = self.sampler(self.model, self.policy, canvas, on_step=on_step, generators=generators)
        names = ("ids", "fill_mask", "attention_mask")
        changed = [name for name in names if not torch.equal(getattr(kept, name), getattr(canvas, name))]
        require(not changed, f"it changed the caller's canvas.{', '.join(changed)}: clone what is written to")
        require(isinstance(rollout, Rollout), f"it returned a {type(rollout).__name__}: return a Rollout")
        return rollout

    def ending_at(self, stop_token_ids: tuple[int, ...]) -> _Trial:
        """The same with other stop tokens."""
        policy = copy.copy(self.policy)
        policy.stop_token_ids = stop_token_ids
        return replace(self, policy=policy)


def _trials(sampler, model, policy, canvas, task: str, needs_mask_id: bool) -> Iterator[tuple[str, _Trial]]:
    given = [own is not None for own in (model, policy, canvas)]
    if any(given) and not all(given):
        raise ValueError("give model, policy and canvas together, or none of them")
    if all(given):
        model.eval()
        yield "", _Trial(sampler=sampler, model=model, policy=policy, canvas=canvas, own=False)
        return
    for has_mask in (True,) if needs_mask_id else (True, False):
        policy = TinyPolicy(has_mask)
        canvas = policy.encode([{"prompt": prompt} for prompt in PROMPTS], task)
        where = f" on the kit's {task} canvas" + ("" if has_mask else " without a mask id")
        yield where, _Trial(sampler=sampler, model=tiny_model(), policy=policy, canvas=canvas, own=True)


def _check(trial: _Trial, law: _Law) -> None:
    _check_protocol(trial.sampler)
    free = trial.ending_at(())
    ticks: list[tuple[int, int]] = []
    written = free.run(on_step=lambda done, total: ticks.append((done, total)))
    _check_ticks(ticks)
    check_rollout(written, free.canvas, free.policy, ticks[0][1])
    check_all_written(written)
    if law.exact:
        _check_recorded(free, written, law)
    _check_randomness(free, written)
    ending = _check_stops(trial, written, law)
    _check_neighbours(ending)


def _check_protocol(sampler: Callable[..., Rollout]) -> None:
    try:
        inspect.signature(sampler).bind(None, None, None, on_step=None, generators=[])
    except TypeError as error:
        raise AssertionError(
            f"it cannot be called as sampler(model, policy, canvas, on_step=None, generators=[...]): {error}"
        ) from error


def _check_ticks(ticks: list[tuple[int, int]]) -> None:
    done = [own for own, _ in ticks]
    require(ticks, "on_step was never called: call on_step(done, total) after each step, where it is not None")
    require(
        done == sorted(set(done))
        and done[0] > 0
        and {total for _, total in ticks} == {ticks[0][1]}
        and done[-1] <= ticks[0][1],
        f"on_step was called with {ticks[:4]} ...: done counts up from 1 to total",
    )


def _check_recorded(trial: _Trial, rollout: Rollout, law: _Law) -> None:
    cure = "record the log-probability of the token at the moment it was drawn, over the token space"
    own = Recorded(temperature=law.temperature, guidance=law.guidance, cure=cure)
    check_recorded_logps(trial.model, trial.policy, rollout, streams(len(trial.canvas.ids)), own)


def _check_randomness(trial: _Trial, expected: Rollout) -> None:
    """Generators alone decide, and the global ones are left as they were."""
    before = _global_state()
    again = trial.run()
    require(
        _global_state() == before,
        "it consumed or reseeded a global random generator (random, numpy or torch): draw from the generators it is given",
    )
    found = difference(expected, again)
    require(not found, f"equal generators gave two results ({found}): nothing but the generators may decide")
    with _other_global_seed():
        found = difference(expected, trial.run())
    require(
        not found, f"the result depends on a global random generator ({found}): draw from the generators it is given"
    )
    temperature = getattr(trial.sampler, "temperature", 0)
    if trial.own and temperature > 0:
        first, second = TWINS
        require(
            not torch.equal(expected.canvas.ids[first], expected.canvas.ids[second]),
            "two rows with one prompt and two generators have the same answer at temperature "
            f"{temperature:g}: each row draws from its own generator",
        )


def _global_state() -> tuple[Any, ...]:
    own = np.random.get_state(legacy=False)
    numpy = (own["state"]["key"].tolist(), own["state"]["pos"], own["has_gauss"], own["gauss"])
    return random.getstate(), numpy, torch.get_rng_state().tolist()


@contextmanager
def _other_global_seed() -> Iterator[None]:
    """Another state of the global generators, for a while."""
    plain, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(1), np.random.seed(1), torch.manual_seed(1)
            yield
    finally:
        random.setstate(plain), np.random.set_state(numpy)


def _check_stops(trial: _Trial, free: Rollout, law: _Law) -> _Trial:
    """Stop tokens, on policies that end at tokens which the answers hold; returns the trial with the last of them."""
    if trial.canvas.task == "t2i":
        # What a picture cannot write ends nothing.
        picture = trial.run()
        check_rollout(picture, trial.canvas, trial.policy)
        check_all_written(picture)
        return trial
    ending = trial
    for token in common_tokens(free):
        ending = trial.ending_at((*trial.policy.stop_token_ids, token))
        _check_ending(ending, law)
    return ending


def _check_ending(trial: _Trial, law: _Law) -> None:
    with forwards_of(trial.model) as forwards:
        rollout = trial.run()
    check_counts(rollout, trial.policy)
    if not law.ends_at_stop:
        return
    check_tails(rollout, trial.policy)
    check_rollout(rollout, trial.canvas, trial.policy)
    if trial.policy.mask_token_id is not None:
        check_tail_is_not_denoised(forwards, trial.canvas, trial.policy)
    if law.exact:
        _check_recorded(trial, rollout, law)


def _check_neighbours(trial: _Trial) -> None:
    """A row alone, and all rows in another order, are what they were together."""
    together, rows = trial.run(), list(range(len(trial.canvas.ids)))
    for some in ([row] for row in rows):
        found = difference(together.take(torch.tensor(some)), trial.run(some), TOLERANCE)
        require(
            not found,
            f"row {some[0]} alone is another one than beside its neighbours ({found.replace('row 0', f'row {some[0]}')}, together "
            "and alone): what a row draws and when it ends may depend on that row only",
        )
    found = difference(together.take(torch.tensor(rows[::-1])), trial.run(rows[::-1]), TOLERANCE)
    require(not found, f"rows in another order have other answers ({found}): row i draws from generators[i]")

"""Rollout batches: answers do not depend on how rows are cut, and a batch that does not fit is cut again."""

from __future__ import annotations

import warnings
import weakref
from dataclasses import replace

import pytest
import torch

from unigrpo.config.arguments import UniGRPOConfig
from unigrpo.config.build import build_algorithms
from unigrpo.models import MMaDAPolicy
from unigrpo.rollout.pipeline import Pipeline
from unigrpo.rollout.rewards import RewardSet
from unigrpo.rollout.sample import sample_answers

from ..support.tiny import low_ids, prompts, tiny_model, tiny_processor


ROWS = prompts(7, (2, 9, 4, 30))
"""Prompts of four lengths: 2, 9, 4 and 30 words."""


class Watched(torch.nn.Module):
    """The tiny model, which notes the shape of each forward and has memory for ``room`` rows only."""

    def __init__(self, room: int = 100, error: Exception | None = None, mode: str = "bool") -> None:
        super().__init__()
        self.inner, self.room, self.shapes, self.attempts = tiny_model(), room, [], 0
        self.inner.config.attn_mask_mode = mode
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.left_behind = lambda: None

    def forward(self, **arguments):
        assert self.left_behind() is None, "what a failed attempt held is freed before the next one"
        shape = tuple(arguments["input_ids"].shape)
        if shape[0] > self.room:
            self.attempts += 1
            activations = torch.zeros(shape)
            self.left_behind = weakref.ref(activations)
            # A new one: who keeps an error keeps the frames that it came through.
            raise type(self.error)(*self.error.args)
        self.shapes.append(shape)
        return self.inner(**arguments)


def pipeline(model: Watched, **arguments) -> Pipeline:
    arguments = {"max_completion_length": 12, "steps": 6, "block_length": 6, **arguments}
    args = UniGRPOConfig("unused", use_cpu=True, report_to="none", **arguments)
    return Pipeline(
        model=model,
        policy=MMaDAPolicy(model.inner.config, tiny_processor()),
        args=args,
        rewards=RewardSet(functions=[low_ids]),
        algorithms=build_algorithms(args),
    )


def tokens(samples) -> list[list[int]]:
    """Prompt and answer of each sample, without padding."""
    return [s.rollout.canvas.ids[s.rollout.canvas.attention_mask].tolist() for s in samples]


def answers(model: Watched, **arguments) -> list[list[int]]:
    return tokens(sample_answers(pipeline(model, **arguments), ROWS, 3))


EVERYTHING = answers(Watched())


@pytest.mark.smoke
@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_answers_do_not_depend_on_the_batch(size):
    model = Watched()
    assert answers(model, rollout_batch_size=size) == EVERYTHING
    assert {rows for rows, _ in model.shapes} <= set(range(1, min(size, 7) + 1))
    assert max(rows for rows, _ in model.shapes) == min(size, 7)


def test_a_batch_is_padded_to_its_own_longest_prompt():
    model = Watched()
    answers(model, rollout_batch_size=1)
    own = sorted({len(row) for row in EVERYTHING})
    assert sorted({length for _, length in model.shapes}) == own
    model = Watched()
    answers(model, rollout_batch_size=2)
    ordered = sorted((len(row) for row in EVERYTHING), reverse=True)
    assert [length for _, length in model.shapes[::6]] == ordered[::2], "similar lengths share a batch"


@pytest.mark.parametrize("size", [1, 3])
def test_where_padding_is_attended_all_rows_keep_one(size):
    whole = answers(Watched(mode="none"))
    model = Watched(mode="none")
    samples = sample_answers(pipeline(model, rollout_batch_size=size), ROWS, 3)
    assert tokens(samples) == whole != EVERYTHING
    assert {length for _, length in model.shapes} == {max(len(row) for row in EVERYTHING)}


def test_samples_come_back_in_order_with_their_numbers():
    samples = sample_answers(pipeline(Watched(), rollout_batch_size=2), ROWS, 3, indices=list(range(40, 47)))
    assert [s.row for s in samples] == ROWS and [s.index for s in samples] == list(range(40, 47))
    assert all(s.rollout.canvas.ids.shape[0] == 1 and len(s.rollout.completions) == 1 for s in samples)


# ---- memory ----


SHORT = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "bare": torch.OutOfMemoryError("no memory"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried"),
}


@pytest.mark.parametrize("kind", SHORT)
def test_a_batch_that_does_not_fit_is_halved_and_the_size_is_kept(kind):
    model = Watched(room=2, error=SHORT[kind])
    pipe = pipeline(model)
    with pytest.warns(
        UserWarning, match=r"7 answers of task 'text' did not fit.*set\s+rollout_batch_size=1"
    ) as caught:
        assert tokens(sample_answers(pipe, ROWS, 3)) == EVERYTHING
    assert len([one for one in caught if "rollout_batch_size" in str(one.message)]) == 1
    assert model.attempts == 2, "7 rows, then 3, then 1 at a time"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tokens(sample_answers(pipe, ROWS, 3)) == EVERYTHING
    assert model.attempts == 2 and max(rows for rows, _ in model.shapes) == 1


def test_the_run_keeps_the_size(make_trainer):
    trainer = make_trainer()
    first, again = trainer.pipeline(), trainer.pipeline()
    first.fitted["text"] = 5
    assert again.fitted == {"text": 5}


def test_progress_goes_on_after_a_split():
    seen = []
    pipe = pipeline(Watched(room=4))
    pipe = replace(pipe, on_step=lambda done, total: seen.append((done, total)))
    with pytest.warns(UserWarning, match="rollout_batch_size=3"):
        sample_answers(pipe, ROWS, 3)
    assert seen == [(done, 18) for done in range(1, 19)]


def test_one_row_that_does_not_fit_names_the_cure():
    match = r"one answer of task 'text' on a canvas of \d+ tokens.*rollout_batch_size.*lower max_completion_length.*2\.00 GiB"
    with pytest.raises(RuntimeError, match=match):
        answers(Watched(room=0))


def test_where_forwards_meet_nothing_is_repeated(monkeypatch):
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: None)
    model = Watched(room=4)
    with pytest.raises(
        RuntimeError, match=r"7 answers of task 'text'.*other processes.*set rollout_batch_size=3 or less"
    ):
        sample_answers(replace(pipeline(model), forwards_meet=True), ROWS, 3)
    assert model.attempts == 1


def test_other_errors_are_not_swallowed():
    model = Watched(room=4, error=RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        answers(model)
    assert model.attempts == 1

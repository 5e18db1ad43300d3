"""``check_sampler`` fails on one broken sampler for each thing that it checks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unigrpo.samplers.base import CanvasWriter, scatter
from unigrpo.testing import check_sampler


class OneByOne:
    """A sampler of somebody else: a token a step, from the left. Broken ones change one of its parts."""

    temperature = 0.8

    def __call__(self, model, policy, canvas, on_step=None, generators=None):
        self.model, self.policy = model, policy
        writer, total = self.begin(canvas, generators), int(canvas.fill_mask.sum(dim=1).max())
        for step in range(self.steps(total)):
            rows = writer.hidden.any(dim=1).nonzero().squeeze(1)
            if len(rows):
                places = self.next(writer.hidden[rows])
                tokens, logps = self.draw(writer, rows, places, self.streams(generators, rows.tolist()))
                writer.write(rows, places, tokens, logps, self.number(step))
            self.tick(on_step, step + 1, total)
        return self.end(writer)

    def begin(self, canvas, generators):
        return CanvasWriter(canvas, self.policy, 0.0, generators)

    def next(self, hidden):
        return hidden & (hidden.cumsum(dim=1) == 1)

    def steps(self, total):
        return total

    def streams(self, generators, rows):
        return [generators[row] for row in rows]

    def draw(self, writer, rows, places, streams):
        drawn = writer.draw(self.model, rows, places, [1] * len(rows), self.temperature, streams)
        return scatter(places, drawn.tokens), scatter(places, drawn.logps)

    def number(self, step):
        return step

    def tick(self, on_step, done, total):
        if on_step is not None:
            on_step(done, total)

    def end(self, writer):
        return writer.rollout()


@pytest.mark.smoke
def test_a_sampler_of_somebody_else_passes():
    check_sampler(OneByOne())


class ForgetsStopTokens(OneByOne):
    def begin(self, canvas, generators):
        writer = super().begin(canvas, generators)
        writer.stops = writer.stops[:0]
        return writer


class WritesTheTail(OneByOne):
    def begin(self, canvas, generators):
        return CanvasWriter(canvas, self.policy, 0.0, generators, stop="never")

    def end(self, writer):
        rollout = writer.rollout()
        return replace(rollout, step_map=rollout.step_map.masked_fill(~rollout.completion_mask, -1))


class PadsTheTailInTheEnd(WritesTheTail):
    def end(self, writer):
        writer.stop = "first"
        writer._fill_tail()
        return writer.rollout()


class AsksForTheTail(OneByOne):
    """From the right, and every hole of the canvas is computed each time."""

    def begin(self, canvas, generators):
        self.holes = canvas.fill_mask
        return super().begin(canvas, generators)

    def next(self, hidden):
        return super().next(hidden.flip(1)).flip(1)

    def draw(self, writer, rows, places, streams):
        every = self.holes[rows]
        counts = every.sum(dim=1).tolist()
        drawn = writer.draw(self.model, rows, every, counts, self.temperature, streams)
        return scatter(every, drawn.tokens) * places, scatter(every, drawn.logps) * places


class DrawsWithAnothersGenerator(OneByOne):
    def streams(self, generators, rows):
        return [generators[0]] * len(rows)


class DrawsInTheOrderOfTheBatch(OneByOne):
    def streams(self, generators, rows):
        return [generators[place] for place in range(len(rows))]


class DrawsTheSameForAll(OneByOne):
    def streams(self, generators, rows):
        return [torch.Generator().manual_seed(1) for _ in rows]


class DrawsFromTheGlobalGenerator(OneByOne):
    def streams(self, generators, rows):
        return [torch.default_generator] * len(rows)


class FollowsTheGlobalSeed(OneByOne):
    def streams(self, generators, rows):
        return [torch.Generator().manual_seed(torch.initial_seed() + row) for row in rows]


class CountsItsCalls(OneByOne):
    calls = 0

    def begin(self, canvas, generators):
        type(self).calls += 1
        return super().begin(canvas, generators)

    def streams(self, generators, rows):
        return [torch.Generator().manual_seed(1000 * self.calls + row) for row in rows]


class DrawsAnyId(OneByOne):
    def draw(self, writer, rows, places, streams):
        logits, _ = writer.logits(self.model, rows, places, [1] * len(rows), None)
        logits[:, self.policy.mask_token_id] = -torch.inf
        best = logits.log_softmax(dim=1).max(dim=1)
        return scatter(places, best.indices), scatter(places, best.values)


class LeavesTheMask(OneByOne):
    def end(self, writer):
        row, place = writer.canvas.fill_mask.nonzero()[-1].tolist()
        writer.ids[row, place] = self.policy.mask_token_id
        return writer.rollout()


class LeavesAHole(OneByOne):
    def steps(self, total):
        return total - 1

    def end(self, writer):
        writer.ids.masked_fill_(writer.hidden, self.policy.pad_token_id)
        return writer.rollout()


class CountsStepsFromOne(OneByOne):
    def number(self, step):
        return step + 1


class RewritesThePrompt(OneByOne):
    def end(self, writer):
        writer.ids.masked_fill_(~writer.canvas.attention_mask, 7)
        return writer.rollout()


class RecordsAnotherTemperature(OneByOne):
    def draw(self, writer, rows, places, streams):
        tokens, logps = super().draw(writer, rows, places, streams)
        return tokens, logps * 1.1


class WritesIntoTheCallersCanvas(OneByOne):
    def end(self, writer):
        writer.canvas.ids.masked_fill_(writer.canvas.fill_mask, self.policy.pad_token_id)
        return writer.rollout()


class TellsNobody(OneByOne):
    def tick(self, on_step, done, total):
        pass


class TellsTheStepTwice(OneByOne):
    def tick(self, on_step, done, total):
        super().tick(on_step, max(done - 1, 1), total)


class DecodesEverything(OneByOne):
    def end(self, writer):
        rollout = writer.rollout()
        return replace(rollout, completions=self.policy.decode(rollout.canvas, rollout.canvas.attention_mask))


class ReturnsTheCanvas(OneByOne):
    def end(self, writer):
        return writer.rollout().canvas


class RecordsInHalfPrecision(OneByOne):
    def end(self, writer):
        rollout = writer.rollout()
        return replace(rollout, sampling_logps=rollout.sampling_logps.bfloat16())


class TakesNoListener(OneByOne):
    def __call__(self, model, policy, canvas, generators):
        return super().__call__(model, policy, canvas, None, generators)


BROKEN: dict[type, str] = {
    ForgetsStopTokens: "positions behind a stop token count as answer",
    WritesTheTail: "ids behind a stop token is",
    PadsTheTailInTheEnd: "shows the model id .* behind a stop token",
    AsksForTheTail: "asks for .* tokens behind a stop token",
    DrawsWithAnothersGenerator: "row . alone is another one than beside its neighbours",
    DrawsInTheOrderOfTheBatch: "row . alone is another one than beside its neighbours",
    DrawsTheSameForAll: "two rows with one prompt and two generators have the same answer",
    DrawsFromTheGlobalGenerator: "consumed or reseeded a global random generator",
    FollowsTheGlobalSeed: "depends on a global random generator",
    CountsItsCalls: "equal generators gave two results",
    DrawsAnyId: "outside the canvas's token space",
    LeavesTheMask: "the mask id was left at row 5",
    LeavesAHole: "holes were never written",
    CountsStepsFromOne: "step_map reaches 8 in 8 steps",
    RewritesThePrompt: "ids outside fill_mask were changed",
    RecordsAnotherTemperature: "sampling_logps are off by",
    WritesIntoTheCallersCanvas: "changed the caller's canvas.ids",
    TellsNobody: "on_step was never called",
    TellsTheStepTwice: "done counts up from 1 to total",
    DecodesEverything: "completion 0 is",
    ReturnsTheCanvas: "returned a Canvas",
    RecordsInHalfPrecision: "sampling_logps is .* torch.bfloat16; it must be .* torch.float32",
    TakesNoListener: "cannot be called as sampler",
}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_sampler_is_told_what_is_wrong(kind):
    with pytest.raises(AssertionError, match=f"{kind.__name__}.*{BROKEN[kind]}"):
        check_sampler(kind())

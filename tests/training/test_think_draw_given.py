"""Fine-tuning on thoughts and their pictures, each under a law of its own: what is hidden, what is read, what is trained."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from unigrpo.config.denoising_presets import objectives_of
from unigrpo.data.image_codes import PictureSizes
from unigrpo.errors import TooLongError
from unigrpo.models.mmada import MMaDAPolicy
from unigrpo.models.processing import MMaDAProcessor
from unigrpo.training.given import Writer
from unigrpo.training.given_step import Place, given_step, one_span
from unigrpo.training.mixture import Mixture
from unigrpo.types import TokenSpace

from ..support.given_runs import MIXED, THOUGHTS, given_trainer
from ..support.images import picture
from ..support.tiny import golden_tokenizer, tiny_model, tiny_processor


class Codec(PictureSizes):
    """Four codes, 0 to 3, of whatever picture."""

    def encode(self, images, size, transforms):
        return torch.arange(4)[None]

    def grid(self, size):
        return 2, 2


@pytest.fixture(scope="module")
def writer():
    return writer_of(MMaDAPolicy.from_model(tiny_model(), tiny_processor()), max_length=24)


def writer_of(policy, **lengths) -> Writer:
    space = TokenSpace(start=0, stop=policy.config.vocab_size)
    return Writer(policy, objectives_of("think_then_draw"), Codec(), image_size=64, vocabulary=space, **lengths)


ROW = {"prompt": "w1 w2", "completion": "w5 w6", "image": picture(0), "task": "r2i"}


@pytest.mark.parametrize("prompt", ["w1", "w1 w2 w3 w4"])
def test_a_thought_has_the_room_that_it_is_sampled_in(writer, prompt):
    """Whatever the prompt's length, the picture stands as far behind the thought as a rollout draws it."""
    policy, row = writer.policy, {**ROW, "prompt": prompt}
    written = writer_of(policy, max_length=24, thought_length=5).write(row, "row", span="thought")
    canvas = policy.encode([row], "thought", max_completion_length=5, image_tokens=4)
    hidden = written.canvas.ids.masked_fill(written.canvas.fill_mask, policy.mask_token_id)
    assert torch.equal(hidden, canvas.ids) and torch.equal(written.canvas.fill_mask, canvas.fill_mask)
    free = writer.write(row, "row", span="thought")
    assert int(free.canvas.fill_mask.sum()) == 24 - len(policy.processor.encode_prompt(prompt, "r2i"))
    with pytest.raises(TooLongError, match="thought_length=2 and max_length=24"):
        writer_of(policy, max_length=24, thought_length=2).write(row, "row")


def test_the_spans_are_the_canvases_that_rollouts_write_on(writer):
    policy = writer.policy
    thought, drawn = (writer.write(ROW, "row", span=span) for span in ("thought", "picture"))
    length = int(thought.canvas.fill_mask.sum())
    first = policy.encode([ROW], "thought", max_completion_length=length, image_tokens=4)
    ids = thought.canvas.ids[thought.canvas.fill_mask]
    second = policy.encode([{**ROW, "thought_ids": ids}], "picture", max_completion_length=length, image_tokens=4)
    for written, canvas in ((thought, first), (drawn, second)):
        assert torch.equal(written.canvas.fill_mask, canvas.fill_mask) and torch.equal(
            written.trained, canvas.fill_mask[0]
        )
        hidden = written.canvas.ids.masked_fill(written.canvas.fill_mask, policy.mask_token_id)
        assert torch.equal(hidden, canvas.ids) and written.canvas.task == canvas.task
    codes = drawn.canvas.ids[drawn.canvas.fill_mask] - policy.config.image_token_offset
    assert codes.tolist() == [0, 1, 2, 3]


def test_a_row_trains_either_span_and_pictures_see_other_prompts_now_and_then(writer):
    rows = [{**ROW, "prompt": f"w{i}", "completion": f"w{30 + i}"} for i in range(40)]
    drawn = [one_span(writer, rows, rows[n % 40], ("step", 0, n)) for n in range(4000)]
    spans = [span for _, span in drawn]
    assert abs(spans.count("thought") / 4000 - 0.5) < 4 * (0.25 / 4000) ** 0.5
    swapped = {"thought": [], "picture": []}
    for n, (row, span) in enumerate(drawn):
        swapped[span].append(row["prompt"] != rows[n % 40]["prompt"])
        assert row["completion"] == rows[n % 40]["completion"], "the thought belongs to the picture"
    assert not any(swapped["thought"])
    count = len(swapped["picture"])
    expected = 0.3 * 39 / 40
    assert abs(sum(swapped["picture"]) / count - expected) < 4 * (expected * (1 - expected) / count) ** 0.5


def test_a_chat_that_is_swapped_keeps_its_answer(writer):
    def chat(asked, said):
        return {
            "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}],
            "image": picture(0),
            "task": "r2i",
        }

    rows = [chat("w1", "w31"), chat("w2", "w32")]
    found = [one_span(writer, rows, rows[0], ("step", 0, n))[0] for n in range(60)]
    other = [row for row in found if row.get("prompt") == [{"role": "user", "content": "w2"}]]
    assert other and all(row["completion"] == "w31" for row in other)
    assert writer.write(other[0], "row", span="picture").canvas.task == "picture"


def test_runs_measure_both(tmp_path):
    trainer = given_trainer(
        tmp_path, MIXED, eval_rows=[*THOUGHTS, *THOUGHTS], objective="think_then_draw", max_steps=2
    )
    trainer.train()
    logged = {key for log in trainer.state.log_history for key in log}
    assert {"loss/thought", "loss/picture"} & logged
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(found["eval_thought_loss"] + found["eval_picture_loss"])
    assert {"eval_thought_nats_per_token", "eval_picture_nats_per_token"} <= found.keys()


def test_a_prompt_that_is_too_long_for_another_thought_stays_away(writer):
    """Rows are checked with their own prompts: a swap must not end a run that the check let begin."""
    rows = [
        {"prompt": "w1", "completion": " ".join(["w5"] * 12), "image": picture(0), "task": "r2i"},
        {"prompt": " ".join(["w7"] * 12), "completion": "w6", "image": picture(0), "task": "r2i"},
        {"text": "w1 w2"},
    ]
    for number, row in enumerate(rows):
        writer.write(row, f"rows[{number}]")
    mixture, place = (
        Mixture({"rows": 3}, None, 60, 0, True),
        Place(rank=0, ranks=1, gather=lambda own: own, device="cpu"),
    )
    found = given_step(writer, {"rows": rows}, mixture, 0, place, seed=0, rows_per_batch=60, micro_steps=1)
    assert Counter(own.task for own in found.experiences)["picture"] > 10


@pytest.mark.parametrize("instruction", [True, "mmada"])
def test_a_thought_is_measured_under_the_instruction_that_it_is_written_with(writer, instruction):
    """The instruction of r2i is not that of text: a row that fills all places fits, one of a token more is too long."""
    processor = MMaDAProcessor(golden_tokenizer(), think_prompt=instruction)
    policy = MMaDAPolicy(writer.policy.config, processor)
    length = len(processor.encode_prompt("w1", "r2i")) + 3
    assert length != len(processor.encode_prompt("w1", "text")) + 3

    row = {**ROW, "prompt": "w1"}
    assert writer_of(policy, max_length=length).write(row, "row").canvas.ids.shape[1] == length + 3 + 4
    with pytest.raises(TooLongError, match="part of the answer would be cut away"):
        writer_of(policy, max_length=length - 1).write(row, "row")

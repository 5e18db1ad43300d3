"""A thought and then a picture (task r2i): two canvases with one layout, two token spaces, one reward."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.models import LLaDAConfig, LLaDAForMaskedDiffusion
from unigrpo.models.mmada import MMaDAPolicy, layouts
from unigrpo.models.processing import MMaDAProcessor
from unigrpo.rollout.generate import LoadedPolicy
from unigrpo.rollout.thoughts import ThoughtAndPicture
from unigrpo.training.metrics import Metrics
from unigrpo.training.old_and_reference import _at_one_step
from unigrpo.training.window import rebuild_window
from unigrpo.types import Canvas

from ..support.images import GUIDED, assert_on_policy, image_rows, options, tiny_tokenizer
from ..support.laws import aligned, difference, first_window, total_and_gradient
from ..support.tiny import IDS, golden_tokenizer, tiny_model, tiny_processor
from ..support.tolerances import FP32


def tiny_policy(model=None):
    return MMaDAPolicy.from_model(model or tiny_model(), tiny_processor())


def spans_of_answers(window) -> list[tuple]:
    """``(thought, picture)`` of each answer, in order."""
    rows = window.experiences
    assert [row.task for row in rows] == ["thought", "picture"] * (len(rows) // 2)
    return list(zip(rows[::2], rows[1::2], strict=True))


# ---- the canvas ----


def test_both_canvases_have_the_layout_of_the_public_code():
    """``layouts.r2i`` is held against arrays of that code; its thought has what the prompt leaves of the text's room."""
    policy, ids = tiny_policy(), IDS["tiny"]
    row = {"prompt": "w7 w8", "task": "r2i"}
    room = 6
    prompt = policy.processor.encode_prompt(row["prompt"])
    marks = {name: ids[name] for name in ("r2i", "soi", "eoi", "bos", "eos", "end_header")}
    thought = [11, 12, ids["eos"], ids["eos"], ids["eos"], ids["eos"]]
    codes = torch.full((1, 16), policy.mask_token_id)
    expected, context = layouts.r2i([[*prompt, 11, 12]], codes, **marks, max_length=len(prompt) + room)
    first = policy.encode([row], "thought", max_completion_length=room, image_tokens=16)
    second = policy.encode(
        [{**row, "thought_ids": torch.tensor(thought)}], "picture", max_completion_length=room, image_tokens=16
    )
    assert torch.equal(second.ids, expected)
    assert torch.equal(first.ids, torch.where(first.fill_mask, policy.mask_token_id, expected))
    assert not bool((first.fill_mask & second.fill_mask).any())
    # The newline behind the last header is the thought's in that code, and the prompt's in a chat template.
    assert int((context == 0).sum() - (first.fill_mask | second.fill_mask).sum()) == len(prompt) - 1 - prompt.index(
        ids["end_header"], 5
    )
    assert bool(first.attention_mask.all())
    assert [policy.token_space(span) for span in ("thought", "picture")] == [
        policy.token_space(own) for own in ("text", "t2i")
    ]


def test_shorter_prompts_are_padded_on_the_left_without_a_mark_inside():
    policy = tiny_policy()
    rows = [{"prompt": "w7"}, {"prompt": "w7 w8 w9"}]
    canvas = policy.encode(rows, "thought", max_completion_length=4, image_tokens=16)
    alone = policy.encode(rows[:1], "thought", max_completion_length=4, image_tokens=16)
    assert torch.equal(canvas.ids[0, canvas.attention_mask[0]], alone.ids[0])
    assert canvas.ids[0, 2] == IDS["tiny"]["r2i"] and canvas.fill_mask.sum(dim=1).tolist() == [4, 4]


def test_guidance_hides_the_prompt_and_of_the_picture_the_thought():
    policy, special = tiny_policy(), {IDS["tiny"][name] for name in ("r2i", "soi", "eoi")}
    row = {"prompt": "w7 w8", "thought_ids": torch.tensor([11, 12, 13])}
    for span, length in (("thought", 3), ("picture", 16)):
        canvas = policy.encode([row], span, max_completion_length=3, image_tokens=16)
        twin = policy.guidance_canvas(canvas)
        assert torch.equal(twin.fill_mask, canvas.fill_mask) and int(canvas.fill_mask.sum()) == length
        left = {token for token in twin.ids[0, ~canvas.fill_mask[0]].tolist() if token != policy.mask_token_id}
        assert left == special


@pytest.mark.parametrize(
    ("name", "task", "digest"), [("mmada", "text", "265ab50b3822ae58"), ("mmada", "r2i", "29491d73504b5d61")]
)
def test_the_named_instructions_are_those_of_the_public_code(name, task, digest):
    processor = MMaDAProcessor(golden_tokenizer(), think_prompt=name)
    assert hashlib.sha256(processor.instruction(task).encode()).hexdigest()[:16] == digest
    assert processor.instruction(task) + "w1" in processor.chat_text("w1", task)
    own = MMaDAProcessor(golden_tokenizer(), think_prompt="Think.\n")
    assert own.instruction(task) == "Think.\n"


# ---- rollouts ----


def test_an_answer_is_a_thought_and_a_picture_drawn_after_it(make_trainer):
    seen = {}

    def sees(prompts, completions, completion_ids, thoughts, task, **_):
        seen.update(prompts=prompts, pictures=completions, ids=completion_ids, thoughts=thoughts, task=task)
        return [float(ids[0] % 5) for ids in completion_ids]

    trainer = make_trainer(rewards=sees, **options("all", max_completion_length=6))
    window = first_window(trainer)
    policy = trainer.policy
    rows = [row for row in window.experiences if row.index < 4]
    thoughts, pictures = rows[::2], rows[1::2]
    for thought, picture in zip(thoughts, pictures, strict=True):
        assert torch.equal(picture.ids[thought.fill_mask], thought.ids[thought.fill_mask])
        assert bool((thought.ids[picture.fill_mask] == policy.mask_token_id).all()), (
            "a thought is written before the picture"
        )
        assert bool(policy.token_space("text").contains(thought.ids[thought.completion_mask]).all())
        assert bool(policy.token_space("t2i").contains(picture.ids[picture.completion_mask]).all())
        assert int(picture.completion_mask.sum()) == 16 and thought.advantage == picture.advantage
    count = seen["task"].count("r2i")
    assert count and {own for own, task in zip(seen["thoughts"], seen["task"], strict=True) if task != "r2i"} == {None}
    assert all(isinstance(own, str) for own, task in zip(seen["thoughts"], seen["task"], strict=True) if task == "r2i")
    assert all(
        isinstance(own, Image.Image) for own, task in zip(seen["pictures"], seen["task"], strict=True) if task == "r2i"
    )
    texts = policy.processor.tokenizer.batch_decode(
        [own.ids[own.completion_mask].tolist() for own in thoughts], skip_special_tokens=True
    )
    assert seen["thoughts"][:4] == texts == window.table["thought"][:4]
    assert seen["prompts"][0] == trainer.train_dataset[0]["prompt"]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_pictures_of_one_thought_share_it_and_nothing_else(make_trainer, count):
    trainer = make_trainer(**options("r2i", pictures_per_thought=count, max_completion_length=6))
    metrics = Metrics()
    window = first_window(trainer, metrics=metrics)
    answers = spans_of_answers(window)
    thoughts = [tuple(thought.ids.tolist()) for thought, _ in answers]
    pictures = [tuple(picture.ids[picture.fill_mask].tolist()) for _, picture in answers]
    assert all(len(set(thoughts[i : i + count])) == 1 for i in range(0, len(thoughts), count))
    assert len(set(thoughts)) == len(thoughts) // count
    assert len(set(pictures)) == len(pictures)
    log = metrics.flush()
    written = [int(row.completion_mask.sum()) for pair in answers for row in pair]
    assert log["num_completion_tokens"] == sum(written[::2]) / count + sum(written[1::2]), (
        "a shared thought is written once"
    )


def test_both_spans_can_be_written_together(make_trainer):
    """Each span in its own space, whatever the batch, and otherwise than one after the other or in the other way."""
    drawn = set()
    for way in ("joint", "parallel"):
        joint = {"r2i_decoding": way, "r2i_noise": "joint", "max_completion_length": 6}
        windows = [
            first_window(make_trainer(**options("r2i", rollout_batch_size=size, **joint))) for size in (None, 3)
        ]
        for one, two in zip(*(window.experiences for window in windows), strict=True):
            assert torch.equal(one.ids, two.ids)
        for thought, picture in spans_of_answers(windows[0]):
            assert torch.equal(thought.ids, picture.ids)
            assert bool(thought.token_space.contains(thought.ids[thought.completion_mask]).all())
            assert bool(picture.token_space.contains(picture.ids[picture.completion_mask]).all())
        drawn.add(str([row.ids.tolist() for row in windows[0].experiences[1::2]]))
    apart = first_window(make_trainer(**options("r2i", max_completion_length=6))).experiences[1::2]
    assert len(drawn) == 2 and str([row.ids.tolist() for row in apart]) not in drawn


# ---- laws of the update ----


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("lora", "kind", "noise"),
    [(True, "r2i", "joint"), (False, "all", "span")],
)
def test_spans_start_at_ratio_one_and_kl_zero(make_trainer, lora, kind, noise):
    mild = {"guidance": "both", "guidance_scale": 0.5}
    trainer = make_trainer(lora=lora, model=aligned(), **options(kind, t2i=mild, r2i_noise=noise))
    window = first_window(trainer)
    assert {row.task for row in window.experiences} >= {"thought", "picture"}
    assert_on_policy(trainer, window, {"t2i", "picture"})


def test_each_span_is_scored_in_its_own_space_given_what_it_may_read(make_trainer):
    """log p by a plain forward over the whole vocabulary, cut to the span's ids: the thought without a picture, the picture
    with the whole thought."""
    trainer = make_trainer(**options("r2i", beta=0.0, guidance="none", max_completion_length=6))
    for answer in spans_of_answers(first_window(trainer)):
        for row in answer:
            hidden, target = row.hidden[0, 0], row.target[0, 0]
            assert torch.equal(hidden, target) and not bool((target & ~row.fill_mask).any())
            ids = row.ids.masked_fill(hidden, trainer.policy.mask_token_id)
            logits = trainer.model(input_ids=ids[None]).logits[0].double()
            space = row.token_space
            allowed = torch.arange(space.start, space.stop)
            allowed = allowed[space.contains(allowed)]
            expected = logits[:, allowed].log_softmax(dim=-1)
            place = [int((allowed == token).nonzero()) for token in row.ids[target]]
            expected = expected[target.nonzero().squeeze(1), place]
            canvas = Canvas(
                ids=row.ids[None],
                fill_mask=row.fill_mask[None],
                attention_mask=row.attention_mask[None],
                task=row.task,
                token_space=row.token_space,
            )
            found = score_tokens(trainer.model, trainer.policy, canvas, hidden[None], target[None]).logps[0]
            assert (found[target].double() - expected).abs().max() <= FP32 * expected.abs().max()


def test_joint_noise_hides_both_spans_at_one_ratio_and_scores_each_apart(make_trainer):
    trainer = make_trainer(**options("r2i", r2i_noise="joint", max_completion_length=12, timesteps="stratified"))
    window = first_window(trainer)
    for thought, picture in spans_of_answers(window):
        assert torch.equal(thought.ids, picture.ids) and torch.equal(thought.hidden, picture.hidden)
        assert not bool((thought.target & picture.target).any())
        assert torch.equal(thought.target | picture.target, thought.hidden)
        for k in range(2):
            n, codes = int(thought.completion_mask.sum()), 16
            found = int(picture.target[k].sum())
            ratios = {t for t in range(1, 1001) if min(max(round(codes * t / 1000), 1), codes) == found}
            assert int(thought.target[k].sum()) in {min(max(round(n * t / 1000), 1), n) for t in ratios}


@pytest.mark.parametrize("noise", ["span", "joint"])
def test_the_loss_of_an_answer_is_the_sum_over_its_spans(make_trainer, noise):
    overrides = {"thought": {"loss_weight": 0.25}}
    arguments = options("r2i", 8, beta=0.0, steps_per_generation=2, num_generations=2, r2i_noise=noise)
    arguments["task_overrides"] |= overrides
    trainer = make_trainer(**arguments)
    window = first_window(trainer)
    given = [3.0, -1.0, 0.5, 2.0, 0.25, 1.0, -0.5, 4.0]
    for row in window.experiences:
        row.advantage = given[row.index]
    window = rebuild_window(trainer.pipeline(), window.experiences, window.order)
    total, _ = total_and_gradient(trainer, window)
    assert total == pytest.approx(-1.25 * sum(given) / 8, abs=1e-6)


def test_order_and_micro_batches_change_nothing(make_trainer):
    trainer = make_trainer(**options("all", 8, GUIDED, steps_per_generation=2, num_generations=2, beta=0.04))
    window = first_window(trainer)
    total, gradient = total_and_gradient(trainer, window)
    for order in (list(range(8)), [7, 3, 0, 5, 1, 6, 2, 4]):
        other = rebuild_window(trainer.pipeline(), window.experiences, order)
        dealt = [[i for unit in units for i in unit.indices] for units in other.micro_batches]
        answers = [{window.experiences[i].index for i in own} for own in dealt]
        assert sorted(answers[0] | answers[1]) == list(range(8)) and not answers[0] & answers[1], (
            "both spans in one micro-batch"
        )
        assert [len(own) for own in answers] == [4, 4] and len(dealt[0]) + len(dealt[1]) == len(
            window.experiences
        ) == 10
        other_total, other_gradient = total_and_gradient(trainer, other)
        assert abs(total - other_total) < 1e-5 and difference(gradient, other_gradient) < 1e-5


def test_a_run_logs_its_spans_apart_and_resumes_inside_a_window(make_trainer, tmp_path):
    lengths = {"max_completion_length": 6, "max_steps": 2, "logging_steps": 1}
    arguments = options("r2i", r2i_noise="joint", save_strategy="steps", save_steps=1, **lengths)
    whole = make_trainer(**arguments)
    whole.train()
    log = whole.state.log_history[0]
    assert {"kl/thought", "kl/picture", "ratio/mean/thought", "ratio/mean/picture", "reward"} <= log.keys()
    again = make_trainer(**arguments)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    for (name, one), two in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two), name


# ---- generate ----


@pytest.mark.parametrize("decoding", ["thought_first", "joint", "parallel"])
def test_generate_returns_both(decoding):
    model = tiny_model()
    policy = LoadedPolicy(model=model, policy=tiny_policy(model), image_tokenizer=tiny_tokenizer())
    lengths = {"max_completion_length": 6, "steps": 6, "block_length": 6, "image_size": 64, "r2i_decoding": decoding}
    found = policy.generate(["w7 w8", "w9"], task="r2i", **lengths)
    assert all(isinstance(own, ThoughtAndPicture) and own.picture.size == (64, 64) for own in found)
    assert all(isinstance(own.thought, str) for own in found)
    alone = policy.generate("w7 w8", task="r2i", **lengths)[0]
    assert alone.thought == found[0].thought
    # The tokenizer's convolutions round otherwise in another batch.
    assert np.abs(np.asarray(alone.picture, dtype=int) - np.asarray(found[0].picture, dtype=int)).max() <= 1


def drawing(model=None) -> LoadedPolicy:
    model = tiny_model() if model is None else model
    return LoadedPolicy(model=model, policy=tiny_policy(model), image_tokenizer=tiny_tokenizer())


def test_a_picture_is_drawn_under_the_thought_that_is_given():
    """What a policy has written draws the same picture when it is given; another thought stands where that one would."""
    policy = drawing(aligned())
    lengths = {"max_completion_length": 6, "steps": 6, "block_length": 6, "image_size": 64, "task": "r2i"}
    seen = []

    def watched(module, arguments, named):
        ids, mask = named["input_ids"], named["attention_mask"]
        seen.append([own[real].tolist() for own, real in zip(ids, mask, strict=True)])

    policy.model.register_forward_pre_hook(watched, with_kwargs=True)
    asked = ["w7 w8", "w9"]
    own = policy.generate(asked, temperature=1.0, seed=3, **lengths)
    again = policy.generate(asked, temperature=1.0, seed=3, thoughts=[answer.thought for answer in own], **lengths)
    assert [answer.thought for answer in again] == [answer.thought for answer in own]
    assert all((np.asarray(a.picture) == np.asarray(b.picture)).all() for a, b in zip(own, again, strict=True))
    seen.clear()
    thoughts = ["w11 w12", ""]
    found = policy.generate(asked, thoughts=thoughts, num_return_sequences=2, guidance_scale=0.0, **lengths)
    assert [answer.thought for answer in found] == ["w11 w12", "w11 w12", "", ""]
    end, pad = policy.policy.stop_token_ids[-1], policy.policy.pad_token_id
    ids = policy.policy.answer_ids("w11 w12")
    expected = [[*ids, end, *[pad] * (5 - len(ids))], [end, *[pad] * 5]]
    for batch in seen:
        for row, prompt, thought in zip(
            batch, [asked[0]] * 2 + [asked[1]] * 2, [expected[0]] * 2 + [expected[1]] * 2, strict=True
        ):
            start = 1 + len(policy.policy.processor.encode_prompt(prompt, "r2i"))
            assert row[start : start + 6] == thought and row[start + 6] == IDS["tiny"]["soi"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thoughts": ["w1"]}, "1 thoughts for 2 prompts; give one a prompt, or one for all"),
        ({"thoughts": ["w1", 3]}, r"thoughts\[1\]=3 must be a text; '' is the empty thought"),
        ({"thoughts": "w1 w2 w3 w4 w5 w6 w7"}, r"thoughts\[0\] has \d+ tokens, max_completion_length=6 fit"),
        ({"thoughts": "w1 <|mdm_mask|>"}, r"thoughts\[0\] holds tokens .* that a thought cannot have"),
        ({"thoughts": "w1", "task": "t2i"}, "thoughts belong to task 'r2i', not to 't2i': leave them out"),
        ({"thoughts": "w5", "r2i_decoding": "joint"}, "r2i_decoding='joint' writes a thought together with its picture"),
        ({"task": "t2i", "r2i_decoding": "joint"}, "it belongs to task 'r2i' without thoughts given"),
    ],
)  # fmt: skip
def test_thoughts_that_cannot_be_drawn_under_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        drawing().generate(["w7", "w8"], **{"task": "r2i", "max_completion_length": 6, "image_size": 64, **options})


# ---- what cannot be done is said ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task_overrides": {"r2i": {"steps": 3}}},
            r"task_overrides.r2i: its spans have settings of their own, \['thought', 'picture'\]",
        ),
        ({"pictures_per_thought": 3}, "pictures_per_thought=3 must divide num_generations=4"),
        ({"task_overrides": {"thought": {"sampler": "emerge"}}}, "sampler='emerge' cannot answer task 'thought'"),
        ({"task_overrides": {"picture": {"sampler": "left_to_right"}}}, "sampler='left_to_right' cannot answer task 'picture'"),
        ({"prompt_truncation": "right"}, "would cut the end of a chat prompt of task 'thought'"),
        ({"r2i_noise": "both"}, "r2i_noise='both'"),
        ({"r2i_decoding": "joint"}, "set r2i_noise='joint' .it is 'span'"),
        ({"r2i_decoding": "joint", "r2i_noise": "joint", "pictures_per_thought": 2}, "pictures_per_thought=1 .it is 2"),
        (
            {"r2i_decoding": "joint", "r2i_noise": "joint", "task_overrides": {"thought": {"kv_cache": "prefix"}}},
            "r2i_decoding='joint' writes over what kv_cache='prefix' keeps",
        ),
        (
            {"r2i_decoding": "parallel", "r2i_noise": "joint", "task_overrides": {"thought": {"steps": 4}, "picture": {"steps": 4}}},
            "give the picture at most 3 steps, or the text more",
        ),
        ({"r2i_noise": "joint", "noising": "trajectory"}, "give thought and picture one noising"),
        ({"r2i_noise": "joint", "task_overrides": {"thought": {"num_noise_samples": 2}}}, "they are .*2.*1"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_is_refused_in_words(make_trainer, changes, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**{**options("r2i"), **changes})


def test_a_family_without_the_layout_is_named(make_trainer):
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "mlp_hidden_size": 48, "vocab_size": 208}
    model = LLaDAForMaskedDiffusion(LLaDAConfig(**sizes, mask_token_id=184, eos_token_id=161, pad_token_id=161))
    with pytest.raises(ValueError, match="task 'r2i' needs image_tokenizer, and LLaDAPolicy names none"):
        make_trainer(model=model, rows=image_rows("r2i"))


def test_an_answer_that_is_left_out_has_no_gap(make_trainer):
    """On a process whose texts were all cut off there is nothing to compare, and nothing to stumble over."""
    trainer = make_trainer(**options("r2i", max_completion_length=6))
    window, policy = first_window(trainer), trainer.policy
    nothing = torch.zeros_like(window.experiences[0].completion_mask)
    left_out = replace(window.experiences[0], completion_mask=nothing)
    assert not bool(_at_one_step(left_out, policy, (0, 0)).target[0, 0][nothing].any())
    assert bool(_at_one_step(window.experiences[0], policy, (0, 0)).target.any())

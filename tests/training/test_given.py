"""Rows with given answers: what is context, what is trained, which rows are refused, and how sources are mixed."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch

from unigrpo.config.denoising_presets import objectives_of
from unigrpo.data.image_codes import PictureSizes
from unigrpo.models import MMaDAPolicy
from unigrpo.models.mmada import layouts
from unigrpo.models.processing import CHAT_TEMPLATE, MMaDAProcessor
from unigrpo.training.batches import Unit, collate
from unigrpo.training.given import Writer
from unigrpo.training.given_step import hidden_row
from unigrpo.training.mixture import Mixture
from unigrpo.types import TokenSpace

from ..support.tiny import IDS, golden_tokenizer, tiny_model, tiny_processor
from ..support.tiny_decoders import tiny_decoder


EOS, EOT = IDS["tiny"]["eos"], IDS["tiny"]["eot"]


class TwoByTwo(PictureSizes):
    """An image tokenizer's codec of four codes."""

    def grid(self, image_size):
        return 2, 2

    def encode(self, images, image_size, transforms):
        return [torch.arange(4) for _ in images]


@pytest.fixture(scope="module")
def policy():
    return MMaDAPolicy(tiny_model().config, tiny_processor())


def writer(policy, objective="mmada_cot", given=None, **settings):
    space = TokenSpace(start=0, stop=policy.config.vocab_size)
    settings = {"max_length": 24, "image_size": 4, "vocabulary": space, **settings}
    return Writer(policy, objectives_of(objective, given), TwoByTwo(), **settings)


@pytest.mark.parametrize("turns", ["last", "all"])
@pytest.mark.parametrize("padding", ["all", "first", "none"])
@pytest.mark.parametrize(("limit", "longest"), [(24, 9), (600, 495)])
def test_a_check_refuses_what_writing_refuses(policy, padding, turns, limit, longest):
    """Lengths around the limit of the run, and where it is set too high, around the 512 positions of the model."""
    own = writer(copy.copy(policy), given={"train_padding": padding}, train_turns=turns, max_length=limit)
    own.policy.max_length, found = 512, []
    for asked in range(1, 14):
        row, said = {"prompt": "w1 " * asked, "completion": "w5 " * longest}, []
        for act in (own.check, own.write):
            try:
                act(row, "rows[3]")
                said.append(None)
            except ValueError as error:
                said.append((type(error), str(error)))
        assert (said[0] is None) == (said[1] is None)
        assert limit > 512 or said[0] == said[1]
        if limit > 512 and padding == "all" and asked == 1:
            told = "max_length=600 makes this a row of 600 positions, and the model has 512"
            assert all(told in own[1] and own[1].endswith("set max_length=512") for own in said)
        found.append(said[0] is None)
    assert not found[-1] and found[0] is not (limit > 512 and padding == "all")


def trained_of(written):
    return written.canvas.ids[0, written.trained].tolist()


TWO_NEWLINES = CHAT_TEMPLATE.replace("<|end_header_id|>\n", "<|end_header_id|>\n\n")
"""The layout of the template stored with LLaDA's tokenizer: two line breaks behind each header."""


@pytest.mark.parametrize("turns", ["last", "all"])
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, TWO_NEWLINES], ids=["one newline", "two newlines"])
def test_the_templates_line_breaks_hide_no_answer(template, turns):
    """An answer that is looked for behind one line break is none under the other template, and nothing but padding is trained."""
    own = MMaDAPolicy(tiny_model().config, MMaDAProcessor(golden_tokenizer(), chat_template=template))
    thought = {"role": "assistant", "content": "<think> w5 </think> w7"}
    written = writer(own, "dllm", train_turns=turns, max_length=120).write({"messages": [*CHAT[:4], thought]}, "row")
    last = [*own.answer_ids("<think> w5 </think> w7"), EOT]
    assert trained_of(written) == ([5, 6, EOT, *last] if turns == "all" else last) and {5, 7} <= set(last)


@pytest.mark.smoke
@pytest.mark.parametrize(("padding", "rest"), [("all", None), ("first", 1), ("none", 0)])
def test_an_answer_its_stop_token_and_the_asked_padding_are_trained(policy, padding, rest):
    written = writer(policy, given={"train_padding": padding}).write({"prompt": "w1 w2", "completion": "w5 w6"}, "row")
    prompt = policy.processor.encode_prompt("w1 w2")
    rest = 24 - len(prompt) - 3 if rest is None else rest
    assert trained_of(written) == [5, 6, EOT, *[EOS] * rest] and len(prompt) < 20
    assert written.canvas.ids[0, : len(prompt)].tolist() == prompt
    assert len(written.trained) == len(prompt) + 3 + rest


CHAT = [
    {"role": "system", "content": "w9"},
    {"role": "user", "content": "w1"},
    {"role": "assistant", "content": "w5 w6"},
    {"role": "user", "content": "w2"},
    {"role": "assistant", "content": "w7"},
]


@pytest.mark.parametrize(("turns", "expected"), [("last", [7, EOT]), ("all", [5, 6, EOT, 7, EOT])])
def test_of_a_chat_the_last_answer_is_trained_or_all(policy, turns, expected):
    own = writer(policy, "dllm", train_turns=turns, max_length=80)
    written = own.write({"messages": CHAT}, "row")
    assert trained_of(written) == expected
    shared = {"from": "human", "value": "<image>\nw1"}, {"from": "gpt", "value": "w7"}
    assert trained_of(own.write({"conversations": list(shared), "task": "text"}, "row")) == [7, EOT]


@pytest.mark.parametrize("anchor", ["start", "prompt_end"])
def test_padding_fills_the_last_block(anchor):
    """Of the row, or of the answer, wherever blocks begin; what has no blocks has no such padding."""
    _, own = tiny_decoder("blocks", block_anchor=anchor)
    lengths = set()
    for words in range(1, 6):
        row = {"prompt": "w1 " * words, "completion": "w5 w6"}
        written = writer(own, "bd3lm").write(row, "rows[3]")
        trained = int(written.trained.sum())
        whole = trained if anchor == "prompt_end" else int(written.canvas.attention_mask.sum())
        assert whole % 4 == 0 and 3 <= trained < 3 + 4
        lengths.add(trained)
    assert lengths == ({4} if anchor == "prompt_end" else {3, 4, 5, 6})
    with pytest.raises(
        ValueError, match=r"rows\[3\]: train_padding='block' fills blocks, and the attention of A2DQwen3Policy"
    ):
        writer(tiny_decoder("a2d-qwen3")[1], "bd3lm").write(row, "rows[3]")


def test_earlier_answers_of_a_chat_are_clean_for_what_follows_them():
    """In blocks, the last answer is scored behind the first one as it is, also where both are trained and hidden."""
    _, own = tiny_decoder("blocks", block_anchor="start")
    chat = [("user", "w1"), ("assistant", "w5 w6"), ("user", "w2"), ("assistant", "w7")]
    messages = [{"role": role, "content": text} for role, text in chat]
    with pytest.raises(ValueError, match=r"A2DQwen3Policy begin with the last answer, .* set train_turns='last'"):
        writer(tiny_decoder("blocks", block_anchor="prompt_end")[1], "bd3lm", train_turns="all")
    many = writer(own, "sdar", train_turns="all")
    written = many.write({"messages": messages}, "rows[3]")
    experience = hidden_row(
        own, written, many.objectives["text"].weigh(written.trained, written.trained, 1.0), (0,), 0
    )
    batch = collate([experience], Unit((0,), 0), 0, own, "cpu")
    inputs = own.likelihood_inputs(batch.canvas, batch.hidden)
    assert int((inputs["input_ids"] == own.mask_token_id).sum()) == int(written.trained.sum()) == 5
    assert torch.equal(inputs["clean_ids"], written.canvas.ids)


def test_a_question_about_a_picture_has_the_picture_as_context(policy):
    row = {"prompt": "w1", "completion": "w5", "image": picture()}
    written = writer(policy).write(row, "row")
    special = IDS["tiny"]
    codes = [special["n_tok"] + code for code in range(4)]
    assert written.canvas.ids[0, :7].tolist() == [special["mmu"], special["soi"], *codes, special["eoi"]]
    assert len(written.trained) == 24 + 4 and trained_of(written)[:3] == [5, EOT, EOS]
    assert not bool(written.trained[:7].any())


def test_a_picture_to_draw_has_its_codes_trained_its_marks_beside_them_and_a_caption_to_drop(policy):
    row = {"prompt": "w1 w2", "image": picture(), "task": "t2i"}
    own = writer(policy)
    written, special = own.write(row, "row"), IDS["tiny"]
    assert trained_of(written) == [special["n_tok"] + code for code in range(4)]
    assert written.canvas.ids[0, written.marks].tolist() == [special["soi"], special["eoi"]]
    empty = own.without_caption(written)
    read = empty.canvas.ids[0, empty.canvas.attention_mask[0] & ~empty.trained].tolist()
    assert read == [special[name] for name in ("t2i", "bos", "eos", "soi", "eoi")]


def test_a_thought_and_then_the_picture_are_one_row_in_the_public_layout(policy):
    """Where the thought ends in eos, as the public rows do, the row is theirs; their newline after the header is prompt here."""
    special = IDS["tiny"]
    row = {"prompt": "w1 w2", "completion": "w5 w6", "image": picture(), "task": "r2i"}
    written = writer(policy).write(row, "row")
    codes = [special["n_tok"] + code for code in range(4)]
    prompt = policy.processor.encode_prompt("w1 w2")
    rest = 24 - len(prompt) - 3
    assert trained_of(written) == [5, 6, EOT, *[EOS] * rest, *codes] and rest > 2
    assert trained_of(writer(policy, given={"train_padding": "none"}).write(row, "row")) == [5, 6, EOT, *codes]
    marks = {name: special[name] for name in ("r2i", "soi", "eoi", "bos", "eos", "end_header")}
    ids, context = layouts.r2i([[*prompt, 5, 6]], torch.tensor([codes]), **marks, max_length=24)
    canvas = policy.encode_thought({**row, "image_codes": torch.arange(4)}, [5, 6, EOS], 24)
    assert torch.equal(canvas.ids, ids)
    ours, theirs = ~canvas.fill_mask[0], context[0].bool()
    assert bool((theirs <= ours).all()) and (ours & ~theirs).nonzero().flatten().tolist() in ([], [len(prompt)])


def test_plain_text_is_trained_whole(policy):
    written = writer(policy, max_length=6).write({"text": "w3 w4"}, "row")
    assert written.canvas.ids[0].tolist() == [IDS["tiny"]["bos"], 3, 4, EOT, EOS, EOS] and bool(written.trained.all())


def picture():
    from PIL import Image

    return Image.new("RGB", (8, 8))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": "w1", "completion": " ".join(["w5"] * 30)},
            r"rows\[3\]: .* part of the answer would be cut away. Raise max_length=24",
        ),
        ({"prompt": "w1", "completion": "  "}, r"rows\[3\]\['completion'\]='  ' must be the text"),
        ({"completion": "w5"}, r"rows\[3\] has no 'prompt'"),
        ({"messages": CHAT[:4]}, r"rows\[3\]: the chat has roles .*end with the assistant"),
        ({"messages": CHAT[2:3]}, r"rows\[3\]: the chat has roles"),
        ({"messages": []}, r"rows\[3\]\['messages'\] is empty"),
        ({"conversations": [{"from": "bot", "value": "w1"}]}, r"rows\[3\]\['conversations'\]\[0\]=.* must have a role"),
        ({"prompt": "w1", "completion": "w5", "task": "r2i"}, r"rows\[3\] is a caption without the picture"),
        ({"prompt": "w1", "completion": "w5", "task": "t2t"}, r"rows\[3\]\['task'\]='t2t' is not valid"),
        ({"prompt": "w1", "task": "t2i"}, r"rows\[3\] is a caption without the picture to draw"),
    ],
)  # fmt: skip
def test_a_row_without_a_whole_answer_is_refused_by_name(policy, row, said):
    with pytest.raises(ValueError, match=said):
        writer(policy).write(row, "rows[3]")


# ---- mixing ----


def test_shares_of_sources_are_their_weights_and_every_row_comes_once_an_epoch():
    mixture = Mixture({"a": 7, "b": 5}, {"a": 0.3, "b": 0.7}, rows=8, seed=0)
    rows = [mixture.step(number) for number in range(50)]
    counts = Counter(source for step in rows for source, _ in step)
    assert all(Counter(source for source, _ in step)["a"] in (2, 3) for step in rows)
    assert abs(counts["a"] - 0.3 * 400) < 4 * (50 * 0.24) ** 0.5
    for source, size in (("a", 7), ("b", 5)):
        walked = [index for step in rows for own, index in step if own == source]
        epochs = [walked[start : start + size] for start in range(0, len(walked) - size + 1, size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert epochs[0] != epochs[1]


def test_another_seed_mixes_otherwise_and_walks_a_source_in_another_order():
    """Both, each by itself."""

    def drawn(seed, place):
        mixture = Mixture({"a": 40, "b": 40}, {"a": 0.4, "b": 0.6}, rows=4, seed=seed)
        return [row[place] for number in range(10) for row in sorted(mixture.step(number), key=lambda row: row[0])]

    def order(seed):
        mixture = Mixture({"a": 40}, None, rows=4, seed=seed)
        return [index for number in range(10) for _, index in mixture.step(number)]

    assert len({tuple(drawn(seed, 0)) for seed in range(4)}) == 4
    assert len({tuple(order(seed)) for seed in range(4)}) == 4


def test_a_step_is_the_same_however_a_run_comes_to_it():
    whole = Mixture({"a": 7, "b": 5}, None, rows=4, seed=3)
    steps = [whole.step(number) for number in range(20)]
    assert Mixture({"a": 7, "b": 5}, None, rows=4, seed=3).step(17) == steps[17]
    assert Mixture({"a": 7, "b": 5}, None, rows=4, seed=4).step(17) != steps[17]
    assert {
        source
        for step in (Mixture({"a": 2, "b": 2}, {"a": 1, "b": 0}, 4, 0).step(n) for n in range(9))
        for source, _ in step
    } == {"a"}


@pytest.mark.parametrize(
    ("weights", "said"), [({"a": 1.0}, "names"), ({"a": 0, "b": 0}, "one must be"), ({"a": -1, "b": 2}, "negative")]
)
def test_weights_that_mix_nothing_are_refused(weights, said):
    with pytest.raises(ValueError, match=said):
        Mixture({"a": 7, "b": 5}, weights, rows=4, seed=3)

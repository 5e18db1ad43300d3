"""Prompts: token layouts against the public code, the chat template, canvases, and saving the processor."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from unigrpo.models import MMaDAConfig, MMaDAPolicy, MMaDAProcessor
from unigrpo.models.mmada import layouts
from unigrpo.models.processing import CHAT_TEMPLATE, THINK_PROMPT, settle_template

from ..support.tiny import IDS, NAMES, golden, golden_tokenizer, tiny_model, tiny_processor


pytestmark = pytest.mark.golden

HEADER = "<|start_header_id|>{}<|end_header_id|>\n"


# ---- layouts of the public code ----


@pytest.mark.smoke
@pytest.mark.parametrize("size", ["tiny", "real"])
def test_lm_layouts_equal_the_public_code(size):
    arrays, described = golden("g6_prompts")
    case, ids, tokenizer = described["cases"][size], IDS[size], golden_tokenizer(size)
    marks = {"bos": ids["bos"], "eos": ids["eos"], "max_length": case["lm_max_seq_len"]}

    def encoded(texts):
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    plain = layouts.lm(encoded(case["lm_texts"]), **marks)
    assert torch.equal(plain, arrays[f"{size}.lm.input_ids"])
    assert arrays[f"{size}.lm.mask"].all()
    chat, prompt_mask = layouts.lm_chat(encoded(case["chat_texts"]), end_header=ids["end_header"], **marks)
    assert torch.equal(chat, arrays[f"{size}.lm_chat.input_ids"])
    assert torch.equal(prompt_mask, arrays[f"{size}.lm_chat.mask"])


def test_a_text_with_bos_is_not_given_a_second_one():
    assert layouts.lm([[1, 5], [5]], bos=1, eos=2, max_length=4).tolist() == [[1, 5, 2, 2], [1, 5, 2, 2]]
    assert layouts.lm([[5, 6, 7, 8]], bos=1, eos=2, max_length=4).tolist() == [[1, 5, 6, 7]]


# ---- chat template ----


def test_chat_text_is_exact_with_one_newline_after_each_header():
    processor = tiny_processor()
    messages = [
        {"role": "system", "content": "  be brief\n"},
        {"role": "user", "content": "w1 w2"},
        {"role": "assistant", "content": "w3"},
        {"role": "user", "content": "w4 "},
    ]
    assert processor.chat_text(messages) == (
        "<|startoftext|>"
        "<|start_header_id|>system<|end_header_id|>\nbe brief<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\nw1 w2<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\nw3<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\nw4<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n"
    )


def test_prompt_ids_hold_each_special_token_once():
    ids = IDS["tiny"]
    tokens = tiny_processor().encode_prompt("w1 w2")
    role, assistant = 0, 0  # unknown words of the goldens' tokenizer are w0
    header = {
        "user": [ids["start_header"], role, ids["end_header"]],
        "assistant": [ids["start_header"], assistant, ids["end_header"]],
    }
    assert tokens == [ids["bos"], *header["user"], 1, 2, ids["eot"], *header["assistant"]]


def test_think_prompt_goes_before_the_last_user_message():
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "reply"},
        {"role": "user", "content": "second"},
        {"role": "assistant", "content": "half"},
    ]
    before = [dict(message) for message in messages]
    text = MMaDAProcessor(golden_tokenizer(), think_prompt="Think.\n").chat_text(messages)
    assert text.count("Think.") == 1
    assert f"{HEADER.format('user')}Think.\nsecond<|eot_id|>" in text
    assert messages == before, "the caller's messages stay as they were"
    default = MMaDAProcessor(golden_tokenizer(), think_prompt=True)
    assert default.chat_text("w1") == tiny_processor().chat_text(THINK_PROMPT + "w1")
    assert "<think>" in THINK_PROMPT and THINK_PROMPT.endswith("\n")
    assert MMaDAProcessor(golden_tokenizer(), think_prompt=False).chat_text("w1") == tiny_processor().chat_text("w1")


def test_prompts_without_a_question_are_errors():
    with pytest.raises(ValueError, match="no message"):
        tiny_processor().chat_text([])
    with pytest.raises(ValueError, match="user message"):
        MMaDAProcessor(golden_tokenizer(), think_prompt=True).chat_text([{"role": "system", "content": "x"}])


# ---- canvases ----


def test_half_a_character_in_a_prompt_is_one_sentence():
    """As a command line's bytes that are no UTF-8 arrive, and half of an emoji in JSON."""
    for prompt in ("w1 \udcff", [{"role": "user", "content": "w1 \ud83e"}]):
        with pytest.raises(ValueError, match="half of a character: read it with errors='replace'"):
            tiny_processor().encode_prompt(prompt)


def test_a_canvas_is_left_padding_prompt_and_masks(policy):
    ids = IDS["tiny"]
    rows = [{"prompt": "w1"}, {"prompt": "w2 w3 w4"}]
    canvas = policy.encode(rows, max_completion_length=5)
    short, long = (policy.processor.encode_prompt(row["prompt"]) for row in rows)
    padding, answer = [ids["eos"]] * 2, [ids["mask"]] * 5
    assert canvas.ids.tolist() == [padding + short + answer, long + answer]
    written = [False] * len(long) + [True] * 5
    assert canvas.fill_mask.tolist() == [written, written]
    assert canvas.attention_mask.tolist() == [[False] * 2 + [True] * (len(short) + 5), [True] * (len(long) + 5)]
    assert canvas.task == "text" and canvas.position_ids is None


def test_text_may_be_written_with_every_id_below_the_images_but_the_mask(policy):
    canvas = policy.encode([{"prompt": "w1"}], max_completion_length=5)
    allowed = canvas.token_space.contains(torch.arange(272)).nonzero().squeeze(1).tolist()
    assert allowed == [token for token in range(197) if token != 184]
    assert policy.stop_token_ids[0] == IDS["tiny"]["eos"]
    assert policy.pad_token_id == IDS["tiny"]["eos"]


def test_a_prompt_that_is_too_long_is_an_error_or_cut_on_the_left(policy):
    row = {"prompt": " ".join(f"w{i}" for i in range(20))}
    tokens = policy.processor.encode_prompt(row["prompt"])
    with pytest.raises(ValueError, match=r"28 tokens.*longer than the 12 .*w0 w1.*prompt_truncation='left'"):
        policy.encode([row], max_completion_length=4, max_prompt_length=12)
    cut = policy.encode([row], max_completion_length=4, max_prompt_length=12, prompt_truncation="left")
    assert cut.ids[0].tolist() == tokens[-12:] + [IDS["tiny"]["mask"]] * 4
    exact = policy.encode([row], max_completion_length=4, max_prompt_length=28)
    assert exact.ids[0, :28].tolist() == tokens


def test_the_model_bounds_prompt_and_answer_together(policy):
    row = {"prompt": "w1"}
    assert policy.encode([row], max_completion_length=4096 - 9).ids.shape[1] == 4096
    with pytest.raises(ValueError, match="longer than the 8 that fit"):
        policy.encode([row], max_completion_length=4096 - 8)
    with pytest.raises(ValueError, match=r"max_completion_length=4096 .*; lower max_completion_length"):
        policy.encode([row], max_completion_length=4096)
    with pytest.raises(ValueError, match=r"image_tokens=4092 leaves no room.*; lower image_size"):
        policy.encode([row], "t2i", image_tokens=4092)


def test_decoding_leaves_special_tokens_out(policy):
    canvas = policy.encode([{"prompt": "w1"}, {"prompt": "w2"}], max_completion_length=4)
    canvas.ids[:, -4:] = torch.tensor([[5, 6, IDS["tiny"]["eot"], IDS["tiny"]["eos"]], [7, 8, 9, 10]])
    written = canvas.fill_mask.clone()
    written[0, -1] = False
    written[1, -1] = False
    assert policy.decode(canvas, written) == ["w5 w6", "w7 w8 w9"]


# ---- saving and loading ----


def test_a_saved_processor_comes_back_as_it_was(tmp_path):
    template = CHAT_TEMPLATE.replace("<|eot_id|>", "<|eot_id|>w9")
    saved = MMaDAProcessor(golden_tokenizer(), chat_template=template, think_prompt="Think.\n")
    saved.save_pretrained(tmp_path)
    again = MMaDAProcessor.from_pretrained(tmp_path)
    assert again.chat_template == template
    assert again.think_prompt == "Think.\n"
    assert again.chat_text("w1 w2") == saved.chat_text("w1 w2")
    assert again.encode_prompt("w1 w2") == saved.encode_prompt("w1 w2")
    assert len(again.tokenizer) == 197
    assert MMaDAProcessor.from_pretrained(tmp_path, think_prompt=False).think_prompt is None
    assert MMaDAProcessor.from_pretrained(tmp_path, think_prompt="Now.\n").think_prompt == "Now.\n"


OPTIONS = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if brief %}w9 {% endif %}{{ tail.lower() }}"
"""A template that reads two names beside the messages."""


def test_a_chat_template_reads_what_it_is_given_and_so_does_the_saved_one(tmp_path):
    processor = MMaDAProcessor(golden_tokenizer(), chat_template=OPTIONS)
    policy = MMaDAPolicy(tiny_model().config, processor)
    assert settle_template(policy, None) is policy and policy.processor is processor
    settle_template(policy, {"brief": True, "tail": "W8"})
    assert policy.processor.chat_text("w1") == "w1 w9 w8"
    canvas = policy.encode([{"prompt": "w1"}], "text", max_completion_length=4)
    assert canvas.ids[0, :3].tolist() == [1, 9, 8]
    assert processor.chat_template_kwargs is None, "the caller's own is left as it is"
    policy.processor.save_pretrained(tmp_path)
    assert MMaDAProcessor.from_pretrained(tmp_path).chat_text("w1") == "w1 w9 w8"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"briefly": True}, r"chat_template_kwargs=\{'briefly': True\}: the chat template does not read 'briefly'; leave it out"),
        ({"tail": 3}, r"cannot take them \(UndefinedError: 'int object' has no attribute 'lower'\)"),
        *(({name: None}, f"'{name}' is what the processor itself says") for name in ("tokenize", "messages", "chat_template")),
    ],
)  # fmt: skip
def test_what_a_chat_template_cannot_take_is_one_sentence(values, said):
    policy = MMaDAPolicy(tiny_model().config, MMaDAProcessor(golden_tokenizer(), chat_template=OPTIONS))
    with pytest.raises(ValueError, match=said):
        settle_template(policy, values)


def test_a_processor_without_a_chat_template_takes_no_arguments_for_one():
    policy = MMaDAPolicy(tiny_model().config, tiny_processor())
    policy.processor = golden_tokenizer()
    with pytest.raises(ValueError, match=r"of MMaDAPolicy writes prompts without a chat template; leave it out"):
        settle_template(policy, {"brief": True})


def test_a_folder_with_a_bare_tokenizer_loads(tmp_path):
    tokenizer = golden_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}\n\n"
    tokenizer.save_pretrained(tmp_path)
    loaded = MMaDAProcessor.from_pretrained(tmp_path)
    assert loaded.chat_template == CHAT_TEMPLATE and loaded.think_prompt is None
    assert loaded.encode_prompt("w1 w2") == tiny_processor().encode_prompt("w1 w2")


def test_a_tokenizer_of_another_length_is_refused():
    config, tokenizer = tiny_model().config, golden_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<one_more>"]})
    with pytest.raises(ValueError, match=r"198 tokens.*197"):
        MMaDAPolicy(config, MMaDAProcessor(tokenizer))
    with pytest.raises(ValueError, match="exceeds vocab_size"):
        MMaDAPolicy(MMaDAConfig(vocab_size=134_000), tiny_processor())


def llada_base_tokenizer() -> PreTrainedTokenizerFast:
    """As published: the three chat tokens, which would follow its last id, are missing."""
    ids = IDS["tiny"]
    names = {ids[key]: name for key, name in NAMES.items()}
    vocab = {names.get(i, f"w{i}"): i for i in range(ids["start_header"])}
    inner = Tokenizer(WordLevel(vocab, unk_token="w0"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=NAMES["bos"], eos_token=NAMES["eos"], pad_token=NAMES["eos"], unk_token="w0"
    )


def test_llada_base_is_given_its_three_chat_tokens_at_the_published_ids(tmp_path):
    bare = llada_base_tokenizer()
    assert len(bare) == 194
    bare.save_pretrained(tmp_path / "bare")
    processor = MMaDAProcessor.from_pretrained(tmp_path / "bare")
    wanted = {NAMES[key]: IDS["tiny"][key] for key in ("start_header", "end_header", "eot")}
    assert {name: processor.tokenizer.convert_tokens_to_ids(name) for name in wanted} == wanted
    assert len(processor.tokenizer) == 197
    assert processor.encode_prompt("w1 w2") == tiny_processor().encode_prompt("w1 w2")
    processor.save_pretrained(tmp_path / "saved")
    again = MMaDAProcessor.from_pretrained(tmp_path / "saved")
    assert len(again.tokenizer) == 197
    assert again.encode_prompt("w1 w2") == processor.encode_prompt("w1 w2")
    assert again.tokenizer.decode(again.encode_prompt("w1"), skip_special_tokens=True) == "w1"

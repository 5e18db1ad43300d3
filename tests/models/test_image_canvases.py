"""Canvases of images to make and images to read: the public code's ids, padding, truncation, errors."""

from __future__ import annotations

import pytest
import torch

from unigrpo.models import LLaDAConfig, MMaDAPolicy
from unigrpo.models.llada.policy import LLaDAPolicy
from unigrpo.models.mmada import layouts

from ..support.tiny import IDS, golden, golden_tokenizer, tiny_model, tiny_processor


ARRAYS, META = golden("g6_prompts")
pytestmark = pytest.mark.golden

SIZES = ("tiny", "real")


def special(size: str, *names: str) -> dict[str, int]:
    return {name: IDS[size][name] for name in names}


def encoded(size: str, texts: list[str]) -> list[list[int]]:
    return golden_tokenizer(size)(texts, add_special_tokens=False)["input_ids"]


@pytest.mark.smoke
@pytest.mark.parametrize("size", SIZES)
def test_t2i_ids_equal_the_public_code(size):
    case = META["cases"][size]
    slots, marks = case["max_text_len_arg"], special(size, "t2i", "bos", "eos", "soi", "eoi", "ipad")
    captions = encoded(size, case["t2i_texts"])
    cut = [caption[: slots - 2 + (caption[:1] == [IDS[size]["bos"]])] for caption in captions]
    image = ARRAYS[f"{size}.t2i_gen.input_ids"][:, -17:-1]
    ids, mask = layouts.t2i(cut, image, text_slots=slots, **marks)
    assert torch.equal(ids, ARRAYS[f"{size}.t2i_gen.input_ids"])
    assert torch.equal(mask.long(), ARRAYS[f"{size}.t2i_gen.attention_mask"])
    empty, _ = layouts.t2i([[]] * len(cut), image, text_slots=slots, **marks)
    assert torch.equal(empty, ARRAYS[f"{size}.t2i_gen_uncond.input_ids"])


@pytest.mark.parametrize("size", SIZES)
def test_mmu_ids_equal_the_public_code(size):
    case = META["cases"][size]
    ids, prompt = layouts.mmu(
        encoded(size, case["mmu_texts"]),
        ARRAYS[f"{size}.image_ids"],
        **special(size, "mmu", "soi", "eoi", "bos", "eos", "end_header"),
        max_length=case["max_text_len_arg"],
    )
    assert torch.equal(ids, ARRAYS[f"{size}.mmu.input_ids"])
    assert torch.equal(prompt, ARRAYS[f"{size}.mmu.prompt_mask"])


def test_encode_t2i_is_the_public_layout(policy):
    """The recorded prompts, the too long one cut on the right, with masks where the image was."""
    case = META["cases"]["tiny"]
    rows = [{"prompt": text} for text in case["t2i_texts"]]
    canvas = policy.encode(
        rows, "t2i", image_tokens=16, max_prompt_length=12, prompt_truncation="right", trim_padding=False
    )
    recorded = ARRAYS["tiny.t2i_gen.input_ids"].clone()
    recorded[:, -17:-1] = IDS["tiny"]["mask"]
    assert torch.equal(canvas.ids, recorded)
    assert torch.equal(canvas.attention_mask, ARRAYS["tiny.t2i_gen.attention_mask"].bool())
    assert torch.equal(canvas.fill_mask, recorded == IDS["tiny"]["mask"])
    twin = policy.guidance_canvas(canvas)
    unconditional = ARRAYS["tiny.t2i_gen_uncond.input_ids"].clone()
    unconditional[:, -17:-1] = IDS["tiny"]["mask"]
    assert torch.equal(twin.ids, unconditional)
    assert torch.equal(twin.attention_mask, ARRAYS["tiny.t2i_gen_uncond.attention_mask"].bool())


def test_padding_is_trimmed_to_the_longest_caption_unless_it_is_attended(policy):
    rows = [{"prompt": "w1"}, {"prompt": "w1 w2 w3 w4"}]
    short = policy.encode(rows, "t2i", image_tokens=16)
    assert short.ids.shape[1] == (3 + 4) + 18
    assert short.ids[0, :4].tolist() == [IDS["tiny"]["ipad"]] * 3 + [IDS["tiny"]["t2i"]]
    assert short.attention_mask.sum(1).tolist() == [22, 25]
    assert policy.encode(rows, "t2i", image_tokens=16, trim_padding=False).ids.shape[1] == 513 + 18
    model = tiny_model()
    model.config.attn_mask_mode = "none"
    attended = MMaDAPolicy(model.config, tiny_processor())
    assert attended.encode(rows, "t2i", image_tokens=16).ids.shape[1] == 513 + 18


def test_encode_mmu_puts_the_image_before_the_chat(policy):
    codes = torch.arange(16)
    rows = [{"prompt": "w1", "image_codes": codes}, {"prompt": "w1 w2 w3", "image_codes": codes + 3}]
    canvas = policy.encode(rows, "mmu", max_completion_length=4)
    ids = IDS["tiny"]
    chat = tiny_processor().encode_prompt("w1")
    row = canvas.ids[0][canvas.attention_mask[0]].tolist()
    image = [ids["mmu"], ids["soi"], *range(ids["n_tok"], ids["n_tok"] + 16), ids["eoi"]]
    assert row == image + chat + [ids["mask"]] * 4
    assert canvas.fill_mask.sum(1).tolist() == [4, 4] and canvas.fill_mask[:, -4:].all()
    assert canvas.token_space == policy.token_space("text")
    twin = policy.guidance_canvas(canvas)
    assert (twin.ids[twin.attention_mask] == ids["mask"]).all()


def test_token_spaces_do_not_overlap(policy):
    image, text = policy.token_space("t2i"), policy.token_space("mmu")
    assert (image.start, image.width) == (IDS["tiny"]["n_tok"], IDS["tiny"]["codebook"])
    assert text.stop == image.start and policy.mask_token_id in text.exclude


def test_decode_gives_codes(policy):
    canvas = policy.encode([{"prompt": "w1"}], "t2i", image_tokens=4)
    canvas.ids[canvas.fill_mask] = torch.tensor([197, 260, 200, 199])
    assert policy.decode(canvas, canvas.fill_mask)[0].tolist() == [0, 63, 3, 2]


def test_a_caption_from_chat_messages(policy):
    parts = [{"type": "image"}, {"type": "text", "text": "w1 w2"}]
    chat = [{"role": "system", "content": "w9"}, {"role": "user", "content": parts}]
    a, b = (policy.encode([{"prompt": prompt}], "t2i", image_tokens=4) for prompt in (chat, "w1 w2"))
    assert torch.equal(a.ids, b.ids)


def test_errors(policy):
    long = {"prompt": " ".join(["w1"] * 20)}
    with pytest.raises(ValueError, match=r"prompt of 20 tokens is longer than the 10 .*'right'"):
        policy.encode([long], "t2i", image_tokens=16, max_prompt_length=12)
    with pytest.raises(ValueError, match="longer than the 510 that fit"):
        policy.encode([{"prompt": " ".join(["w1"] * 511)}], "t2i", image_tokens=16)
    left = policy.encode(
        [{"prompt": "w1 w2 w3 w4"}], "t2i", image_tokens=4, max_prompt_length=4, prompt_truncation="left"
    )
    assert left.ids[0, 2:4].tolist() == [3, 4]
    with pytest.raises(ValueError, match=r"prompt_truncation='right' would cut .* task 'text'"):
        policy.encode([long], "text", max_completion_length=4, prompt_truncation="right")
    with pytest.raises(ValueError, match="an image of 16 tokens leaves no room"):
        row = {"prompt": "w1", "image_codes": torch.arange(16)}
        policy.encode([row], "mmu", max_completion_length=4, max_prompt_length=19)
    llada = LLaDAPolicy(
        LLaDAConfig(vocab_size=197, mask_token_id=184, eos_token_id=1, pad_token_id=0), tiny_processor()
    )
    with pytest.raises(ValueError, match="task='t2i' is not supported: llada"):
        llada.encode([long], "t2i", image_tokens=4)

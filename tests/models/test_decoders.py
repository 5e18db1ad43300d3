"""Decoders of transformers as policies: runs, checkpoints, what the files do not say, and autoregressive checkpoints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from unigrpo import MaskedDenoisingConfig, MaskedDenoisingTrainer, load_policy
from unigrpo.models import DreamForMaskedDiffusion, MMaDAProcessor, decoder
from unigrpo.models.adapters import merged
from unigrpo.models.decoder import A2DQwen3ForMaskedDiffusion, DecoderProcessor
from unigrpo.models.decoder.configuration import MaskedDecoderFields
from unigrpo.testing import check_policy
from unigrpo.training.old_and_reference import add_old_and_reference

from ..support.given_runs import SMALL, TEXT
from ..support.laws import assert_accumulation_changes_nothing, first_window
from ..support.runs import run_and_reopen
from ..support.tiny import golden_tokenizer, prompts, tiny_llada
from ..support.tiny_decoders import DECODERS, SIZES, decoder_tokenizer, tiny_decoder


GUIDE = Path(decoder.__file__).parents[1] / "README.md"
IDS = torch.arange(24).view(2, 12) + 3


@pytest.fixture
def folder(tmp_path):
    """A function that saves one of ``RUNS`` with its processor."""

    def save(name: str) -> str:
        if name == TIED_LLADA:
            model, processor = tiny_llada(weight_tying=True), MMaDAProcessor(golden_tokenizer())
        else:
            model, policy = tiny_decoder(name)
            processor = policy.processor
        model.save_pretrained(tmp_path / "base")
        processor.save_pretrained(tmp_path / "base")
        return str(tmp_path / "base")

    return save


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(IDS).logits


# ---- runs ----


TIED_LLADA = "llada, tied head"
RUNS = {name: bool(place % 2) for place, name in enumerate([*DECODERS, TIED_LLADA])}
"""Families, and whether a run trains LoRA."""
LIKE_ANOTHER = ("a2d-llama", "a2d-qwen2", "blocks")
"""They run the code of a2d-qwen3 and of sdar around another network of transformers."""


@pytest.mark.parametrize(
    ("name", "lora"),
    [pytest.param(*run, id=run[0], marks=pytest.mark.slow if run[0] in LIKE_ANOTHER else []) for run in RUNS.items()],
)
def test_a_run_starts_at_ratio_one_trains_resumes_and_reopens(make_trainer, folder, tmp_path, name, lora):
    base = folder(name)
    whole, opened = run_and_reopen(make_trainer, tmp_path, model=base, lora=lora, max_completion_length=6)
    assert not torch.equal(logits(whole.model), logits(load_policy(base, device="cpu").model))
    torch.testing.assert_close(logits(opened.model), logits(whole.model), rtol=1e-5, atol=1e-5)
    assert (
        opened.policy.logit_shift == whole.policy.logit_shift
        and opened.policy.mask_token_id == whole.policy.mask_token_id
    )
    if lora:
        torch.testing.assert_close(logits(merged(opened.model)), logits(whole.model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "objective"), [("blocks", "bd3lm")])
def test_given_answers_are_learned(folder, tmp_path, name, objective):
    args = MaskedDenoisingConfig(
        str(tmp_path / "run"),
        **{**SMALL, "max_length": 20, "max_steps": 12, "learning_rate": 2e-2},
        objective=objective,
    )
    trainer = MaskedDenoisingTrainer(folder(name), args, TEXT[:2], TEXT[:2])
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.7 * before


@pytest.mark.parametrize("name", ["blocks"])
def test_accumulation_changes_nothing(make_trainer, folder, name):
    rows = prompts(16, (2, 20, 5))
    base = {"model": folder(name), "processor": None, "rows": rows, "max_steps": 2}
    assert_accumulation_changes_nothing(make_trainer, (4,), **base)


@pytest.mark.parametrize("name", ["dream", "a2d-qwen3", "blocks"])
def test_checkpointed_activations_and_eager_attention_change_nothing(name):
    """A tied head's gradient has both of its parts."""
    found = []
    for options in ({}, {"checkpointing": True}, {"attn_implementation": "eager"}):
        model, _ = tiny_decoder(name)
        model.config._attn_implementation = options.get("attn_implementation", "sdpa")
        if "checkpointing" in options:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        mask = torch.ones_like(IDS)
        mask[0, :3] = 0
        labels = torch.where(mask.bool(), IDS, -100)
        labels[:, :4] = -100
        loss = model.train()(IDS, attention_mask=mask, labels=labels).loss
        loss.backward()
        found.append([loss.detach(), *(own.grad for own in model.parameters())])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_attention_that_takes_no_mask_is_refused():
    config = tiny_decoder("dream")[0].config
    config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="'flex_attention' does not take the masks of diffusion"):
        DreamForMaskedDiffusion(config)


# ---- blocks ----


@torch.no_grad()
@pytest.mark.parametrize("anchor", ["start", "prompt_end"])
def test_blocks_are_counted_from_the_anchor(anchor):
    """The last token that a position sees is the last of its block, wherever padding puts the row."""
    model, policy = tiny_decoder("blocks", block_anchor=anchor)
    rows = prompts(3)
    canvas = policy.encode(rows, max_completion_length=8)
    inputs = policy.inputs(canvas)
    before = model(**inputs).logits
    for row in range(3):
        real = canvas.attention_mask[row].nonzero().flatten().tolist()
        prompt = len(real) - 8
        origin = prompt if anchor == "prompt_end" else 0
        for last in range(len(real)):
            ids = inputs["input_ids"].clone()
            ids[row, real[last]] = (ids[row, real[last]] + 1) % 140
            moved = (model(**{**inputs, "input_ids": ids}).logits - before)[row, real].abs().amax(1) > 0
            block = (torch.arange(len(real)) - origin).div(4, rounding_mode="floor")
            assert moved.tolist() == (block >= block[last]).tolist()


def test_training_scores_blocks_as_they_were_sampled(make_trainer, folder):
    """In no more draws than a block has tokens, and every token once."""
    options = {"model": folder("blocks"), "processor": None, "algorithm": "dipo", "sampler": "left_to_right"}
    trainer = make_trainer(**options, max_completion_length=10)
    window = first_window(trainer)
    add_old_and_reference(trainer.pipeline(), window, always_old=True)
    longest = 0
    for row in window.experiences:
        counts = row.completion_mask
        assert row.hidden.shape[1] == min(int(counts.sum()), 4)
        assert torch.equal(row.target[0].sum(dim=0) == 1, counts)
        longest = max(longest, int(counts.sum()))
        assert (row.old_logps[0].sum(dim=0) - row.sampling_logps)[counts].abs().max() < 1e-5
    assert longest > 4


# ---- what the files do not say ----


def test_ids_come_from_the_configuration_else_from_the_tokenizer():
    _, policy = tiny_decoder("a2d-llama", stop_token_ids=[147], mask_token_id=9, forbidden_token_ids=[3, 151])
    assert (policy.mask_token_id, policy.pad_token_id, policy.stop_token_ids) == (9, 146, (147,))
    assert policy.token_space("text").exclude == (9, 3)
    _, policy = tiny_decoder("a2d-qwen2")
    assert (policy.mask_token_id, policy.pad_token_id, policy.stop_token_ids) == (149, 146, (148, 146))
    assert (policy.config.mask_token_id, policy.config.pad_token_id) == (149, 146), "they are saved"


def test_a_model_without_a_mask_id_is_refused_in_one_sentence():
    config = tiny_decoder("a2d-qwen2")[0].config
    config.mask_token_id, tokenizer = None, decoder_tokenizer()
    words = tokenizer.get_vocab()
    del words["<|mask|>"]
    tokenizer.get_vocab = lambda: words
    kind = type(tiny_decoder("a2d-qwen2")[1])
    with pytest.raises(
        ValueError, match=r"neither config.json nor the tokenizer names a mask id: give model_init_kwargs .* 149\)$"
    ):
        kind(config, tokenizer)
    words["<|mask|>"] = 152
    with pytest.raises(ValueError, match="mask id 152 lies outside the model's vocabulary of 152"):
        kind(config, tokenizer)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention": "causal"}, "attention='causal': choose one of"),
        ({"attention": "block_causal"}, "block_size=None with attention='block_causal'"),
        ({"logit_shift": 2}, "logit_shift=2: choose one of"),
        ({"mask_token_id": 152}, "token id 152 lies outside the vocabulary of 152"),
        ({"use_sliding_window": True}, "use_sliding_window=True is not implemented"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(folder, fields, message):
    base = folder("dream")
    with pytest.raises(ValueError, match=message):
        load_policy(base, device="cpu", **fields)


def test_padding_that_is_attended_is_refused():
    config = tiny_decoder("dream")[0].config
    config.attn_mask_mode = "none"
    with pytest.raises(ValueError, match="attn_mask_mode='none' is for checkpoints that were trained so"):
        type(tiny_decoder("dream")[1])(config, decoder_tokenizer())


# ---- prompts ----


def test_prompts_go_through_the_tokenizers_own_template(tmp_path):
    tokenizer = decoder_tokenizer()
    assert (
        DecoderProcessor.around(tokenizer).chat_text("w1") == "<|im_start|>user\nw1<|im_end|>\n<|im_start|>assistant\n"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    processor = DecoderProcessor(tokenizer)
    assert processor.chat_text("w1") == "w1 "
    processor.save_pretrained(tmp_path)
    assert DecoderProcessor.from_pretrained(tmp_path).chat_text("w1") == "w1 "
    tokenizer.chat_template, tokenizer.get_vocab = None, lambda: {}
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        DecoderProcessor(tokenizer)


def test_dreams_tokenizer_is_read_without_its_code(tmp_path, mark):
    """Its folder has Qwen2's files, and a class of its own."""
    (tmp_path / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(["a", "b", "ab", "Ġ"])}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    added = {"4": "<|endoftext|>", "5": "<|im_start|>", "6": "<|im_end|>", "7": "<|mask|>"}
    added = {
        i: {"content": own, "special": True, **dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)}
        for i, own in added.items()
    }
    auto = {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}
    settings = {"tokenizer_class": "DreamTokenizer", "auto_map": auto, "added_tokens_decoder": added}
    settings |= {
        "pad_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "chat_template": "{{ messages[0]['content'] }}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "tokenization_dream.py").write_text(f"open({str(mark)!r}, 'w').write('run')")
    processor = DecoderProcessor.from_pretrained(tmp_path)
    assert isinstance(processor.tokenizer, Qwen2Tokenizer) and processor.tokenizer.mask_token_id == 7
    assert processor.tokenizer("ab<|im_end|>a")["input_ids"] == [2, 6, 0] and processor.encode_prompt("aba") == [2, 0]


# ---- autoregressive checkpoints ----


def test_an_autoregressive_checkpoint_becomes_a_diffusion_model(tmp_path):
    """It is opened by its type, sees both ways, and is saved as what it has become, with weights that the decoder reads."""
    torch.manual_seed(0)
    causal_model = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)).eval()
    causal_model.save_pretrained(tmp_path / "ar")
    decoder_tokenizer().save_pretrained(tmp_path / "ar")
    found = load_policy(str(tmp_path / "ar"), device="cpu", logit_shift=1)
    assert type(found.model) is A2DQwen3ForMaskedDiffusion and found.policy.logit_shift == 1
    causal = causal_model(IDS).logits
    assert float((logits(found.model) - causal).detach().abs().amax()) > 0.01
    found.model.save_pretrained(tmp_path / "diffusion")
    saved = json.loads((tmp_path / "diffusion" / "config.json").read_text())
    assert saved["model_type"] == "a2d-qwen3" and saved["mask_token_id"] == 149 and saved["logit_shift"] == 1
    back = Qwen3ForCausalLM.from_pretrained(tmp_path / "diffusion").eval()
    assert torch.equal(back(IDS).logits, causal)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "ar")) is Qwen3ForCausalLM


# ---- what the guide says ----


def test_the_family_of_the_guide_is_whole():
    (block,) = [own for own in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL) if "SmolPolicy" in own]
    names = {**vars(transformers), **vars(decoder), "MaskedDecoderFields": MaskedDecoderFields}
    exec(block, names)
    config = names["SmolConfig"](**SIZES)
    torch.manual_seed(0)
    model = names["SmolForMaskedDiffusion"](config)
    policy = names["SmolPolicy"](config, decoder_tokenizer())
    assert policy.logit_shift == 1
    check_policy(policy, model, prompts(3))


@pytest.mark.parametrize(
    ("kind", "count"), [(DreamForMaskedDiffusion, 7_615_616_512), (A2DQwen3ForMaskedDiffusion, 596_049_920)]
)
def test_default_sizes_are_those_of_the_published_checkpoints(kind, count):
    with torch.device("meta"):
        assert sum(own.numel() for own in kind(kind.config_class()).parameters()) == count

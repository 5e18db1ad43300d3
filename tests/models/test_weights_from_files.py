"""Every parameter comes from the file: what is missing, renamed, of another shape or of another family is named."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification

from unigrpo.data.image_codes import load_tokenizer
from unigrpo.errors import CheckpointError
from unigrpo.models import LLaDAForMaskedDiffusion, chat_templates, patterns, processing
from unigrpo.models.loading import load_classifier, load_config, load_module
from unigrpo.rollout.generate import load_policy
from unigrpo.runs.cli import main

from ..support import hostile
from ..support.hostile import edit_json
from ..support.tiny import golden_tokenizer, tiny_model


def prefixed(weights: dict) -> dict:
    return {f"module.{name}": value for name, value in weights.items()}


def without_half(weights: dict) -> dict:
    return dict(sorted(weights.items())[::2])


def half_renamed(weights: dict) -> dict:
    return {f"{name}_" if number % 2 else name: value for number, (name, value) in enumerate(sorted(weights.items()))}


def with_more(weights: dict) -> dict:
    return {**weights, "elsewhere.weight": torch.zeros(2)}


def with_a_base_weight(weights: dict) -> dict:
    return {**weights, "base_model.model.model.transformer.ln_f.weight": torch.zeros(64)}


def reshaped(weights: dict) -> dict:
    name = next(name for name, value in weights.items() if value.ndim == 2)
    return {**weights, name: weights[name][:-1].contiguous()}


CHANGES = {
    prefixed: "missing .*unknown .*module\\.",
    without_half: "missing .*and \\d+ more",
    half_renamed: "missing .*unknown ",
    with_more: r"unknown \['elsewhere.weight'\]",
    reshaped: "shapes .*must be",
}
LOADERS = {
    "policy": (hostile.policy_folder, partial(load_policy, device="cpu")),
    "image tokenizer": (hostile.tokenizer_folder, load_tokenizer),
    "reward model": (hostile.classifier_folder, load_classifier),
}


def change(file: Path, how) -> None:
    save_file(how(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize("how", CHANGES, ids=lambda how: how.__name__)
@pytest.mark.parametrize("kind", LOADERS)
def test_weights_that_do_not_fit_are_not_replaced_by_random_ones(tmp_path, kind, how):
    save, load = LOADERS[kind]
    folder = save(tmp_path)
    load(str(folder))
    change(folder / "model.safetensors", how)
    with pytest.raises(CheckpointError, match=CHANGES[how]) as caught:
        load(str(folder))
    assert len(str(caught.value)) < 1500


def test_a_reward_model_without_its_head_is_not_given_a_random_one(tmp_path):
    folder = hostile.classifier_folder(tmp_path)
    change(folder / "model.safetensors", lambda all_: {k: v for k, v in all_.items() if "classifier" not in k})
    with pytest.raises(CheckpointError, match=r"missing .*classifier"):
        load_classifier(str(folder))


def test_what_may_be_missing_is_named(tmp_path):
    folder = str(hostile.policy_folder(tmp_path))
    lost = [f"model.transformer.blocks.1.{part}.weight" for part in ("q_proj", "k_proj")]
    change(tmp_path / "model.safetensors", lambda all_: {k: v for k, v in all_.items() if k not in lost})
    with pytest.raises(CheckpointError, match="k_proj"):
        load_policy(folder, allow_missing=[lost[0]])
    for allowed in (lost, ["*blocks.1.?_proj*"]):
        model = load_policy(folder, allow_missing=allowed, device="cpu").model
    assert torch.equal(model.get_input_embeddings().weight, tiny_model().get_input_embeddings().weight)


def test_a_foreign_checkpoint_is_named_as_such(tmp_path):
    folder = hostile.policy_folder(tmp_path)
    edit_json(folder / "config.json", model_type="Dream")
    with pytest.raises(CheckpointError, match="this is a Dream checkpoint, opened as llada"):
        load_policy(str(folder), policy="llada")
    edit_json(folder / "config.json", model_type="mmada")
    with pytest.raises(CheckpointError, match="this is a mmada checkpoint, opened as llada"):
        load_module(LLaDAForMaskedDiffusion, str(folder))


# ---- adapters ----


@pytest.fixture(name="adapter")
def adapter_folder(tmp_path) -> Path:
    """An adapter that changes the answers, beside its base."""
    base, folder = hostile.policy_folder(tmp_path / "base"), tmp_path / "adapter"
    config = LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    get_peft_model(tiny_model(), config).save_pretrained(folder)
    edit_json(folder / "adapter_config.json", base_model_name_or_path=str(base))
    return folder


@pytest.mark.parametrize(
    "how", [*(own for own in CHANGES if own is not prefixed), with_a_base_weight], ids=lambda how: how.__name__
)
def test_an_adapter_that_does_not_fit_is_neither_opened_nor_merged_as_its_base(adapter, how, capsys):
    change(adapter / "adapter_model.safetensors", how)
    with pytest.raises(CheckpointError, match=r"adapter .* does not fit"):
        load_policy(str(adapter))
    assert main(["merge", str(adapter), str(adapter.parent / "merged")]) == 2
    assert "does not fit" in capsys.readouterr().err and not (adapter.parent / "merged").exists()


def test_modules_that_an_adapter_saves_are_its_own(tmp_path):
    base = hostile.policy_folder(tmp_path / "base")
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["ln_f"])
    get_peft_model(tiny_model(), config).save_pretrained(tmp_path / "adapter")
    edit_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(base))
    load_policy(str(tmp_path / "adapter"))
    change(
        tmp_path / "adapter" / "adapter_model.safetensors",
        lambda all_: {k: v for k, v in all_.items() if "ln_f" not in k},
    )
    with pytest.raises(CheckpointError, match=r"missing .*ln_f"):
        load_policy(str(tmp_path / "adapter"))


def test_a_folder_with_an_adapter_and_a_whole_model_is_neither(adapter, capsys):
    merged = adapter.parent / "merged"
    assert main(["merge", str(adapter), str(merged)]) == 0
    assert main(["merge", str(adapter), str(merged)]) == 2
    assert "holds a checkpoint already (model.safetensors)" in capsys.readouterr().err
    shutil.copytree(merged, adapter, dirs_exist_ok=True)
    with pytest.raises(
        CheckpointError, match=r"adapter \(adapter_config.json\) and a whole model \(model.safetensors\)"
    ):
        load_policy(str(adapter))


# ---- what a checkpoint says beside its weights ----


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
def test_kernels_that_a_checkpoint_names_are_not_looked_for(tmp_path, monkeypatch, name):
    asked = []
    monkeypatch.setattr("transformers.modeling_utils.is_kernel", lambda kernel: asked.append(kernel) or False)
    for folder in (hostile.policy_folder(tmp_path / "policy"), hostile.classifier_folder(tmp_path / "reward")):
        edit_json(folder / "config.json", **{name: "evil/kernel"})
    load_policy(str(tmp_path / "policy"), device="cpu")
    load_classifier(str(tmp_path / "reward"))
    assert "evil/kernel" not in asked
    with pytest.raises(ValueError, match="mine/kernel"):
        load_policy(str(tmp_path / "policy"), attn_implementation="mine/kernel", device="cpu")


@pytest.mark.parametrize("pad", [10**6, -(10**6)])
def test_a_padding_id_outside_the_vocabulary_is_refused(tmp_path, pad):
    folder = hostile.policy_folder(tmp_path / "policy")
    edit_json(folder / "config.json", pad_token_id=pad)
    with pytest.raises(ValueError, match=f"pad_token_id={pad} lies outside the vocabulary"):
        load_policy(str(folder))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForSequenceClassification(BertConfig(vocab_size=300, num_labels=1, **sizes)).save_pretrained(
        tmp_path / "reward"
    )
    edit_json(tmp_path / "reward" / "config.json", pad_token_id=pad)
    with pytest.raises(ValueError, match=f"pad_token_id={pad} lies outside the vocabulary"):
        load_classifier(str(tmp_path / "reward"))


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": r"(([a-z_.0-9]+)+)+!"},
        {"rank_pattern": {r"(([a-z_.0-9]+)+)+!": 2}},
        {"alpha_pattern": {r"([a-z_.0-9]|[a-z_.0-9])*!": 2}},
    ],
    ids=lambda settings: next(iter(settings)),
)
@pytest.mark.timeout(60)
def test_a_pattern_of_an_adapter_cannot_hang(adapter, monkeypatch, settings):
    monkeypatch.setattr(patterns, "PATIENCE", 1.0)
    edit_json(adapter / "adapter_config.json", **settings)
    with pytest.raises(ValueError, match="takes more than 1 s"):
        load_policy(str(adapter))


def test_honest_patterns_are_followed(adapter):
    saved = json.loads((adapter / "adapter_config.json").read_text())
    edit_json(
        adapter / "adapter_config.json", target_modules=r".*blocks\.\d+\.(q_proj|v_proj)", rank_pattern={"^never.*": 2}
    )
    assert saved["target_modules"] and load_policy(str(adapter), device="cpu").model.peft_config["default"].r == 4


LOOPS = (
    "{% for a in range(600) %}{% for b in range(9999) %}{% if a < 9 and b < 99 %}{% endif %}{% endfor %}{% endfor %}"
)


@pytest.mark.timeout(60)
def test_a_chat_template_cannot_hang(monkeypatch):
    monkeypatch.setattr(chat_templates, "taken_by", lambda *_: "")
    monkeypatch.setattr(chat_templates, "PATIENCE", 0.2)
    processor = processing.MMaDAProcessor(golden_tokenizer(), chat_template="{{ messages[0]['content'] }}")
    assert processor.chat_text("w1") == "w1"
    with pytest.raises(ValueError, match="loops without an end"):
        processing.MMaDAProcessor(golden_tokenizer(), chat_template=LOOPS).chat_text("w1")


@pytest.mark.timeout(60)
def test_a_chat_template_that_hangs_on_every_chat_is_not_begun_here(monkeypatch):
    monkeypatch.setattr(chat_templates, "PATIENCE", 1.0)
    processor = processing.MMaDAProcessor(golden_tokenizer(), chat_template=LOOPS.replace("600", "99999"))
    monkeypatch.setattr(processor.tokenizer, "apply_chat_template", lambda *_, **__: pytest.fail("begun"))
    with pytest.raises(ValueError, match="takes more than 1 s for one short chat"):
        processor.chat_text("w1")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'x' * 10**10 }}", "more than 1024 MiB for one short chat: replace chat_template"),
        ("{{ 'x'.center(10**10) }}", "more than 1024 MiB"),
        ("{% import 'os' as os %}", "cannot write .*TypeError"),
        ("{{ cycler.__init__.__globals__.os.popen('true') }}", "cannot write .*SecurityError"),
        ("{{ raise_exception('only one turn') }}", "cannot write .*only one turn.*give a chat that it takes"),
        ("{% for %}", "cannot write .*TemplateSyntaxError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot write .*RecursionError"),
        ("{{ lipsum.__globals__ }}", "writes nothing for"),
        ("x" * 2_000_000, "writes 2,000,000 characters"),
    ],
    ids=lambda text: text[:24],
)
@pytest.mark.timeout(60)
def test_a_chat_template_from_anywhere_fails_in_one_sentence(template, message):
    processor = processing.MMaDAProcessor(golden_tokenizer(), chat_template=template)
    with pytest.raises(ValueError, match=f"the chat template .*{message}"):
        processor.chat_text("w1")


@pytest.mark.parametrize("mark", ["<|mdm_mask|>", "<|eot_id|>", "<|start_header_id|>"])
def test_a_prompt_makes_no_marks(mark):
    """A mask in a prompt is a hole to the model, and the end of a turn opens another one."""
    processor = processing.MMaDAProcessor(golden_tokenizer())
    held = [
        f"w1 {mark} w2",
        [{"role": mark, "content": "w1"}],
        [{"role": "user", "content": [{"type": "text", "text": mark}]}],
    ]
    for prompt in held:
        with pytest.raises(ValueError, match=r"reads as a mark of its own"):
            processor.encode_prompt(prompt)
    with pytest.raises(ValueError, match=r"reads as a mark of its own"):
        processor.words_ids(f"w1{mark}")
    assert processor.encode_prompt("w1 < | eot_id | > w2")


def test_an_adapter_is_no_model_to_train(tmp_path):
    get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear")).save_pretrained(tmp_path / "adapter")
    for load in (load_config, partial(load_module, LLaDAForMaskedDiffusion)):
        with pytest.raises(ValueError, match="adapter' is an adapter, not a model: `unigrpo merge"):
            load(str(tmp_path / "adapter"))

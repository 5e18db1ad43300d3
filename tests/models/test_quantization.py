"""Base weights in 8 or 4 bits under an adapter. With bitsandbytes: ``pip install -e ".[quantization]"``."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from unigrpo import UniGRPOConfig, UniGRPOTrainer, load_policy
from unigrpo.errors import RecipeError
from unigrpo.models.quantization import check_quantization, prepare_quantised, quantization_config
from unigrpo.runs.check import check_recipe
from unigrpo.runs.recipe import parse_recipe
from unigrpo.runs.train import build_trainer

from ..support.runs import logs_of
from ..support.tiny import TRAINING, low_ids, prompts, tiny_processor, wide_model


INSTALLED = is_bitsandbytes_available()
with_package = pytest.mark.skipif(not INSTALLED, reason='needs bitsandbytes: pip install -e ".[quantization]"')
WIDTHS = {
    "8 bit": {"load_in_8bit": True},
    "4 bit": {"load_in_4bit": True},
    "nested": {"load_in_4bit": True, "use_bnb_nested_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
}
STORED = {"load_in_8bit": torch.int8, "load_in_4bit": torch.uint8}


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny model on disk, all of whose sizes are multiples of 64, the length of a block of 4-bit weights."""
    wide_model().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def recipe(checkpoint: str, model: dict | None = None, **values):
    data = {
        "model": {"path": checkpoint, **(model or {})},
        "datasets": [{"path": "builtin:arithmetic", "limit": 16}],
        "rewards": [{"name": "tests.support.tiny:low_ids"}],
        "lora": {"r": 4},
        "output_dir": "unused",
        "use_cpu": True,
        **values,
    }
    return parse_recipe(data, "tests")


# ---- errors, with and without the package ----


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"load_in_8bit": True, "load_in_4bit": True}, "load_in_8bit=True with load_in_4bit=True"),
        ({"bnb_4bit_quant_type": "nf5", "load_in_4bit": True}, r"bnb_4bit_quant_type='nf5'.*did you mean 'nf4'"),
        ({"use_bnb_nested_quant": True}, r"use_bnb_nested_quant=True need load_in_4bit=True"),
        ({"bnb_4bit_quant_type": "fp4", "load_in_8bit": True}, r"bnb_4bit_quant_type='fp4'.*need load_in_4bit=True"),
    ],
)
def test_keys_that_do_not_go_together(checkpoint, keys, message):
    with pytest.raises(ValueError, match=message):
        quantization_config(**keys)
    with pytest.raises(RecipeError, match=f"tests: model: .*{message}"):
        check_recipe(recipe(checkpoint, keys))


@pytest.mark.parametrize("asked", [{"load_in_4bit": True}, {"load_in_8bit": True, "quant_method": "bitsandbytes"}])
def test_a_missing_package_names_its_extra(checkpoint, asked, monkeypatch):
    monkeypatch.setattr("unigrpo.models.quantization.is_bitsandbytes_available", lambda: False)
    match = r'bitsandbytes, 0\.48 or newer, which is not installed: pip install "unigrpo\[quantization\]"'
    with pytest.raises(ValueError, match=match):
        check_quantization({"quantization_config": asked}, adapters=True)
    with pytest.raises(RecipeError, match=match):
        check_recipe(recipe(checkpoint, {"load_in_4bit": True}))
    with pytest.raises(RecipeError, match=match):
        build_trainer(recipe(checkpoint, {"load_in_8bit": True}))


def test_without_an_adapter_nothing_is_loaded(monkeypatch):
    monkeypatch.setattr("unigrpo.models.MMaDAPolicy.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    args = UniGRPOConfig(
        "unused", use_cpu=True, report_to="none", model_init_kwargs={"quantization_config": {"load_in_4bit": True}}
    )
    with pytest.raises(ValueError, match=r"cannot be trained themselves: give lora \(peft_config\)"):
        UniGRPOTrainer("builtin:arithmetic", low_ids, args, prompts(8))


def test_nothing_asked_is_nothing_done():
    assert quantization_config() is None
    check_quantization(None, adapters=False)
    check_quantization({"dtype": "float32"}, adapters=False)


# ---- with the package ----


def quantised(checkpoint: str, **keys):
    return load_policy(checkpoint, quantization_config=quantization_config(**keys), device="cpu").model


@with_package
@pytest.mark.parametrize("width", WIDTHS)
def test_blocks_are_quantised_and_the_vocabulary_is_not(checkpoint, width):
    model = quantised(checkpoint, **WIDTHS[width])
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    blocks = {name: own for name, own in dtypes.items() if ".blocks." in name and "norm" not in name}
    assert len(blocks) == 21 and set(blocks.values()) == {STORED[next(iter(WIDTHS[width]))]}
    others = {own for name, own in dtypes.items() if name not in blocks}
    assert others == {torch.float32}, "embedding, norms and head"
    assert type(model.get_output_embeddings()).__name__ == "VocabularyHead"


@with_package
@pytest.mark.parametrize(("width", "limit"), [("8 bit", 0.05), ("4 bit", 0.25)])
@torch.no_grad()
def test_log_probs_are_near_those_of_fp32(checkpoint, width, limit):
    ids = torch.arange(40).view(2, 20)
    select = torch.ones_like(ids, dtype=torch.bool)
    plain = wide_model()(input_ids=ids, select=select, targets=ids.flatten())
    own = quantised(checkpoint, **WIDTHS[width])(input_ids=ids, select=select, targets=ids.flatten())
    assert own.logps.dtype == torch.float32
    error = (own.logps - plain.logps).abs().mean() / plain.logps.std()
    assert 0 < float(error) < limit


@with_package
@pytest.mark.parametrize("width", ["8 bit", "4 bit"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_is_trained_saved_and_read(checkpoint, tmp_path, width, checkpointing):
    options = {
        **TRAINING,
        "output_dir": str(tmp_path / "run"),
        "gradient_checkpointing": checkpointing,
        "max_steps": 4,
    }
    trainer = build_trainer(recipe(checkpoint, WIDTHS[width], **options))
    base = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if "lora_" not in name}
    trainer.train()
    logs = logs_of(trainer)
    # An 8-bit layer rounds differently in train and eval mode on a CPU.
    assert logs[0]["kl"] <= (1e-3 if width == "8 bit" else 0.0) < logs[-1]["kl"], (
        "the reference is the quantised model without its adapter"
    )
    assert all(log["grad_norm"] > 0 for log in logs)
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in base.items())
    assert all(p.dtype == torch.float32 for name, p in after.items() if "lora_" in name)
    trainer.save_model()
    again = quantised(checkpoint, **WIDTHS[width])
    prepare_quantised(again, adapters=True)
    again = PeftModel.from_pretrained(again, tmp_path / "run").eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids).logits
        assert torch.allclose(again(input_ids=ids).logits, expected, atol=1e-5)
        with again.disable_adapter():
            assert (again(input_ids=ids).logits - expected).abs().max() > 1e-3


@with_package
@pytest.mark.parametrize("width", ["8 bit", "4 bit"])
def test_a_rollout_leaves_the_gradients_alone(checkpoint, make_trainer, width):
    torch.manual_seed(0)
    lora = LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear")
    trainer = make_trainer(model=get_peft_model(quantised(checkpoint, **WIDTHS[width]), lora))
    model, ids = trainer.model, torch.arange(40).view(2, 20)
    request = {"input_ids": ids, "select": torch.ones_like(ids, dtype=torch.bool), "targets": ids.flatten()}

    def gradients() -> dict[str, torch.Tensor]:
        model.train().zero_grad()
        model(**request).logps.sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    before = gradients()
    with torch.no_grad():
        model.eval()(**request)
    after = gradients()
    assert len(before) == 42 and all(torch.equal(after[name], value) for name, value in before.items())


@with_package
def test_a_config_in_python_works_too(checkpoint, tmp_path):
    asked = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["q_proj"])
    args = UniGRPOConfig(
        **{
            **TRAINING,
            "output_dir": str(tmp_path),
            "max_steps": 1,
            "model_init_kwargs": {"quantization_config": asked},
        }
    )
    lora = LoraConfig(r=2)
    trainer = UniGRPOTrainer(checkpoint, low_ids, args, prompts(16), peft_config=lora)
    trainer.train()
    base = trainer.model.get_base_model()
    block = base.model.transformer["blocks"][0]
    assert block.q_proj.base_layer.weight.dtype == torch.float32
    assert block.ff_out.base_layer.weight.dtype == torch.uint8
    assert base.get_output_embeddings().weight.dtype == torch.float32
    assert type(args.to_json_string()) is str


@with_package
def test_a_quantised_module_needs_an_adapter(checkpoint, make_trainer):
    with pytest.raises(ValueError, match="cannot be trained themselves"):
        make_trainer(model=quantised(checkpoint, load_in_4bit=True))

"""``torch_compile``: blocks are compiled in place, nothing else changes."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import TrainingArguments

from unigrpo.config.arguments import UniGRPOConfig
from unigrpo.models import MMaDAConfig, MMaDAForMaskedDiffusion, MMaDAPolicy
from unigrpo.samplers import SemiAutoregressive
from unigrpo.training.compiling import compile_blocks
from unigrpo.types import keyed_generator

from ..support.runs import logs_of
from ..support.tiny import tiny_model, tiny_processor
from ..support.tolerances import FP32, assert_rounding


SHORT = {"max_steps": 2, "num_iterations": 2, "beta": 0.04}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def config(**values) -> UniGRPOConfig:
    return UniGRPOConfig("unused", use_cpu=True, report_to="none", **values)


def compiled_modules(model) -> list[str]:
    return [name for name, module in model.named_modules() if module._compiled_call_impl is not None]


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}


def trained_both_ways(make_trainer, backend: str, **arguments):
    """A run without and with compiled blocks, their losses and weights compared."""
    plain = make_trainer(**SHORT, **arguments)
    plain.train()
    own = make_trainer(**SHORT, **arguments, torch_compile=True, torch_compile_backend=backend)
    own.train()
    for left, right in zip(logs_of(plain), logs_of(own), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)
    before, after = weights(plain), weights(own)
    assert list(before) == list(after)
    # Adam's first steps are as large for a gradient of 1e-8 as for one of 1: rounding shows there, at a learning rate of 1e-3.
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-4
    return plain, own


@pytest.mark.parametrize(
    ("backend", "lora", "checkpointing"),
    [("eager", True, True), ("aot_eager", True, True), ("aot_eager", False, False)],
)
@pytest.mark.slow  # Half a minute of tracing; one step of a compiled run is compared with a plain one below.
def test_training_is_the_same(make_trainer, backend, lora, checkpointing):
    plain, own = trained_both_ways(make_trainer, backend, lora=lora, gradient_checkpointing=checkpointing)
    prefix = "base_model.model." if lora else ""
    assert compiled_modules(own.model) == [f"{prefix}model.transformer.blocks.{n}" for n in range(3)]
    assert compiled_modules(plain.model) == []
    assert list(own.model.state_dict()) == list(plain.model.state_dict())
    if own._twin is not None:
        assert compiled_modules(own._twin) == [f"model.transformer.blocks.{n}" for n in range(3)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++ on the CPU: install g++")
def test_training_is_the_same_with_inductor(make_trainer):
    _, own = trained_both_ways(make_trainer, "inductor", lora=True)
    assert len(compiled_modules(own.model)) == 3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++ on the CPU: install g++")
def test_old_log_probabilities_are_the_updates_in_bf16():
    """Fused arithmetic keeps more digits than bf16 has, and others with a gradient than without."""
    models = [tiny_model(torch.bfloat16) for _ in range(2)]
    compile_blocks(config(torch_compile=True), models[0])
    ids = torch.randint(3, 150, (4, 24), generator=torch.Generator().manual_seed(0))
    select = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    request = {"input_ids": ids.masked_fill(select, 184), "select": select, "targets": ids[select]}
    new = models[0](**request).logps
    with torch.no_grad():
        old, plain = (model(**request).logps for model in models)
    assert torch.equal(new, old)
    assert_rounding(old, plain, relative=2 * FP32)


@pytest.mark.parametrize("kind", [pytest.param("none", marks=pytest.mark.slow), "dual"])
def test_layers_share_their_graphs_beside_a_cache(kind):
    """A block that knew its number would be compiled once for every layer, and 32 layers exceed the compiler's limit."""
    graphs = []
    for layers in (2, 3):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        fields = {**tiny_model().config.to_dict(), "n_layers": layers}
        model = MMaDAForMaskedDiffusion(MMaDAConfig(**fields)).eval()
        compile_blocks(config(torch_compile_backend="eager"), model)
        policy = MMaDAPolicy(model.config, tiny_processor())
        canvas = policy.encode([{"prompt": "w1 w2"}, {"prompt": "w3"}], max_completion_length=8)
        streams = [keyed_generator("test", row) for row in range(2)]
        fill = SemiAutoregressive(steps=4, block_length=4, temperature=1.0, kv_cache=kind, stop="never")
        fill(model, policy, canvas, generators=streams)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] == graphs[1]


@pytest.mark.parametrize("lora", [pytest.param(False, marks=pytest.mark.slow), True])
def test_blocks_are_run_compiled_and_what_is_saved_loads_into_a_plain_model(make_trainer, tmp_path, lora):
    """The full model's names are those of the adapter's, without a prefix: it is compiled where there is time."""
    one = {"max_steps": 1, "num_iterations": 1, "beta": 0.0, "lora": lora}
    plain = make_trainer(**one)
    plain.train()
    torch._dynamo.utils.counters.clear()
    trainer = make_trainer(**one, torch_compile_backend="eager")
    trainer.train()
    assert compiled_modules(trainer.model) and not compiled_modules(plain.model)
    (own,), (known,) = logs_of(trainer), logs_of(plain)
    assert own["loss"] == pytest.approx(known["loss"], abs=1e-5)
    assert own["grad_norm"] == pytest.approx(known["grad_norm"], rel=1e-3)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"], "a block is one graph"
    trainer.save_model(str(tmp_path / "saved"))
    if lora:
        again = PeftModel.from_pretrained(tiny_model(), tmp_path / "saved")
    else:
        again = MMaDAForMaskedDiffusion.from_pretrained(tmp_path / "saved")
    batch = torch.arange(20)[None]
    with torch.no_grad():
        expected = again.eval()(batch).logits
        assert torch.allclose(trainer.model.eval()(batch).logits, expected, atol=1e-6)


def test_transformers_and_accelerate_compile_nothing(make_trainer, monkeypatch):
    for key in [key for key in os.environ if key.startswith("ACCELERATE_DYNAMO")]:
        monkeypatch.delenv(key)
    seen = []
    parent = TrainingArguments.__post_init__
    monkeypatch.setattr(
        TrainingArguments,
        "__post_init__",
        lambda self: (seen.append((self.torch_compile, self.torch_compile_backend)), parent(self))[1],
    )
    args = config(torch_compile_mode="max-autotune")
    assert seen == [(False, None)], "it would turn on TF32"
    assert (args.torch_compile, args.torch_compile_backend, args.torch_compile_mode) == (
        True,
        "inductor",
        "max-autotune",
    )
    trainer = make_trainer(torch_compile_backend="eager")
    assert trainer.accelerator.state.dynamo_plugin.backend == "NO"
    assert (trainer.args.torch_compile, trainer.args.torch_compile_backend) == (True, "eager")
    assert not [key for key in os.environ if key.startswith("ACCELERATE_DYNAMO")]
    plain = config()
    assert (plain.torch_compile, plain.torch_compile_backend, plain.torch_compile_mode) == (False, None, None)


def test_saved_arguments_read_again():
    args = config(torch_compile=True)
    assert (args.to_dict()["torch_compile"], args.to_dict()["torch_compile_backend"]) == (True, "inductor")
    again = config(
        **{key: args.to_dict()[key] for key in ("torch_compile", "torch_compile_backend", "torch_compile_mode")}
    )
    assert (again.torch_compile_backend, again.torch_compile_mode) == ("inductor", None)


def test_a_model_without_blocks_raises(make_trainer):
    model = tiny_model()
    for names, shown in ((None, r"\[\]"), (["Layer"], r"\['Layer'\]")):
        model._no_split_modules = names
        match = rf"MMaDAForMaskedDiffusion\._no_split_modules={shown} names none.*or set\s+torch_compile=False"
        with pytest.raises(ValueError, match=match):
            make_trainer(model=model, torch_compile=True)

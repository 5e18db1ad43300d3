"""Adapters on the network: which layers they take, mistakes by name, and their gradients from several processes."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn.parallel import DistributedDataParallel

from unigrpo.models import load_model
from unigrpo.models.adapter_files import load_adapter
from unigrpo.models.adapters import add_adapter, merged
from unigrpo.types import TokenSpace

from ..support.processes import played
from ..support.tiny import tiny_llada, tiny_model
from ..support.tiny_decoders import tiny_decoder
from ..support.tolerances import FP32
from .test_model import BLOCK_TENSORS, worst


@pytest.mark.parametrize("rows", [[], {"wte": []}, [-1], [10**6]], ids=str)
def test_trained_tokens_are_tokens(rows):
    with pytest.raises(ValueError, match=r"trainable_token_indices=.* must be ids of tokens, from 0"):
        add_adapter(tiny_model(), LoraConfig(r=2, trainable_token_indices=rows))


def adapted_model() -> PeftModel:
    """Adapters whose two factors both get a gradient."""
    torch.manual_seed(0)
    adapted = add_adapter(tiny_model(), LoraConfig(r=4, lora_alpha=8, init_lora_weights=False))
    adapted.enable_input_require_grads()
    return adapted


def score(model, seed: int = 0) -> torch.Tensor:
    """A scalar that depends on every weight, for rows drawn from ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 150, (2, 12), generator=generator)
    select = torch.rand(2, 12, generator=generator) < 0.5
    weights = torch.rand(int(select.sum()), generator=generator)
    hidden = ids.masked_fill(select, 184)
    space = TokenSpace(start=0, stop=197, exclude=(184,))
    return (model(hidden, select=select, targets=ids[select], token_space=space).logps * weights).sum()


def gradients(model) -> dict[str, torch.Tensor]:
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.requires_grad}


def assert_same_gradients(left: dict, right: dict, tolerance: float) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert float(value.abs().max()) > 0, name
        assert worst(value - right[name]) <= tolerance * float(value.abs().max()), name


BUILDS = {"full": tiny_model, "lora": adapted_model}


def summed(rank: int, name: str) -> dict:
    model = BUILDS[name]().train()
    model.gradient_checkpointing_enable()
    wrapped = DistributedDataParallel(model)
    sum(score(wrapped, seed=2 * draw + rank) for draw in range(3)).backward()
    return gradients(wrapped)


@pytest.mark.processes
def test_ddp_with_several_checkpointed_forwards_before_one_backward(tmp_path):
    found = played(2, tmp_path, __name__, *(("summed", {"name": name}) for name in BUILDS))
    for build, ranks in zip(BUILDS.values(), found, strict=True):
        alone = build().train()
        (sum(score(alone, seed=seed) for seed in range(6)) / 2).backward()
        for ranked in ranks:
            assert_same_gradients(gradients(alone), ranked, 1e-5)


PART = {"target_modules": ".*blocks.*(q_proj|v_proj|ff_out)"}


@pytest.mark.parametrize(
    ("targets", "leaves"),
    [({}, [leaf for leaf in BLOCK_TENSORS if "norm" not in leaf]), (PART, ["q_proj", "v_proj", "ff_out"])],
    ids=["all-linear", "a regex reaches the MLP output without the head"],
)
def test_all_linear_takes_every_layer_but_the_head(targets, leaves):
    adapted = add_adapter(tiny_model(), LoraConfig(r=4, **targets))
    base = adapted.get_base_model()
    names = {name for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}
    assert names == {f"model.transformer.blocks.{n}.{leaf}" for n in range(3) for leaf in leaves}
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * len(names) and all("lora_" in name for name in trainable)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["q_proj", "o_proj"]}, r"\['o_proj'\] match no module"),
        ({"target_modules": ["nothing"]}, "nothing"),
        ({"target_modules": ["ff_out"]}, "head"),
        ({"target_modules": ".*nothing.*"}, "nothing"),
        ({"modules_to_save": ["model.transformer.ff_out"]}, "head"),
    ],
)
def test_adapter_mistakes_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        add_adapter(tiny_model(), LoraConfig(r=4, **options))


TIED = {
    "a2d": (lambda: tiny_decoder("a2d-qwen3")[0], "embed_tokens"),
    "llada": (lambda: tiny_llada(weight_tying=True), "wte"),
}


@pytest.mark.parametrize("name", TIED)
def test_an_adapter_on_embeddings_that_are_the_head_too_reopens_and_merges(name, tmp_path):
    """Merged, embeddings and head differ: a folder that says that they are one would answer otherwise."""
    build, layer = TIED[name]
    base, ids = build().eval(), torch.arange(2, 14).view(2, 6)
    base.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    adapted = add_adapter(base, LoraConfig(r=2, target_modules=["q_proj", layer], init_lora_weights=False)).eval()
    expected = adapted(ids).logits.detach()
    adapted.save_pretrained(tmp_path / "adapter")
    again = load_adapter(load_model(tmp_path / "base"), str(tmp_path / "adapter")).eval()
    scale = FP32 * float(expected.abs().max())
    assert float((again(ids).logits - expected).abs().max()) <= scale
    merged(again).save_pretrained(tmp_path / "merged")
    assert float((load_model(tmp_path / "merged")(ids).logits - expected).abs().max()) <= 3 * scale

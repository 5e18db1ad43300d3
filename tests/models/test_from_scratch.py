"""Weights that a seed draws: of any family, from a configuration and a tokenizer alone, and what does not go with them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from unigrpo import load_policy
from unigrpo.errors import CheckpointError
from unigrpo.models import DiffusionPolicy, LLaDAConfig, LLaDAForMaskedDiffusion, LLaDAPolicy, MaskedDiffusionMixin
from unigrpo.training.setup import load_trainable

from ..support.tiny import tiny_model


SIZES = {"d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 48, "vocab_size": 96}


class BertForDiffusion(MaskedDiffusionMixin, BertForMaskedLM):
    pass


class BertPolicy(DiffusionPolicy):
    model_class = BertForDiffusion

    def token_space(self, task):
        raise NotImplementedError

    encode = decode = token_space


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("policy", "config"),
    [
        ("mmada", tiny_model().config),
        (LLaDAPolicy, LLaDAConfig(**SIZES, mask_token_id=3, eos_token_id=1, pad_token_id=1)),
        (BertPolicy, BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)),
    ],
    ids=["mmada", "llada", "bert"],
)  # fmt: skip
def test_a_configuration_is_enough_and_the_seed_alone_says_the_weights(policy, config, tmp_path):
    """Of a folder without weights, whatever was drawn before, and without touching what is drawn after."""
    config.save_pretrained(tmp_path)

    def drawn(seed, dtype="auto", noise=0):
        torch.manual_seed(noise)
        args = SimpleNamespace(seed=seed, device="cpu")
        model = load_trainable(str(tmp_path), policy, {"from_scratch": True, "dtype": dtype}, args, False)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(noise)))
        assert equal(weights(model), weights(model.load_again()))
        return model

    first = drawn(5)
    assert equal(weights(first), weights(drawn(5, noise=7)))
    matrices = [name for name, value in first.named_parameters() if value.ndim > 1]
    other = weights(drawn(6))
    assert matrices and not any(torch.equal(first.state_dict()[name], other[name]) for name in matrices)
    half = drawn(5, "bfloat16")
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}
    assert equal({name: value.bfloat16() for name, value in weights(first).items()}, weights(half))
    assert first.config.name_or_path == str(tmp_path)


@pytest.mark.smoke
def test_a_shipped_policy_keeps_its_configuration_and_tokenizer():
    shipped, fresh = (load_policy("builtin:arithmetic", device="cpu", from_scratch=own) for own in (False, True))
    assert fresh.model.config.to_dict() == shipped.model.config.to_dict()
    assert fresh.policy.processor.tokenizer.get_vocab() == shipped.policy.processor.tokenizer.get_vocab()
    assert not torch.equal(fresh.model.get_input_embeddings().weight, shipped.model.get_input_embeddings().weight)
    assert isinstance(fresh.generate("Tom has 127 cups and gets 4. Total?")[0], str)


def test_the_standard_deviations_are_those_of_the_configuration():
    sizes = {"d_model": 64, "n_layers": 8, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": 128, "vocab_size": 256}
    torch.manual_seed(0)
    config = LLaDAConfig(
        **sizes,
        mask_token_id=3,
        eos_token_id=1,
        pad_token_id=1,
        init_fn="full_megatron",
        init_std=0.1,
        emb_init_std=0.5,
    )
    model = LLaDAForMaskedDiffusion(config)
    found = {name: value.std().item() for name, value in model.named_parameters() if value.ndim > 1}
    for name, std in found.items():
        wanted = 0.1 / 4 if "attn_out" in name or (".blocks." in name and "ff_out" in name) else 0.1
        wanted = {"model.transformer.wte.weight": 0.5, "model.transformer.ff_out.weight": 1 / 8}.get(name, wanted)
        assert std == pytest.approx(wanted, rel=0.05), name


@pytest.mark.parametrize(
    ("options", "adapters", "said"),
    [
        ({"quantization_config": {"load_in_4bit": True}}, False, "from_scratch=True reads no weights, and quantization_config"),
        ({"device_map": "auto"}, False, "and device_map places weights while they are read"),
        ({"allow_missing": ["*.new"]}, False, "and allow_missing names what files lack"),
        ({}, True, "from_scratch=True with an adapter would leave the random weights under it"),
        ({"from_scratch": "yes"}, False, "from_scratch='yes' must be true or false"),
        ({"d_modell": 3}, False, "unexpected keyword argument 'd_modell'"),
        ({"policy": "llada"}, False, "this is a mmada checkpoint, opened as llada"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_does_not_go_with_it_is_one_sentence(options, adapters, said):
    options = {"from_scratch": True, **options}
    policy = options.pop("policy", None)
    with pytest.raises((ValueError, CheckpointError), match=said) as raised:
        load_trainable("builtin:arithmetic", policy, options, SimpleNamespace(seed=0, device="cpu"), adapters)
    assert "\n" not in str(raised.value)


def test_an_adapters_folder_is_no_configuration(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "builtin:arithmetic"}))
    with pytest.raises(ValueError, match="from_scratch=True with an adapter"):
        load_policy(str(tmp_path), from_scratch=True)

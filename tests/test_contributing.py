"""CONTRIBUTING.md names files, tables and commands that are there, and its blocks work."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from transformers import ElectraConfig, ElectraForMaskedLM

from unigrpo.algorithm.noising import NOISING, Draw, Noising
from unigrpo.config.presets import METHODS
from unigrpo.models import POLICIES, MaskedDiffusionMixin
from unigrpo.parts import key
from unigrpo.rewards import REWARDS
from unigrpo.samplers import SAMPLERS
from unigrpo.samplers.base import CanvasWriter, scatter
from unigrpo.testing import check_policy, check_reward, check_sampler

from .support import ROOT
from .support.tiny_policies import example


TEXT = (ROOT / "CONTRIBUTING.md").read_text()
TABLES = {"NOISING": NOISING, "METHODS": METHODS, "POLICIES": POLICIES, "REWARDS": REWARDS, "SAMPLERS": SAMPLERS}


@pytest.mark.smoke
def test_every_path_is_there():
    named = set(re.findall(r"`([\w./]+(?:\.py|\.md|\.toml|/))`", TEXT))
    inside = {path for path in named if (ROOT / "unigrpo" / path).exists()}
    missing = {path for path in named - inside if not (ROOT / path).exists()}
    assert len(named) >= 20 and not missing


def test_every_table_and_check_is_there():
    assert set(re.findall(r"line in `([A-Z]+)`", TEXT)) == set(TABLES) and all(TABLES.values())
    kit = {check.__name__ for check in (check_policy, check_reward, check_sampler)}
    assert set(re.findall(r"`unigrpo\.testing\.(\w+)`", TEXT)) == kit


BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)
NAMES = {own.__name__: own for own in (Noising, Draw, MaskedDiffusionMixin, ElectraForMaskedLM, CanvasWriter, key, scatter)} | {
    "dataclass": dataclasses.dataclass, "torch": torch, "BertPolicy": example.BertPolicy,
}  # fmt: skip


def block(name: str):
    """What the block of that name defines."""
    (own,) = [text for text in BLOCKS if re.search(rf"^(def|class) {name}\b", text, re.M)]
    assert len([line for line in own.splitlines() if line.strip()]) <= 13
    names = {**NAMES, "__name__": __name__}
    exec(compile(own, "CONTRIBUTING.md", "exec", dont_inherit=True), names)
    return names[name]


def test_every_block_is_tried():
    assert len(BLOCKS) == len(TABLES)


def test_the_reward():
    rows = [{"prompt": "Hi", "completion": own} for own in ("Well, thanks.", "No")]
    assert check_reward(block("polite"), rows, range=(0, 1), none_for=[{"prompt": "Hi", "completion": object()}]) == [
        1,
        0,
    ]


def test_the_sampler():
    check_sampler(block("AtOnce")(temperature=0.7))


@pytest.mark.parametrize("key", ["noising", "algorithm"])
def test_the_noising_and_the_preset_train(make_trainer, key):
    part = block("Tail")(share=0.5) if key == "noising" else block("everything_hidden")
    trainer = make_trainer(**{key: part}, num_iterations=1, max_steps=1, logging_steps=1)
    trainer.train()
    ratio = 0.5 if key == "noising" else 1.0
    ((name, share),) = [
        item for item in trainer.state.log_history[0].items() if item[0].startswith("mask_ratio/") and item[1]
    ]
    assert share == 1 and float(name.split("-")[-1]) >= ratio > float(name.split("/")[1].split("-")[0]) - 0.01


def test_the_family():
    bert, tokenizer = example.build()
    fields = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = ElectraConfig(
        **{name: getattr(bert.config, name) for name in fields}, embedding_size=48, initializer_range=0.3
    )
    torch.manual_seed(0)
    model = block("ElectraForDiffusion")(config).eval()
    rows = [{"prompt": own} for own in ("say red", "please say blue", "green")]
    check_policy(model.policy_class(config, tokenizer), model, rows)

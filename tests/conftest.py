"""Shape checks on the tensor functions, one thread, and trainers on the tiny model."""

from __future__ import annotations

import gc
import os
import sys

from jaxtyping import install_import_hook


CHECKED = [
    "unigrpo.algorithm.loss",
    "unigrpo.algorithm.advantages",
    "unigrpo.algorithm.noising",
    "unigrpo.algorithm.likelihood",
    "unigrpo.algorithm.denoising",
    "unigrpo.algorithm.mixing",
]
loaded = [name for name in CHECKED if name in sys.modules]
if loaded:
    raise RuntimeError(f"{loaded} were imported before their shapes could be checked")
install_import_hook(CHECKED, "beartype.beartype")
# No test needs a hub: an id that is not local is "not reachable" at once, with or without a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Lines are as wide as without a terminal, whatever started the tests.
os.environ.pop("COLUMNS", None)

import pytest  # noqa: E402
import torch  # noqa: E402
from peft import LoraConfig  # noqa: E402


torch.set_num_threads(1)


FROZEN: set[str] = set()
"""Modules that no collection of garbage looks at any more."""


@pytest.fixture(scope="module", autouse=True)
def imports_stay():
    """What was imported stays: a full collection, which every trainer asks for, then looks at the tests' own objects alone."""
    new = sys.modules.keys() - FROZEN
    if len(new) > 100:
        FROZEN.update(new)
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def plain_width(monkeypatch):
    """Nobody's terminal: a library that is imported by another test may have said how wide one is."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def make_trainer(tmp_path):
    """A factory of trainers: ``make_trainer(lora=True, beta=0.0, ...)``; other keywords go to ``UniGRPOConfig``."""
    from unigrpo import UniGRPOConfig, UniGRPOTrainer

    from .support.tiny import TRAINING, low_ids, prompts, tiny_model, tiny_processor

    def make(
        *,
        lora=False,
        dropout=0.0,
        model=None,
        rewards=low_ids,
        rows=None,
        eval_rows=None,
        sft_rows=None,
        kind=UniGRPOTrainer,
        callbacks=None,
        processor=True,
        reward_processing_classes=None,
        of_trainer=None,
        **arguments,
    ):
        arguments = {"output_dir": str(tmp_path / "run"), **TRAINING, **arguments}
        return kind(
            tiny_model() if model is None else model,
            rewards,
            UniGRPOConfig(**arguments),
            prompts(16) if rows is None else rows,
            eval_rows,
            processing_class=tiny_processor() if processor is True else processor or None,
            peft_config=LoraConfig(r=4, lora_dropout=dropout) if lora else None,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            sft_dataset=sft_rows,
            **(of_trainer or {}),
        )

    return make


@pytest.fixture(scope="module")
def policy():
    """That of the tiny model; a module's tests share it and leave it alone."""
    from unigrpo.models import MMaDAPolicy

    from .support.tiny import tiny_model, tiny_processor

    return MMaDAPolicy(tiny_model().config, tiny_processor())


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """The programs of an environment with the wheel, made once."""
    from .support.wheel import install_wheel

    return install_wheel(tmp_path_factory.mktemp("installed"))


@pytest.fixture
def mark(tmp_path):
    """A path that exists once hostile code has run; no test leaves it."""
    path = tmp_path / "marked"
    yield path
    assert not path.exists()

"""What we save opens in the transformers that the public code is pinned to. Its environment is made here; the network is needed."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from unigrpo.models.builtin import SHIPPED
from unigrpo.rollout.generate import load_policy
from unigrpo.runs.cli import main

from ..support import older_transformers
from ..support.tiny import tiny_llada, tiny_model, tiny_processor
from ..support.tolerances import FP32


pytestmark = pytest.mark.slow

CHAT = [{"role": "user", "content": "w1 w2"}]
IDS = torch.arange(24).view(2, 12)


@pytest.fixture(scope="module")
def older(tmp_path_factory) -> Path:
    """Python of an environment with transformers 4.46; torch and numpy are this environment's own."""
    folder = tmp_path_factory.mktemp("transformers4")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    wanted = ["transformers==4.46.3", "tokenizers", "safetensors", "jinja2"]
    done = subprocess.run([python, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"transformers 4.46 cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    # Last on its path, so that it hides nothing that was just installed.
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "torch_of_the_tests.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return python


def seen(python: Path, folders: list[Path]) -> list[dict]:
    cases = json.dumps([[str(folder), CHAT, IDS.tolist()] for folder in folders])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, older_transformers.__file__]
    done = subprocess.run(command, input=cases, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def merged(folder: Path) -> Path:
    """``unigrpo merge`` of an adapter beside its base."""
    base, adapter = folder / "base", folder / "adapter"
    tiny_model().save_pretrained(base)
    tiny_processor().save_pretrained(base)
    model = load_policy(str(base), device="cpu").model
    get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False)).save_pretrained(adapter)
    assert main(["merge", str(adapter), str(folder / "merged")]) == 0
    return folder / "merged"


def trained(make_trainer) -> list[Path]:
    """A trainer's folder and its checkpoint."""
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model()
    folder = Path(trainer.args.output_dir)
    return [folder, folder / "checkpoint-1"]


@torch.no_grad()
def test_transformers_4_opens_what_we_save(older, make_trainer, tmp_path):
    llada = tmp_path / "llada"
    model = tiny_llada(n_kv_heads=4)
    model.bfloat16().save_pretrained(llada)
    tiny_processor().save_pretrained(llada)
    with torch.enable_grad():
        shipped = [SHIPPED / name for name in ("arithmetic", "shapes")]
        folders = [llada, merged(tmp_path), *trained(make_trainer), *shipped]
    for folder, found in zip(folders, seen(older, folders), strict=True):
        own = load_policy(str(folder), device="cpu")
        assert found["version"] == "4.46.3" and found["tokenizer"] == "PreTrainedTokenizerFast"
        assert not any(found["loading"].values()), found["loading"]
        assert found["dtype"] == str(own.model.dtype) == ("torch.bfloat16" if folder == llada else "torch.float32")
        assert found["config"]["torch_dtype"] == found["config"]["dtype"] == found["dtype"].removeprefix("torch.")
        processor = own.policy.processor
        assert found["text"] == processor.chat_text(CHAT) and found["ids"] == processor.encode_prompt(CHAT)
        assert found["special"] == processor.tokenizer.all_special_ids
        assert found["decoded"] == processor.tokenizer.decode(found["ids"], skip_special_tokens=True)
        logits = own.model(IDS).logits
        # bf16: two orders of the same roundings.
        error = (torch.tensor(found["logits"]) - logits).abs().max() / logits.abs().max()
        assert float(error) <= (0.03 if folder == llada else FP32)

"""A random MMaDA-8B on one machine: a group of 2 sampled, one LoRA update, within 20 GiB. Run alone, by .ci/slow."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ..support import ROOT
from ..support.tiny import golden_tokenizer


LENGTH = 64
STEPS = 4
LIMIT_GIB = 20.0


def one_and_zero(completions, **_):
    return [float(index % 2 == 0) for index in range(len(completions))]


def peak_gib() -> float:
    """VmHWM of this process."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 2**20


def train_once() -> None:
    """Prints the figures; an assertion that fails ends the process with a non-zero status."""
    from peft import LoraConfig

    from unigrpo import UniGRPOConfig, UniGRPOTrainer
    from unigrpo.models import MMaDAConfig, MMaDAForMaskedDiffusion, MMaDAProcessor

    start = time.perf_counter()
    torch.manual_seed(0)
    model = MMaDAForMaskedDiffusion._from_config(MMaDAConfig(), dtype=torch.bfloat16)
    built = time.perf_counter() - start
    processor = MMaDAProcessor(golden_tokenizer("real"))
    row = {"prompt": "w3 w4 w5"}
    prompt_length = len(processor.encode_prompt(row["prompt"]))
    args = UniGRPOConfig(
        output_dir="unused",
        use_cpu=True,
        per_device_train_batch_size=2,
        num_generations=2,
        num_iterations=1,
        max_completion_length=LENGTH - prompt_length,
        steps=STEPS,
        block_length=LENGTH - prompt_length,
        gradient_checkpointing=True,
        max_steps=1,
        logging_steps=1,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = UniGRPOTrainer(
        model, one_and_zero, args, [row, row], processing_class=processor, peft_config=LoraConfig(r=8, lora_alpha=8)
    )
    base = {name: _fingerprint(value) for name, value in model.named_parameters() if "lora_" not in name}
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    adapters = {name: value for name, value in model.named_parameters() if "lora_B" in name}
    assert 0 < log["grad_norm"] < float("inf"), log
    assert len(adapters) == 32 * 7, len(adapters)
    unchanged = [name for name, value in adapters.items() if not bool(value.any())]
    assert not unchanged, unchanged
    for name, value in model.named_parameters():
        assert "lora_" in name or _fingerprint(value) == base[name], name
    assert peak_gib() <= LIMIT_GIB, peak_gib()
    print(
        f"full size: parameters {sum(v.numel() for n, v in model.named_parameters() if 'lora_' not in n):,}, "
        f"build {built:.0f} s, rollout {log['time/rollout']:.0f} s, reference {log['time/old_and_reference']:.0f} s, "
        f"update {log['time/update']:.0f} s, train() {seconds:.0f} s, grad norm {log['grad_norm']:.4g}, "
        f"peak {peak_gib():.1f} GiB (VmHWM)"
    )


def _fingerprint(value: torch.Tensor) -> tuple[float, float]:
    """Two numbers that a changed weight would not keep; a copy of 15 GiB is not affordable."""
    flat = value.detach().view(-1)
    sample = flat[:: max(len(flat) // 4096, 1)].double()
    return float(sample.sum()), float(sample.square().sum())


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_full_size_update_fits_in_20_gib():
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-c", "from tests.models.test_full_size import train_once; train_once()"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=2900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("full size:"))
    print(line)
    assert "parameters 8,082,690,048" in line

"""Runs started by ``accelerate launch`` with the shipped files, and what becomes of a run that loses a process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from ..support import ROOT
from ..support.engines import NEEDS_CPU_0
from ..support.processes import free_port
from ..support.tiny import tiny_model


CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
SIZES = {
    "max_steps": 2,
    "logging_steps": 1,
    "num_iterations": 1,
    "num_generations": 8,
    "max_completion_length": 8,
    "steps": 8,
    "datasets.0.limit": 64,
    "eval_datasets.0.limit": 6,
    "per_device_eval_batch_size": 4,
    "disable_tqdm": "true",
    "warmup_steps": 0,
}


def command(output: Path, batch: int, processes: int, **changes: object) -> list[str]:
    """The command that trains the quickstart's policy for a few steps, on one process or launched on several."""
    values = {**SIZES, "per_device_train_batch_size": batch, "output_dir": output, **changes}
    train = ["-m", "unigrpo", "train", str(ROOT / "recipes/quickstart.yaml"), *(f"{k}={v}" for k, v in values.items())]
    if processes == 1:
        return [sys.executable, *train]
    config = ["--config_file", str(ROOT / "recipes/accelerate/ddp_8.yaml")]
    where = ["--num_processes", str(processes), "--main_process_port", str(free_port())]
    return [sys.executable, "-m", "accelerate.commands.launch", *config, *where, *train]


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}


def run(*arguments: object, **changes: object) -> subprocess.CompletedProcess:
    done = subprocess.run(
        command(*arguments, **changes), env=environment(), capture_output=True, text=True, timeout=580, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def logs(output: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.processes
def test_the_shipped_ddp_file_starts_a_run_that_is_the_run_on_one_process(tmp_path):
    """Both processes take the same free name, where the one asked for is used."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "summary.json").write_text("{}")
    run(tmp_path / "one", 32, 1)
    printed = run(tmp_path / "used", 16, 2).stdout
    assert printed.count(f"this run goes to {tmp_path / 'used-2'}") == 1
    (tmp_path / "used-2").rename(tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two", "used"]
    alone, both = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    assert alone["engine"] == {"kind": "NO", "processes": 1, "wrapper": "MMaDAForMaskedDiffusion"}
    assert both["engine"] == {"kind": "MULTI_CPU", "processes": 2, "wrapper": "DistributedDataParallel"}
    one, two = logs(tmp_path / "one"), logs(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2]
    for own, other in zip(one, two, strict=True):
        assert own["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert own["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert own["reward"] == pytest.approx(other["reward"])
    assert alone["held_out_rewards_before"] == both["held_out_rewards_before"]
    assert printed.count("before training") == printed.count("after training") == 1, "one process speaks"


def workers(launcher: psutil.Process) -> list[psutil.Process]:
    """The launched training processes, by rank."""
    found = [own for own in launcher.children(recursive=True) if "unigrpo" in own.cmdline()]
    return sorted(found, key=lambda own: int(own.environ()["RANK"]))


@pytest.mark.slow
@NEEDS_CPU_0
def test_a_lost_process_ends_the_run_and_leaves_its_last_checkpoint(tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 1, "max_steps": 400, "lr_scheduler_type": "constant"}
    output = tmp_path / "run"
    launched = subprocess.Popen(
        command(output, 16, 2, **changes), env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        until = time.monotonic() + 120
        while not (output / "checkpoint-2").exists() and time.monotonic() < until:
            time.sleep(0.05)
        ranks = workers(psutil.Process(launched.pid))
        assert len(ranks) == 2
        os.kill(ranks[1].pid, signal.SIGKILL)
        _, errors = launched.communicate(timeout=580)
    finally:
        launched.kill()
    assert launched.returncode != 0
    assert re.search(r"rank\s*:\s*1|local_rank: 1", errors) and "SIGKILL" in errors
    assert not any(own.is_running() and own.status() != psutil.STATUS_ZOMBIE for own in ranks), "no process is left"
    last = max(int(folder.name.rpartition("-")[2]) for folder in output.glob("checkpoint-*"))
    assert last >= 2
    run(output, 16, 2, **{**changes, "max_steps": last + 1, "resume_from_checkpoint": "true"})
    run(tmp_path / "whole", 16, 2, **{**changes, "save_strategy": "no", "max_steps": last + 1})
    resumed, whole = logs(output), logs(tmp_path / "whole")
    assert [line["step"] for line in resumed] == list(range(1, last + 2))
    for own, other in zip(resumed, whole, strict=True):
        assert {name: own[name] for name in ("loss", "grad_norm", "kl")} == {
            name: other[name] for name in ("loss", "grad_norm", "kl")
        }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_file_is_what_accelerate_reads(path):
    """Every key is one that accelerate knows, and the counts are those of the name."""
    config = load_config_from_file(str(path))
    machines, gpus = (1, 1) if path.stem == "one_gpu" else [(1, 8), (4, 32)]["4x8" in path.stem]
    assert (config.num_machines, config.num_processes) == (machines, gpus)
    known = {action.dest for action in launch_command_parser()._actions}
    data = yaml.safe_load(path.read_text())
    for section in ("fsdp_config", "deepspeed_config"):
        assert set(data.get(section, {})) <= known, section
    assert (
        data["distributed_type"]
        == {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED", "one": "NO"}[
            path.stem.partition("_")[0]
        ]
    )


def launched_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that ``accelerate launch`` gives its processes for this file."""
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    arguments, *_ = _validate_launch_command(arguments)
    for name, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", ["fsdp2_8", "fsdp2_4x8"])
def test_the_fsdp_files_ask_for_fsdp2_by_block(name, monkeypatch):
    """Read and not run: on processors accelerate leaves FSDP out. The engine itself runs in test_distributed."""
    launched_environment(ROOT / f"recipes/accelerate/{name}.yaml", monkeypatch)
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.cpu_ram_efficient_loading) == (2, True, False)
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    plugin.set_auto_wrap_policy(tiny_model())
    (blocks,) = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert blocks.__name__ == type(tiny_model().model.transformer["blocks"][0]).__name__

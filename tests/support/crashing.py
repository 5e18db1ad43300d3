"""A run that is killed and started again until it is done, next to the same run left alone.

``python -m tests.support.crashing FOLDER --kind full --kills 20 --seed 0``; the kind ``sft`` is the command ``unigrpo sft``. One process imports everything and forks a child a
start, so that twenty starts cost one import; it has no thread but its own, so a fork is safe. A child marks every point
it passes: a forward or a reward call, and every file that is opened, renamed or deleted while a checkpoint is written.
The parent has it wait at a point and sends SIGKILL, or sends it blindly after a while.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from peft import LoraConfig

import unigrpo.runs.cli
import unigrpo.runs.sft
from unigrpo import MaskedDenoisingTrainer, UniGRPOConfig, UniGRPOTrainer
from unigrpo.training.callbacks import JsonLines
from unigrpo.training.checkpoints.files import INCOMPLETE, MANIFEST, REMOVED, fault
from unigrpo.training.checkpoints.run_folder import checkpoint_folder, steps_of
from unigrpo.training.checkpoints.run_record import RECORD

from .tiny import TRAINING, low_ids, prompts, tiny_model, tiny_processor


KEPT = 3
"""``save_total_limit``."""
SETTINGS = {**TRAINING, "save_strategy": "steps", "save_steps": 1, "save_total_limit": KEPT}
"""Windows of four optimizer steps, three an epoch: two inner updates of two steps."""
STAGES = ("start", "rollout", "reward", "held-out", "update", "log", "write", "manifest", "publish", "rotate")
"""Where a child can be; the last four are a checkpoint: its files, manifest and name, the deletion of older ones."""
GIVEN_STAGES = ("update", "write", "log", "publish", "manifest", "rotate")
"""Where a run on given answers is killed."""
POINTS = {"rollout": 30, "reward": 1, "update": 6, "log": 2, "write": 25, "manifest": 3, "publish": 2, "rotate": 6}
"""From how many points of a stage a kill chooses; they are few enough that a life makes about one step."""
TIMES = ("time/", "eval_time/", "train_", "eval_runtime", "tokens_per_second", "run_id")
TIMED = ("trainer_state.json", "training_args.bin", MANIFEST, RECORD, "README.md", "metrics.jsonl", "summary.json")
KINDS: dict[str, dict[str, Any]] = {
    "sft": {},
    "full": {"sync_ref_model": True, "ref_model_sync_steps": 3, "ref_model_mixup_alpha": 0.5},
    "lora": {"logging_steps": 3, "disable_dropout": False},
}
EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


class Board:
    """Memory that parent and child share: the child's stage, and whether it waits to be killed."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 2)
        self.aim: tuple[str, int] | None = None
        self.passed = dict.fromkeys(STAGES, 0)

    def reset(self, aim: tuple[str, int] | None) -> None:
        self.aim, self.memory[0], self.memory[1] = aim, 0, 0

    def mark(self, stage: str) -> None:
        """The child is at a point of ``stage``; it waits there if this is the one aimed at."""
        self.memory[0] = STAGES.index(stage)
        self.passed[stage] += 1
        if self.aim == (stage, self.passed[stage]):
            self.memory[1] = 1
            while True:
                time.sleep(60)

    @property
    def stage(self) -> str:
        return STAGES[self.memory[0]]

    @property
    def waits(self) -> bool:
        return bool(self.memory[1])


class Watching:
    """Has a trainer mark where it is."""

    board: Board
    evaluation = "rollout"
    saving = False

    def _save_checkpoint(self, *args, **kwargs):
        self.saving = True
        super()._save_checkpoint(*args, **kwargs)
        self.saving = False

    def watch(self) -> None:
        self.model.register_forward_pre_hook(
            lambda module, _: self.board.mark((self.evaluation, "update")[module.training])
        )
        out = str(self.args.output_dir)

        def audit(event: str, arguments: tuple) -> None:
            paths = " ".join(str(path) for path in arguments[:2]) if event in EVENTS else ""
            if out in paths and (self.saving or "metrics.jsonl" in paths):
                self.board.mark(stage_of(event, paths) if self.saving else "log")

        sys.addaudithook(audit)


class Watched(Watching, UniGRPOTrainer):
    """A run of reinforcement learning."""


class WatchedGiven(Watching, MaskedDenoisingTrainer):
    """A run on given answers, as the command makes it."""

    evaluation = "held-out"

    def train(self, *args, **kwargs):
        self.watch()
        return super().train(*args, **kwargs)


def stage_of(event: str, paths: str) -> str:
    """The part of writing a checkpoint that touches ``paths``."""
    if REMOVED in paths:
        return "rotate"
    if MANIFEST in paths:
        return "manifest"
    return "write" if INCOMPLETE in paths and event != "os.rename" else "publish"


def train(out: Path, kind: str, steps: int, board: Board) -> None:
    """One life of the run: the same command every time."""
    if kind == "sft":
        return fine_tune(out, steps, board)

    def reward(prompts, completions, completion_ids, **columns):
        board.mark("reward")
        return low_ids(prompts, completions, completion_ids, **columns)

    Watched.board = board
    trainer = Watched(
        tiny_model(),
        reward,
        UniGRPOConfig(str(out), **{**SETTINGS, **KINDS[kind], "max_steps": steps}),
        prompts(12),
        processing_class=tiny_processor(),
        peft_config=LoraConfig(r=4, lora_dropout=0.2) if kind == "lora" else None,
        callbacks=[JsonLines(out / "metrics.jsonl")],
    )
    trainer.watch()
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model(str(out / "final"))


def fine_tune(out: Path, steps: int, board: Board) -> None:
    """One life of ``unigrpo sft``."""
    WatchedGiven.board = board
    rows = {"path": "builtin:arithmetic", "split": "train", "limit": 12}
    recipe = {
        "model": {"path": "builtin:arithmetic", "dtype": "float32"},
        "datasets": [rows],
        "eval_datasets": [{**rows, "split": "test", "limit": 2}],
        **{
            name: SETTINGS[name]
            for name in ("save_strategy", "save_steps", "save_total_limit", "use_cpu", "disable_tqdm")
        },
        **{"max_length": 48, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 3},
        **{"output_dir": str(out), "max_steps": steps, "resume_from_checkpoint": True},
    }
    path = out.parent / f"{out.name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    with patch.object(unigrpo.runs.sft, "MaskedDenoisingTrainer", WatchedGiven):
        if unigrpo.runs.cli.main(["sft", str(path)]) != 0:
            raise SystemExit("the command failed")


def start(run: tuple[Path, str, int], board: Board, aim: tuple[str, int] | None = None) -> int:
    """Forks a child that trains ``run``: folder, kind and steps; returns its process id."""
    board.reset(aim)
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    out, code = run[0], 1
    try:
        with (out.parent / f"{out.name}.log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        train(*run, board)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def kill(pid: int, board: Board, after: float | None) -> str | None:
    """Kills the child where it waits, or ``after`` seconds; returns the stage it died in, None if it had ended."""
    begin = time.monotonic()
    while not (board.waits if after is None else time.monotonic() - begin > after):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return None
        if time.monotonic() - begin > 120:
            break
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return board.stage if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else None


def draw_kills(kills: int, generator: random.Random, stages: list[str]) -> list[tuple[str, int] | float]:
    """Every stage once, the rest anywhere, some of them blind; deletions last, when there is something to delete."""
    more = [*(own for own in ("rollout", "reward", "update") if own in stages), generator.choice(stages[-4:]), "blind"]
    chosen = stages[:kills] + [generator.choice(more) for _ in range(kills - len(stages))]
    generator.shuffle(chosen)
    chosen.sort(key=lambda stage: stage == "rotate")
    return [
        generator.uniform(0.1, 0.8) if stage == "blind" else (stage, generator.randint(1, POINTS[stage]))
        for stage in chosen
    ]


def given_kills(texts: list[str]) -> list[tuple[str, int]]:
    """``write:70``: at the 70th point of writing a checkpoint's files."""
    return [(stage, int(number)) for stage, _, number in (text.partition(":") for text in texts)]


def survive(run: tuple[Path, str, int], aims: list, board: Board) -> list[str]:
    """Starts the run again and again, killing it as ``aims`` say, until it is done; returns the stages it died in."""
    died = []
    for aim in aims:
        blind = isinstance(aim, float)
        pid = start(run, board, None if blind else aim)
        stage = kill(pid, board, aim if blind else None)
        if stage is None:
            raise SystemExit(f"the child ended before it was killed at {aim}, after {died}; see {run[0]}.log")
        died.append(stage)
        print(f"killed at {aim}: {stage}, checkpoints {steps_of(run[0])}")
    last = start(run, board)
    if os.waitpid(last, 0)[1] != 0:
        raise SystemExit(f"the last start failed after {died}; see {run[0]}.log")
    return died


def metrics(out: Path) -> list[dict]:
    """The lines of ``metrics.jsonl`` without what a clock decides, and the id of the run."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(TIMES)} for line in lines]


def difference(out: Path, whole: Path, steps: int) -> str | None:
    """What differs between two finished runs."""
    for number, (own, other) in enumerate(zip(metrics(out), metrics(whole), strict=False)):
        for name in sorted(own.keys() | other.keys()):
            if own.get(name) != other.get(name):
                return f"line {number + 1} of metrics.jsonl: {name} is {own.get(name)}, not {other.get(name)}"
    if len(metrics(out)) != len(metrics(whole)):
        return f"{len(metrics(out))} lines of metrics, not {len(metrics(whole))}"
    for folder in ("final" if (whole / "final").exists() else ".", f"checkpoint-{steps}"):
        for path in sorted((whole / folder).iterdir()):
            other = out / folder / path.name
            timed = path.name in TIMED
            if not timed and path.is_file() and path.read_bytes() != other.read_bytes():
                return f"{folder}/{path.name}"
    return None


def left_over(out: Path, steps: int) -> str | None:
    """What should not be in the folder of a finished run."""
    hidden = [path.name for path in out.iterdir() if path.name.startswith(".")]
    if hidden or steps_of(out) != list(range(steps, steps - KEPT, -1)):
        return f"hidden {hidden}, checkpoints {steps_of(out)}"
    return next(filter(None, (fault(checkpoint_folder(out, step)) for step in steps_of(out))), None)


def check_alone() -> None:
    """Only a process with one thread may fork; the allocator's own, which knows of forks, aside."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    others = [name for name in names if not name.startswith("jemalloc")]
    if len(others) > 1:
        raise SystemExit(f"threads {others} run before the first fork")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="full")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=42, help="a multiple of 3, so that the last one is logged")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at", nargs="*", default=[], metavar="STAGE:POINT", help="kills in place of drawn ones")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    check_alone()
    began, board = time.monotonic(), Board()
    whole, out = arguments.folder / "whole", arguments.folder / "killed"
    whole.mkdir(parents=True)
    out.mkdir()
    survive((whole, arguments.kind, arguments.steps), [], board)
    alone = time.monotonic() - began
    stages = list(GIVEN_STAGES if arguments.kind == "sft" else POINTS)
    aims = given_kills(arguments.at) or draw_kills(arguments.kills, random.Random(arguments.seed), stages)
    died = survive((out, arguments.kind, arguments.steps), aims, board)
    wrong = difference(out, whole, arguments.steps) or left_over(out, arguments.steps)
    if wrong is not None:
        raise SystemExit(f"after kills at {died}: {wrong}")
    writing = [stage for stage in died if stage in ("write", "manifest", "publish", "rotate")]
    told = ", ".join(f"{stage} {died.count(stage)}" for stage in ("rollout", "reward", "update", "log", "start"))
    print(f"died: {died}; alone {alone:.1f} s, killed {time.monotonic() - began - alone:.1f} s")
    print(
        f"crashes: {len(died)} kills survived ({told}, checkpoint {len(writing)}), metrics equal; {arguments.kind}, "
        f"{arguments.steps} steps"
    )


if __name__ == "__main__":
    main()

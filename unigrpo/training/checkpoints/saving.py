"""``transformers.Trainer``'s checkpoints made atomic, and the choice of the one that a restarted run goes on from."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME

from ...errors import CheckpointError
from .deepspeed_files import refuse_code
from .files import aside_of, check_writable, fault, finish, named, publish, seal, sync_tree
from .lock import locked
from .one_run import OneRun
from .run_folder import check_named, check_state, checkpoint_folder, none_usable, rotate, saving_error, steps_of
from .run_record import RECORD, new_run_id, write_record
from .run_start import begin, foreign


SEEN_WITHIN = 60.0
"""Seconds after which a file of another machine must be seen here; network file systems cache their listings."""


class AtomicCheckpoints(OneRun):
    """A mixin before ``transformers.Trainer``: a folder ``checkpoint-STEP`` is whole whenever it is there.

    It is written into a hidden folder beside it, its files are forced to disk, a manifest of their sizes and checksums
    is added, and one process renames it; older checkpoints are deleted only then. One that was damaged later is known
    by its manifest.
    """

    _saved_step: int | None = None

    def _add_files(self, folder: Path) -> list[str]:
        """Writes this rank's further files into a checkpoint's ``folder``.

        Returns their names with ``{rank}`` in place of the rank; every rank must have written its own.
        """
        return []

    # ---- writing ----

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._aside is None else str(self._aside)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Waits until the checkpoint is whole."""
        if self._aside is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Trainer's checkpoint plus what ``_add_files`` adds.

        Raises:
            CheckpointError: the disk does not take it. Nothing is left of it; earlier checkpoints are untouched.
        """
        run = Path(self._get_output_dir(trial=trial))
        folder = checkpoint_folder(run, self.state.global_step)
        try:
            if self.args.should_save:
                finish(run)
            self.accelerator.wait_for_everyone()
            self._publish(folder, self._write_aside(model, trial, folder))
        except Exception as error:
            # Raised on this rank alone: the others may wait inside a collective, and the launcher stops them.
            told = saving_error(folder, error)
            if self.args.should_save:
                shutil.rmtree(aside_of(folder).parent, ignore_errors=True)
            if told is error:
                raise
            raise told from error
        self._saved_step = self.state.global_step
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        if self.args.should_save:
            rotate(run, self.args.save_total_limit, folder, self.state.best_model_checkpoint)

    def _write_aside(self, model: nn.Module, trial: Any, folder: Path) -> list[str]:
        """All files of the checkpoint that will be ``folder``; returns what ``_add_files`` returns."""
        aside = aside_of(folder)
        self._aside = aside.parent
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._aside = None
        if self.state.best_model_checkpoint == str(aside):
            self.state.best_model_checkpoint = str(folder)
            if self.args.should_save:
                self.state.save_to_json(str(aside / TRAINER_STATE_NAME))
        if self.args.should_save and self.run is not None:
            write_record(aside, replace(self.run, files={}))
        return self._add_files(aside)

    def _publish(self, folder: Path, expected: list[str]) -> None:
        """Makes the written checkpoint ``folder``, once every rank's files are on disk."""
        aside = aside_of(folder)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_local_main_process:
            # Only the machine that wrote a file can force it to disk.
            sync_tree(aside)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._await_files(aside, expected)
            seal(aside)
            publish(aside, folder)
            os.rmdir(aside.parent)
        self.accelerator.wait_for_everyone()

    def _await_files(self, aside: Path, expected: list[str]) -> None:
        """The files of all ranks that write into this folder are there."""
        ranks = range(self.args.world_size)
        if self.args.save_on_each_node:
            first = self.args.process_index
            ranks = range(first, first + int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        end = time.monotonic() + SEEN_WITHIN
        while missing := [
            rank for rank in ranks if not all((aside / name.format(rank=rank)).exists() for name in expected)
        ]:
            if time.monotonic() > end:
                raise CheckpointError(
                    f"{aside} lacks what ranks {missing} wrote: output_dir is not a folder that all machines share. "
                    "Share it, or set save_on_each_node=True"
                )
            time.sleep(0.5)

    # ---- resuming ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.train``; what differs concerns restarts, and whose the folder is.

        Args:
            resume_from_checkpoint: a checkpoint, or True for the newest one in ``output_dir`` that is whole; damaged
                ones are skipped with a warning. With True and no checkpoint there, whole or not, the run starts from
                the beginning, so that the same command can be started again and again. A run that was finished trains
                no further step. The run must be the one that it goes on from: ``identity`` says what it keeps, what is
                told and what does not matter.

        Raises:
            CheckpointError: nothing can be written into ``output_dir``; another process is at work there; without
                ``resume_from_checkpoint`` or ``overwrite``, another run left something there; the checkpoint that was named
                is damaged, or with True all that are there are; the one to go on from is another run's, or has no optimizer
                and schedule, as ``save_only_model`` leaves them out.
        """
        self._new_id = gather_object([new_run_id()])[0]
        with ExitStack() as lock:
            self._on_writers(lambda: self._open(lock))
            checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
            self._on_writers(lambda: self._begin(bool(resume_from_checkpoint), checkpoint))
            return super().train(checkpoint, *args, **kwargs)

    def _open(self, lock: ExitStack) -> None:
        """Takes the folder, and clears what a killed process left half written there."""
        run = Path(self.args.output_dir)
        check_writable(run)
        lock.enter_context(locked(run))
        finish(run)

    def _begin(self, resume: bool, checkpoint: str | None) -> None:
        """Settles whose the folder is, and writes it down."""
        run = Path(self.args.output_dir)
        self.run, told = begin(run, self._described(), resume, checkpoint and Path(checkpoint), self.args.overwrite)
        with named(run / RECORD):
            write_record(run, self.run)
        engine = (
            "; DeepSpeed's engine goes on with the learning rate that it stored" if self.is_deepspeed_enabled else ""
        )
        for warning in told:
            self._tell(warning + engine)

    def _checkpoint_to_resume(self, asked: str | bool | None) -> str | None:
        """The checkpoint that all ranks resume from; it has all that they need."""
        if not asked:
            return None
        run = Path(self.args.output_dir)
        if asked is True:
            chosen = self._newest_checkpoint(run)
            if chosen is None:
                return None
        else:
            chosen = str(asked)
            self._agree(check_named(Path(chosen), run) if self.args.should_save else None)
        engine = "DeepSpeed" if self.is_deepspeed_enabled else "FSDP" if self.is_fsdp_enabled else "plain"
        self._agree(check_state(Path(chosen), run, engine) if self.args.should_save else None)
        if self.is_deepspeed_enabled:
            # It would unpickle its own files.
            refuse_code(Path(chosen))
        return chosen

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            refuse_code(Path(self.state.best_model_checkpoint))
        super()._load_best_model()

    def _newest_checkpoint(self, run: Path) -> str | None:
        """The newest checkpoint of ``run`` that is whole, None if it has none at all.

        Raises:
            CheckpointError: it has some, and none is whole.
        """
        # With save_on_each_node each machine has a folder of its own, and all must have the step whole.
        own = {step: self._unusable(checkpoint_folder(run, step)) for step in steps_of(run)}
        own = own if self.args.should_save else None
        faults = [found for found in gather_object([own]) if found is not None]
        reasons: dict[Path, str] = {}
        for step in sorted({step for found in faults for step in found}, reverse=True):
            folder = checkpoint_folder(run, step)
            reason = next(filter(None, (found.get(step, "it does not exist") for found in faults)), None)
            if reason is None:
                for skipped, why in reasons.items():
                    self._tell(f"{skipped} is skipped: {why}")
                return str(folder)
            reasons[folder] = reason
        if reasons:
            raise CheckpointError(none_usable(run, reasons))
        self._tell(f"{run} has no checkpoint yet: the run starts from the beginning")
        return None

    def _unusable(self, checkpoint: Path) -> str | None:
        return fault(checkpoint) or foreign(checkpoint, checkpoint.parent)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing once all steps are done: Trainer itself would train one more when it resumes a finished run."""
        if self.state.global_step < self.state.max_steps:
            return super().get_batch_samples(*args, **kwargs)
        self.control.should_training_stop = True
        self.control.should_save = self.control.should_evaluate = self.control.should_log = False
        return [], None

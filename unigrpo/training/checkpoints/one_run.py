"""A folder is one run's: the part of a trainer that says which, and writes it down."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch import nn

from ...errors import CheckpointError
from ...models.adapter_files import BASE_FILE
from ...models.checkpoint_files import ADAPTER_WEIGHTS, FULL_WEIGHTS, weights_in
from ...models.reference import is_peft
from .carded import Carded, without_card_of_peft
from .files import describe, named, write_json
from .identity import adapter_keys, dataset_digest, described, weights_digest
from .run_record import RECORD, RunRecord, read_record, write_record


class OneRun(Carded):
    """A mixin before ``transformers.Trainer``: its run has an identity, and its folder no weights of another.

    Attributes:
        about: names of the run for a reader, such as its recipe's.
        reward_args: a digest of each reward's arguments, where they are known.
        start: digests of the weights that training starts from, see ``weights_digest``.
        run: the record of the run, on processes that write, once it is trained.
    """

    reward_args: list[str] | None = None
    start: dict[str, str] = {}
    _datasets: tuple[str, ...] = ("train_dataset", "eval_dataset", "sft_dataset")
    _new_id = ""
    """What the run is called if it is a new one, the same on all processes."""
    _aside: Path | None = None
    """Where a checkpoint is being written, in place of the run's folder."""

    def starts_from(self, model: nn.Module) -> None:
        """Notes the weights that training starts from, before a new adapter is put on them."""
        self.start = {"model": weights_digest(model)}
        if is_peft(model):
            self.start["adapter"] = weights_digest(model, trained=True)

    def _settings(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the run's arguments keep, and what of them may change."""
        return described(self.args, self._tasks, type(self.policy).__name__, self.rewards, self.reward_args)

    def _described(self) -> RunRecord:
        """The run as it is now, with a new id."""
        kept, told = self._settings()
        kept |= {"model": self.start["model"], **adapter_keys(self.model)}
        told |= {name: value for name, value in self.start.items() if name != "model"}
        for name in self._datasets:
            told[name] = dataset_digest(getattr(self, name))
        about = {"model": getattr(self.model.config, "name_or_path", None), **self.about}
        about["started"] = datetime.now(UTC).isoformat(timespec="seconds")
        return RunRecord(run_id=self._new_id, kept=kept, told=told, about=about)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in transformers; weights of the other kind, a whole model's or an adapter's, are never mixed with these.

        Raises:
            CheckpointError: the folder holds some.
        """
        folder = Path(output_dir or self.args.output_dir)
        before = _stamps(folder)
        if self._aside is None:
            self._on_writers(lambda: self._check_kind(folder))
        with without_card_of_peft(self.accelerator.unwrap_model(self.model)):
            super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            self._write_base(folder)
            self.write_card(folder)
            self._list_if_own(folder, before)

    def _write_base(self, folder: Path) -> None:
        """Beside an adapter that lies on another one, which weights that one had: its folder may be written again."""
        model: Any = self.accelerator.unwrap_model(self.model)
        digest = getattr(model.get_base_model(), "base_adapter", None) if is_peft(model) else None
        if digest is not None:
            with named(folder / BASE_FILE):
                write_json(folder / BASE_FILE, {"sha256": digest})

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(self.args.output_dir)
        before = _stamps(folder)
        super().create_model_card(*args, **kwargs)
        if self.args.should_save:
            self._list_if_own(folder, before)

    create_model_card.__doc__ = Carded.create_model_card.__doc__

    def _list_if_own(self, folder: Path, before: dict[str, tuple[int, int]]) -> None:
        if self._aside is None and self.run is not None and folder.resolve() == Path(self.args.output_dir).resolve():
            self._list_files(folder, before)

    def _check_kind(self, folder: Path) -> None:
        adapted = is_peft(self.model)
        own, other = ("an adapter", FULL_WEIGHTS) if adapted else ("a whole model", ADAPTER_WEIGHTS)
        mixed = next((name for name in weights_in(folder) if other.fullmatch(name)), None)
        if mixed is not None:
            raise CheckpointError(
                f"{folder} holds {mixed}, and {own} is to be saved beside it: whoever loads the folder would get a mixture. Save "
                "into another folder, or move that file away"
            )

    def _list_files(self, folder: Path, before: dict[str, tuple[int, int]]) -> None:
        """Adds what was just saved to the run's record; a file that somebody else had there stays theirs."""
        record = read_record(folder)
        if record is None:
            return
        ours, after = dict(record.files), _stamps(folder)
        for name, stamp in after.items():
            if stamp != before.get(name) and (name not in before or name in ours):
                ours[name] = describe(folder / name)
        self.run = replace(record, files=ours)
        with named(folder / RECORD):
            write_record(folder, self.run)

    def _on_writers(self, work: Callable[[], None]) -> None:
        """``work`` on the processes that write; what one of them refuses is raised on all."""
        wrong = None
        if self.args.should_save:
            try:
                work()
            except CheckpointError as error:
                wrong = str(error)
        self._agree(wrong)

    def _agree(self, wrong: str | None) -> None:
        """Raises ``CheckpointError`` on all ranks with what is wrong on one of them."""
        wrong = next(filter(None, gather_object([wrong])), None)
        if wrong is not None:
            raise CheckpointError(wrong)

    def _tell(self, what: str) -> None:
        if self.is_world_process_zero():
            warnings.warn(what, stacklevel=5)


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """When each file of a folder was last written, and its size."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    return {name: (state.st_mtime_ns, state.st_size) for name, state in found}

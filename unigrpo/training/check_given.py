"""Reading rows with given answers once before a run of fine-tuning, so that one that cannot be written is found now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Subset

from ..config.denoising_arguments import MaskedDenoisingConfig
from ..data.checking import each_row
from ..data.rows import read_row, task_of, undecoded
from ..data.tables import is_splits, rows_of, sets_of
from ..errors import TooLongError, check_choice
from ..models import DiffusionPolicy
from ..terminal import say
from ..types import canvas_tasks
from .given import Writer
from .setup import load_codec


def prefix_of(name: str) -> str:
    """What stands before the numbers of a held-out set: its name, if it is one of several."""
    return "" if name == "eval_dataset" else f"{name}_"


class CheckedGiven:
    """What ``MaskedDenoisingTrainer`` asks of its datasets; on the way it learns the tasks and the image tokenizer."""

    args: MaskedDenoisingConfig
    policy: DiffusionPolicy
    writer: Writer
    _image_tokenizer: Any
    _tasks: dict[str, set[str]]

    def _checked(self, dataset: Any, name: str) -> dict[str, Any]:
        """The sources by name, every row of which can be written."""
        if dataset is None:
            return {}
        given = sets_of(dataset, name) if name == "eval_dataset" or not is_splits(dataset) else rows_of(dataset, name)
        sources = {own: undecoded(rows) for own, rows in (given if isinstance(given, dict) else {name: given}).items()}
        for own, rows in sources.items():
            if not hasattr(rows, "__len__") or not len(rows):
                raise ValueError(f"{own} has no rows, or no length: load it without streaming")
            sources[own] = self._that_fit(own, rows)
        return sources

    def _that_fit(self, name: str, rows: Any) -> Any:
        """The rows of one source, each of which can be written; those that are too long are dropped where ``overlong`` says so."""

        def check(index: int) -> str | None:
            where = f"{name}[{index}]"
            row = read_row(rows, index, where)
            self._know_codec(task_of(row))
            try:
                return self.writer.check(row, where)
            except TooLongError:
                if self.args.overlong == "error":
                    raise
                return None

        kept = []
        for index, task in enumerate(each_row(len(rows), name, check)):
            if task is not None:
                self._know_codec(task)
                self._tasks.setdefault(name, set()).add(task)
                kept.append(index)
        dropped = len(rows) - len(kept)
        if not dropped:
            return rows
        if self.args.should_save:
            room = f"max_length={self.args.max_length}"
            say(f"{name}: {dropped} of {len(rows)} rows do not fit into {room} and are left out", error=True)
        if not kept:
            raise ValueError(f"{name} has no row that fits into max_length={self.args.max_length}: raise it")
        return rows.select(kept) if hasattr(rows, "select") else Subset(rows, kept)

    def _know_codec(self, task: str) -> None:
        """The first row with a picture loads the image tokenizer."""
        if self.writer.codec is None and task != "text":
            codec = load_codec(self._image_tokenizer, self.policy, self.args.offload_image_tokenizer)
            self.writer.codec = codec

    def _check_best_metric(self, held_out: Mapping[str, Any]) -> None:
        """A ``metric_for_best_model`` that no evaluation will have is an error."""
        metric = self.args.metric_for_best_model
        if metric is None or not held_out or self.args.eval_strategy == "no":
            return
        names = []
        for own in held_out:
            numbers = [f"{task}_{kind}" for task in self._canvas_tasks(own) for kind in ("loss", "nats_per_token")]
            names += [f"eval_{prefix_of(own)}{number}" for number in ("loss", *numbers)]
        check_choice("metric_for_best_model", metric if metric.startswith("eval_") else f"eval_{metric}", tuple(names))

    def _canvas_tasks(self, name: str) -> list[str]:
        """What the rows of a source are trained on: their tasks, or the spans of r2i where each has a law of its own."""
        return canvas_tasks(self._tasks[name]) if self.writer.by_span else sorted(self._tasks[name])

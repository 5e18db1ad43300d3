"""The table of a run in a notebook. It is imported there alone, because it needs IPython."""

from __future__ import annotations

from typing import Any

from transformers.utils.notebook import NotebookProgressCallback, disp, text_to_html_table

from ..terminal import visible


COLUMNS = {"Training Loss": "loss", "Reward": "reward", "KL": "kl"}
"""Columns of the table, and the metrics that they come from."""


def held_out_columns(logs: dict[str, Any]) -> dict[str, Any]:
    """The held-out rewards and losses of a log, by the name of their column."""
    return {
        f"Held-out {visible(name.removeprefix('eval_')).replace('_', ' ')}": value
        for name, value in logs.items()
        if name.startswith("eval_") and name.endswith(("reward", "loss"))
    }


class NotebookTable(NotebookProgressCallback):
    """transformers' bar and table, with reward and KL beside the loss, and held-out numbers when they come.

    A reward is its window's: it stays for the later steps of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[str, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        # Columns come with their first values: fine-tuning has neither reward nor KL.
        self.training_tracker.inner_table, self.last = None, {}

    def on_log(self, args, state, control, logs=None, **kwargs: Any) -> None:
        logs = logs or {}
        held_out = held_out_columns(logs)
        self.last |= {column: logs[name] for column, name in COLUMNS.items() if name in logs}
        if self.training_tracker is not None and (held_out or "loss" in logs):
            self.training_tracker.write_line({"Step": state.global_step, **self.last, **held_out})
            self._force_next_update = True

    def on_evaluate(self, args, state, control, metrics=None, **kwargs: Any) -> None:
        """Outside training there is no table that the log could have written to."""
        found = held_out_columns(metrics or {})
        if self.training_tracker is None and found:
            disp.display(disp.HTML(text_to_html_table([list(found), list(found.values())])))

    def on_rollout(self, done: int, total: int) -> None:
        """Progress inside a rollout, as a bar below the table."""
        tracker = self.training_tracker
        if tracker is None:
            return
        if tracker.child_bar is None or tracker.child_bar.total != total:
            tracker.add_child(total, prefix="Rollout")
        tracker.child_bar.update(done)
        if done == total:
            tracker.remove_child()

    def close(self) -> None:
        """Nothing has to make way for what is said below the table."""

"""Reading a run's datasets once before it starts, so that a row that cannot be used is found now and not hours later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..config.arguments import UniGRPOConfig
from ..data.image_codes import ImageCodec
from ..data.rows import as_prompts, check_dataset, task_of, undecoded
from ..data.tables import rows_of, sets_of
from ..errors import check_choice
from ..models import DiffusionPolicy
from ..rollout.rewards import RewardSet
from ..rollout.sample import check_prompt
from .demonstrations import check_demonstration
from .setup import load_codec, named_sets


def held_out_sets(given: Any) -> Any:
    """What was given as ``eval_dataset``: the rows, or sets of rows by name; pictures stay encoded."""
    sets = sets_of(given, "eval_dataset")
    if isinstance(sets, dict):
        return {name: undecoded(as_prompts(part)) for name, part in sets.items()}
    return undecoded(as_prompts(sets))


class CheckedDatasets:
    """What ``UniGRPOTrainer`` asks of its datasets; on the way it learns the tasks, the columns and the image tokenizer."""

    args: UniGRPOConfig
    policy: DiffusionPolicy
    rewards: RewardSet
    codec: ImageCodec | None
    _image_tokenizer: Any
    _tasks: set[str]

    def _checked(self, train_dataset: Any, eval_dataset: Any) -> tuple[Any, Any]:
        """The datasets with their pictures left encoded, every row checked."""
        if train_dataset is not None:
            train_dataset = undecoded(as_prompts(rows_of(train_dataset, "train_dataset")))
            check_dataset(train_dataset, "train_dataset", self._row_check(), self._learn_trained)
        if eval_dataset is not None:
            eval_dataset = held_out_sets(eval_dataset)
        for name, part in named_sets(eval_dataset):
            check_dataset(part, name, self._row_check(held_out=True), self._learn)
        self._check_best_metric(eval_dataset)
        return train_dataset, eval_dataset

    def _check_best_metric(self, eval_dataset: Any) -> None:
        """A ``metric_for_best_model`` that no evaluation will have is an error; rewards may log more, under names with a slash."""
        metric = self.args.metric_for_best_model
        if metric is None or eval_dataset is None or self.args.eval_strategy == "no":
            return
        metric = metric if metric.startswith("eval_") else f"eval_{metric}"
        sets = [f"eval_{name}_" for name in eval_dataset] if isinstance(eval_dataset, dict) else ["eval_"]
        names = [f"{own}reward" for own in sets]
        names += [f"{own}rewards/{name}/mean" for own in sets for name in self.rewards.names]
        rest = next((metric.removeprefix(own) for own in sets if metric.startswith(own)), "")
        if "/" not in rest or rest.startswith("rewards/"):
            check_choice("metric_for_best_model", metric, tuple(names))

    def _checked_demonstrations(self, dataset: Any) -> Any:
        """The rows with given answers, each of which fits its canvas."""
        if (dataset is None) != (self.args.sft_weight == 0):
            raise ValueError(
                f"sft_weight={self.args.sft_weight} {'without' if dataset is None else 'with'} sft_dataset: the auxiliary "
                "denoising loss needs both a weight > 0 and rows with given answers"
            )
        if dataset is None:
            return None

        def check(row: dict[str, Any], where: str) -> str:
            self._know_codec(task_of(row))
            check_demonstration(self.policy, self.args, self.codec, row, where)
            return task_of(row)

        dataset = undecoded(rows_of(dataset, "sft_dataset"))
        check_dataset(dataset, "sft_dataset", check, self._know_codec)
        return dataset

    def _know_codec(self, task: str) -> None:
        """The first row with a picture loads the image tokenizer."""
        if self.codec is None and task != "text":
            self.codec = load_codec(self._image_tokenizer, self.policy, self.args.offload_image_tokenizer)

    def _row_check(self, held_out: bool = False) -> Callable[[dict[str, Any], str], tuple[str, tuple[str, ...]]]:
        """For the rows of one dataset: a row that this run cannot answer is an error; its task and columns."""
        checked: dict[str, Any] = {}

        def check(row: dict[str, Any], where: str) -> tuple[str, tuple[str, ...]]:
            self._know_codec(task_of(row))
            check_prompt(self.policy, self.args, self.codec, row, where, held_out, checked)
            return task_of(row), tuple(row)

        return check

    def _learn(self, found: tuple[str, tuple[str, ...]]) -> None:
        """What the run knows from now on of a row's task and columns."""
        task, columns = found
        self._know_codec(task)
        self.rewards.know_columns(dict.fromkeys(columns))

    def _learn_trained(self, found: tuple[str, tuple[str, ...]]) -> None:
        self._learn(found)
        self._tasks.add(found[0])

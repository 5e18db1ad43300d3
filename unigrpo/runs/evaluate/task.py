"""What an evaluation task is, and how a name leads to one."""

from __future__ import annotations

import inspect
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import check_choice, import_named
from ...rewards import get_reward
from ...rewards.text import completion_text


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalTask:
    """A benchmark: where its rows are, what is asked of each, and how answers are judged.

    Attributes:
        about: what it is, in a few words.
        task: one of ``unigrpo.types.TASKS``; what a row asks of the policy.
        path, config, split: of its rows: an id on the hub, a file or folder as in a recipe, ``builtin:NAME``; ``""`` = they must be
            given (``--data``).
        template: the prompt; ``{column}`` stands for a column of the row.
        columns: ``{ours: theirs}``: what the judge reads under names of its own.
        prepare: ``pkg.mod:attr`` of ``f(row) -> row``, for what no renaming can say.
        judge: a name in ``REWARDS``, ``pkg.mod:attr`` of a reward or of ``f(completion, solution) -> bool``, or a mapping with a
            ``name`` and its arguments; None = answers are kept and not judged.
        metric: what the mean of its scores is called.
        vote: ``pkg.mod:attr`` of ``f(completion) -> str | None``, what an answer votes for in a majority; None = there is no vote.
        cluster: column that says which rows belong together, such as questions about one picture; intervals draw these. None = each row
            is its own.
        category: column by which means are shown too.
        summary: ``pkg.mod:attr`` of ``f(answers) -> {name: number}``, further numbers of its own.
        layout: the folder layout that its pictures are left in, a name in ``LAYOUTS``.
        num_samples: answers a prompt, unless it is said.
    """

    about: str
    path: str
    task: str = "text"
    config: str | None = None
    split: str = "test"
    template: str = "{prompt}"
    columns: Mapping[str, str] = field(default_factory=dict)
    prepare: str | None = None
    judge: str | Mapping[str, Any] | None = None
    metric: str = "accuracy"
    vote: str | None = None
    cluster: str | None = None
    category: str | None = None
    summary: str | None = None
    layout: str | None = None
    num_samples: int = 1

    @property
    def reads(self) -> list[str]:
        """Columns that its template has, in order, each once."""
        names = [name for _, name, _, _ in string.Formatter().parse(self.template) if name]
        return list(dict.fromkeys(name.partition("[")[0].partition(".")[0] for name in names))

    @property
    def binary(self) -> bool:
        """Whether its scores are right or wrong."""
        return self.metric == "accuracy"


def find_task(name: str, table: Mapping[str, EvalTask]) -> EvalTask:
    """The task of that name in ``table``, or the user's own, ``pkg.mod:attr``.

    Raises:
        ValueError: no such task; the message has the nearest name.
    """
    if ":" not in name:
        check_choice("--tasks", name, tuple(table))
        return table[name]
    found = import_named(name)
    if not isinstance(found, EvalTask):
        raise ValueError(
            f"--tasks={name!r} is a {type(found).__name__}: make it an EvalTask (from unigrpo.runs.evaluate.task import EvalTask)"
        )
    return found


def build_judge(task: EvalTask, name: str) -> Callable | None:
    """The judge of ``task`` in the protocol of rewards; None where it has none.

    Raises:
        ValueError: a name that leads nowhere, or arguments that it does not take; it names the task.
    """
    from ...models.builtin import model_path  # Needs torch, which the list of tasks does not.

    if task.judge is None:
        return None
    own = dict(task.judge) if isinstance(task.judge, Mapping) else {"name": task.judge}
    own = {
        key: model_path(value) if key == "model" and isinstance(value, str) else value for key, value in own.items()
    }
    try:
        judge = get_reward(own.pop("name"), (), **own)
        if isinstance(judge, type):
            judge = judge()
        taken = inspect.signature(judge).parameters
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise ValueError(f"task {name}: judge: {error}") from error
    return judge if "completions" in taken else Right(judge)


class Right:
    """``f(completion, solution) -> bool`` as a reward: 1.0 for a right answer, 0.0 for a wrong one, None without a solution."""

    def __init__(self, function: Callable[[Any, Any], bool]) -> None:
        self.function, self.__name__ = function, getattr(function, "__name__", type(function).__name__)

    def __call__(self, completions: list, solution: list | None = None, **_: Any) -> list[float | None]:
        """One score a row.

        Raises:
            ValueError: there is no column ``solution``.
        """
        if solution is None:
            raise ValueError(f"{self.__name__} needs a `solution` column in the dataset, and there is none")
        answers = [completion_text(own) if isinstance(own, list) else own for own in completions]
        pairs = zip(answers, solution, strict=True)
        return [None if gold is None else float(bool(self.function(own, gold))) for own, gold in pairs]

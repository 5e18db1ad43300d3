"""The part of a trainer that leaves a ``README.md`` beside what it saves, and pushes both to the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ...models import POLICIES
from ...models.adapters import describe
from ...models.hub import asking_once, pushing
from ...models.opening import lineage
from ...models.reference import is_peft
from ..card import CARD, Facts, algorithm_lines, card_of, dataset_name, is_ours, sealed
from .files import named, write_text
from .run_record import RunRecord


USES = {"train_dataset": "trained on", "sft_dataset": "given answers", "eval_dataset": "held out"}


class Carded:
    """A mixin before ``transformers.Trainer``: a saved model has a card, and one that a user wrote or changed stays as it is.

    Attributes:
        held_out: by "before" and "after", numbers by name, where they were measured beside the logs.
    """

    about: dict[str, Any] = {}
    held_out: dict[str, dict[str, float]] = {}
    run: RunRecord | None = None
    _aside: Path | None = None
    _tag_names: list[str] = []
    _curve: tuple[str, ...] = ("reward", "kl", "loss")
    """Metrics that the card's table of the run shows."""

    def _method(self) -> tuple[list[str], str | None]:
        """Lines of the card on what was trained, and the arXiv id of the method."""
        rewards = self._settings()[0]["rewards"]
        return algorithm_lines(self.args.algorithm_name, [(own["name"], own["weight"]) for own in rewards])

    def _facts(self, name: str, folder: Path) -> Facts:
        model = self.accelerator.unwrap_model(self.model)
        config = model.peft_config[model.active_adapter] if is_peft(model) else None
        whole: Any = model if config is None else model.get_base_model()
        base = (config is not None and config.base_model_name_or_path) or getattr(whole, "name_or_path", "") or ""
        data = self.about.get("datasets") or {use: _names(getattr(self, own, None), own) for own, use in USES.items()}
        method, paper = self._method()
        with asking_once(offline=True):  # What was trained on lies here.
            stacked = config is not None and bool(base) and len(lineage(base)) > 1
        return Facts(
            name=name,
            base=base,
            # FSDP2 gives a module another class.
            kind=next(own for own in type(whole).__mro__ if not own.__module__.startswith("torch.")),
            policy=_own_policy(type(self.policy)),
            adapter=None if config is None else describe(config),
            base_has_adapter=stacked,
            method=method,
            paper=paper,
            data=data,
            columns=self._curve,
            history=self.state.log_history,
            held_out=self.held_out,
            picture=(folder / "reward_curve.png").is_file(),
            identity={} if self.run is None else self.run.identity,
        )

    def write_card(self, folder: Path, name: str | None = None, **metadata: Any) -> None:
        """The card of what lies in ``folder``; ``metadata`` as in ``card_of``. One that a user wrote or changed stays."""
        path, hub = folder / CARD, getattr(self, "hub_model_id", None)
        if path.exists() and not is_ours(path):
            self._tell(
                f"{path} is left as it is, somebody wrote or changed it: move it away to get the card of this run"
            )
            return
        metadata = {"tags": list(self._tag_names), **metadata}
        text = card_of(self._facts(name or hub or folder.resolve().name, folder), hub_only=hub is not None, **metadata)
        with named(path):
            if self._aside is None:
                write_text(path, sealed(text))
            else:  # The folder is published as a whole.
                path.write_text(sealed(text))

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """The card of the run's folder, see ``write_card``; the arguments go into its metadata as in transformers."""
        if not self.is_world_process_zero():
            return
        given = {"language": language, "license": license, "base_model": finetuned_from, "model_name": model_name}
        given |= {"datasets": dataset_tags or dataset, "pipeline_tag": tasks, "dataset_args": dataset_args}
        own = [tags] if isinstance(tags, str) else list(tags or [])
        given["tags"] = list(dict.fromkeys([*self._tag_names, *own]))
        self.write_card(
            Path(str(self.args.output_dir)), **{key: value for key, value in given.items() if value is not None}
        )

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As in transformers.

        Raises:
            SourceError: the hub does not answer, or does not let this user make the repository.
        """
        with pushing(str(self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name)):
            super().init_hf_repo(token, private)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with ``create_model_card``'s card.

        Raises:
            SourceError: the hub does not answer, or does not let this user write there; the model is saved then.
        """
        with pushing(str(getattr(self, "hub_model_id", None) or self.args.hub_model_id or "the model")):
            return super().push_to_hub(*args, **kwargs)


def _names(dataset: Any, name: str) -> list[str]:
    if dataset is None:
        return []
    return [
        dataset_name(part, own) for own, part in (dataset if isinstance(dataset, dict) else {name: dataset}).items()
    ]


def _own_policy(policy: type) -> str | None:
    """The path of a family that is not the library's."""
    return None if policy in POLICIES.values() else f"{policy.__module__}:{policy.__qualname__}"


@contextmanager
def without_card_of_peft(model: nn.Module) -> Iterator[None]:
    """Inside, PEFT writes no card of its own, and changes none that is there."""
    if is_peft(model):
        vars(model)["create_or_update_model_card"] = lambda folder: None
    try:
        yield
    finally:
        vars(model).pop("create_or_update_model_card", None)

"""Every knob of a fine-tuning run on given answers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from transformers import TrainingArguments

from ..algorithm.denoising import MaskedDenoising
from ..data.pictures import TRANSFORMS
from ..parts import MOST_REPEATS, key, keys_of
from .accepted import ImageSize, ImageTokenizer
from .denoising_presets import objectives_of, unread
from .inherited import settle_inherited
from .overrides import TEMPLATE_KWARGS, read_mapping, read_template_kwargs
from .run_checks import settle_best_model, settle_checkpointing, settle_compile
from .sorted_keys import OF_GIVEN_ANSWERS, check_inherited
from .tokens import TokensUnsaved
from .trl_keys import OF_SFT, check_known


@dataclass(repr=False)  # The mixin's, which shows no token.
class MaskedDenoisingConfig(TokensUnsaved, TrainingArguments):
    """Arguments of ``MaskedDenoisingTrainer``: ``transformers.TrainingArguments`` plus the fields below.

    The keys of the objective are None while they are not given: then the preset ``objective`` decides, task by task. What is given
    holds for every task, unless ``task_overrides`` says otherwise.

    Raises:
        ValueError: a value, or a combination, that cannot train; the message names the cure.
    """

    _VALID_DICT_FIELDS = [
        *TrainingArguments._VALID_DICT_FIELDS,
        *("model_init_kwargs", "chat_template_kwargs", "task_overrides", "sampling_weights"),
    ]

    objective: str = key(
        "mmada_cot", "the published losses whose values are taken where none are given, or pkg.mod:attr"
    )
    model_init_kwargs: dict[str, Any] | str | None = key(None, "arguments of the model's from_pretrained")
    attn_mask_mode: str | None = key(
        None, "written into the model's config; none leaves it alone", choices=("bool", "none")
    )
    chat_template_kwargs: dict[str, Any] | str | None = key(None, TEMPLATE_KWARGS)
    disable_dropout: bool = key(True, "all dropout to 0")
    remove_unused_columns: bool = key(False, "the columns of a row are read by their names, so they stay")
    learning_rate: float | None = key(None, "none = 1e-5, with adapters 1e-4")  # type: ignore[assignment]  # the trainer decides
    logging_steps: float = key(10, "optimizer steps between two log lines")
    ddp_find_unused_parameters: bool | None = key(
        False, "every backward reaches every trained weight; a model of your own that leaves some out needs true"
    )
    max_length: int = key(
        512, "positions of a row with text, the codes of its picture not counted; padding fills them up", at_least=2
    )
    thought_length: int | None = key(
        None,
        """positions of a thought and its padding (task r2i): give it the max_completion_length that thoughts are sampled with, so that
        pictures stand as far behind them as in training; none = all that the prompt leaves of max_length""",
        at_least=1,
    )
    overlong: str = key(
        "error", "a row that does not fit: an error, or dropped, and counted once a source", choices=("error", "drop")
    )
    train_turns: str = key("last", "the answers of a chat that are trained", choices=("last", "all"))
    sampling_weights: dict[str, float] | str | None = key(
        None, "{source: weight}, how often rows of each come; no weights of losses. None = by their numbers of rows"
    )
    shuffle_dataset: bool = key(True, "every source in a new order each time it has been walked through")
    num_eval_draws: int = key(4, "fixed corruptions of each held-out row", at_least=1, at_most=MOST_REPEATS)
    image_tokenizer: ImageTokenizer = key(
        None,
        "id, path, builtin:NAME or module of the tokenizer of pictures; none = the one that the model's config names",
    )
    image_size: ImageSize = key(None, "side of pictures in pixels; none = the policy's")
    image_transform: str = key(
        "squash", "how pictures get that size; a row's own image_transform column wins", choices=TRANSFORMS
    )
    offload_image_tokenizer: bool = key(False, "the image tokenizer is on the CPU but while it is used")
    overwrite: bool = key(
        False, "what another run left in output_dir is deleted when training starts; nothing that a user put there"
    )
    task_overrides: dict[str, Any] | str | None = key(
        None, "{task: {key: value}} of the objective's keys; a task may be added"
    )

    # ---- keys of the objective, described at ``MaskedDenoising``; None = not given ----
    law: str | None = None
    mask_ratio_min: float | None = None
    mask_ratio_max: float | None = None
    tries: int | None = None
    hide_whole: int | None = None
    spans: str | None = None
    train_visible: bool | None = None
    weight: str | None = None
    cart_p: float | None = None
    denominator: str | None = None
    train_padding: str | None = None
    train_marks: bool | None = None
    caption_dropout: float | None = None
    swap_prompt: float | None = None
    coefficient: float | None = None
    # ---- end of the keys of the objective ----

    def __new__(cls, *values: Any, **named: Any) -> MaskedDenoisingConfig:
        check_known(named, (own.name for own in fields(cls)), "MaskedDenoisingConfig", OF_SFT.get)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        settle_inherited(self)
        check_inherited(self, OF_GIVEN_ANSWERS)
        settle_checkpointing(self)
        settle_compile(self)
        settle_best_model(self, "eval_loss")
        self.task_overrides = read_mapping("task_overrides", self.task_overrides) or {}
        self.sampling_weights = read_mapping("sampling_weights", self.sampling_weights)
        self.chat_template_kwargs = read_template_kwargs(self.chat_template_kwargs)
        for name, about in DENOISING_KEYS.items():
            if name not in ("image_tokenizer", "task_overrides", "sampling_weights", "image_size"):
                setattr(self, name, about.read(getattr(self, name)))
        self.objectives  # noqa: B018  # It raises for keys that no objective takes.
        if lost := unread(self.objective, self._given(), self._overrides()):
            warnings.warn(f"objective {self.objective!r} does not read what was set: {'; '.join(lost)}", stacklevel=3)
        # The parent class wants a number, and must not see torch_compile, with which it turns on TF32.
        held: dict[str, Any] = {"learning_rate": self.learning_rate or 0.0, "torch_compile": False}
        held |= {"torch_compile_backend": None, "torch_compile_mode": None}
        own = {name: getattr(self, name) for name in held}
        vars(self).update(held)
        super().__post_init__()
        vars(self).update(own)

    @property
    def objectives(self) -> dict[str, MaskedDenoising]:
        """The objective of each task that has one."""
        return objectives_of(self.objective, self._given(), self._overrides())

    def _given(self) -> dict[str, Any]:
        """The objective's keys that every task is given."""
        return {name: getattr(self, name) for name in keys_of(MaskedDenoising) if getattr(self, name) is not None}

    def _overrides(self) -> dict[str, Any]:
        assert isinstance(self.task_overrides, dict), "a mapping since the config was made"
        return self.task_overrides


DENOISING_KEYS = {name: about for name, about in keys_of(MaskedDenoisingConfig).items() if about.help}
"""The keys of a fine-tuning run that are not the objective's."""

for _item in fields(MaskedDenoisingConfig):
    # Parsers of the command line hand a field's metadata to ``argparse``.
    _about = {**keys_of(MaskedDenoising), **DENOISING_KEYS}.get(_item.name)
    if _about is not None:
        _item.metadata = MappingProxyType({"help": _about.help.replace("%", "%%")})

"""What stands behind the page: a policy, what it can do, and one answer of it with its rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import RecipeError
from ...models.adapter_files import ADAPTER_FILE
from ...models.base import DiffusionPolicy
from ...models.builtin import model_name
from ...models.opening import lineage
from ...models.reference import is_peft
from ...rewards import REWARDS, get_reward
from ...rollout.generate import LoadedPolicy, load_policy
from ...rollout.rewards import RewardSet
from ...rollout.thoughts import ThoughtAndPicture
from ...types import Sample, is_picture, spans_of
from ..bounded_yaml import read_yaml
from ..reach import SERVICES
from .live import Column, Frame, Span, answer
from .settings import OF_TASK, SETTINGS


DEFAULT = "builtin:shapes"

PICTURE_REWARDS = (
    *("aesthetic", "clip_score", "colour", "hps_v2", "image_reward", "jpeg_size", "ocr", "pick_score", "siglip_score"),
)
NAMED = (*SERVICES, "object_check")
"""Rewards that ask a service or a detector, which has to be named."""

LOADING = ("dtype", "policy", "image_tokenizer")
"""Keys that say how a model is loaded, beside those of ``SETTINGS``."""


@dataclass(slots=True, kw_only=True)
class Talker:
    """A policy, and what the page starts from.

    Attributes:
        name: as it was asked for.
        base: what lies beneath an adapter; else the same.
        tasks: what it can do.
        compared: it lies on a base, and both answer.
        starts: values of settings that the command line gives.
    """

    loaded: LoadedPolicy
    name: str
    base: str
    tasks: tuple[str, ...]
    compared: bool = False
    starts: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, str]:
        """Those of ``base`` and of its image tokenizer, "" where there is none."""
        return self.base, str(getattr(self.loaded.model.config, "image_tokenizer", None) or "")

    def settings(self, task: str) -> tuple[str, ...]:
        """What may be set of ``task``: blocks of attention have a length, and without a mask id nothing guides."""
        policy = self.loaded.policy
        can = {"block_length": policy.block_size is None, "guidance_scale": policy.mask_token_id is not None}
        return tuple(key for key in OF_TASK[task] if can.get(key, True))

    def start(self, key: str, task: str) -> Any:
        """The value that a setting begins with."""
        setting = SETTINGS[key]
        usual = getattr(self.loaded.model.config, "sampling_defaults", None) or {}
        if key in self.starts:
            return self.starts[key]
        written = key == "max_completion_length" or not is_picture(spans_of(task)[-1])
        return usual.get(key, setting.of_text) if written else setting.of_pictures

    def answer(
        self,
        prompt: str,
        show: Callable[[Frame], None],
        *,
        task: str,
        image: Image.Image | None = None,
        settings: dict[str, Any],
        reward: str | None = None,
        gold: str = "",
    ) -> None:
        """Answers, and shows each step; with an adapter first the base and then the adapter, from one seed.

        Raises:
            ValueError: nothing was asked, or what cannot be done, in a sentence.
        """
        prompt = (prompt or "").strip()
        if not prompt:
            raise ValueError("There is no prompt: write one, or click an example.")
        if task == "mmu" and image is None:
            raise ValueError("There is no picture: upload one, or click an example.")
        judged = None if not reward else get_reward(reward)
        columns = ["base", "adapter"] if self.compared else [""]
        frame: list[Column] = []
        for title in columns:
            column = Column(title=title)
            frame.append(column)

            def shown(spans: tuple[Span, ...], column: Column = column) -> None:
                frame[-1] = replace(column, spans=spans)
                show(tuple(frame))

            found = answer(
                self.loaded,
                prompt,
                task=task,
                image=image,
                settings=settings,
                show=shown,
                with_adapter=title != "base",
            )
            if judged is not None:
                note = f"{reward}: {score(judged, prompt, found, task, image, gold)}"
                frame[-1] = replace(frame[-1], note=note)
                show(tuple(frame))


def score(
    reward: Callable, prompt: str, found: Any, task: str, image: Image.Image | None = None, gold: str = ""
) -> str:
    """What a reward says of an answer, to be read."""
    completion = found.picture if isinstance(found, ThoughtAndPicture) else found
    row = {"prompt": prompt, "solution": gold.strip() or None}
    images = None if image is None else [image]
    sample = Sample(row=row, completion=completion, completion_ids=[], task=task, images=images)
    try:
        (value,) = RewardSet(functions=[reward]).score([sample]).values[:, 0].tolist()
    except ValueError as error:
        return f"no score, {error}"
    return "does not apply (is the gold answer missing?)" if math.isnan(value) else f"{value:.3g}"


def rewards_of(task: str) -> list[str]:
    """Names of the rewards that may judge answers of a task."""
    drawn = is_picture(spans_of(task)[-1])
    return [name for name in sorted(REWARDS) if (name in PICTURE_REWARDS) == drawn and name not in NAMED]


def opened(model: str | None, adapter: str | None, overrides: Sequence[str] = ()) -> Talker:
    """The policy that the command line names, its image tokenizer loaded.

    Raises:
        ValueError: a key that is unknown or out of range, an adapter of another model, or as ``load_policy``.
    """
    given = parsed(overrides)
    path = model or DEFAULT if adapter is None else _on_its_base(model, adapter)
    loaded = load_policy(path, **{key: given.pop(key) for key in LOADING if key in given})
    tasks: tuple[str, ...] = ("text",)
    if loaded.image_tokenizer is not None or loaded.policy.image_tokenizer is not None:
        loaded._codec()
        tasks = ("text", "mmu", "t2i")
        draws = type(loaded.policy).encode_thought is not DiffusionPolicy.encode_thought
        # A family that edits while it thinks needs a picture, which the page does not ask for there.
        if draws and not getattr(loaded.model.config, "edits_with_thoughts", False):
            tasks += ("r2i",)
    base = model_name(lineage(path)[-1]) if is_peft(loaded.model) else path
    talker = Talker(
        loaded=loaded, name=path, base=base, tasks=tasks, compared=base != path and adapter is not None, starts=given
    )
    for key, value in given.items():
        if not any(key in talker.settings(task) for task in tasks):
            raise RecipeError(f"{key}={value!r}: {path} is not asked for it on any tab; leave it out")
    return talker


def parsed(overrides: Sequence[str]) -> dict[str, Any]:
    """``key=value`` words as settings.

    Raises:
        RecipeError: an unknown key, or a value that it cannot have.
    """
    found: dict[str, Any] = {}
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or key not in (*SETTINGS, *LOADING):
            raise RecipeError(f"{word!r}: give KEY=VALUE with one of {[*SETTINGS, *LOADING]}")
        value = read_yaml(text)
        found[key] = SETTINGS[key].checked(value) if key in SETTINGS else str(value)
    return found


def _on_its_base(model: str | None, adapter: str) -> str:
    """The adapter's path, once it is seen to lie on ``model``."""
    found = lineage(adapter)
    if len(found) == 1:
        raise ValueError(f"--adapter={adapter!r} is no adapter: it has no {ADAPTER_FILE}")
    wanted = found[1] if model is None else lineage(model)[0]
    same = found[1] == wanted or (
        Path(found[1]).exists() and Path(wanted).exists() and Path(wanted).samefile(found[1])
    )
    if not same:
        raise ValueError(f"--adapter={adapter!r} was trained on {found[1]!r}, not on {model!r}: leave the model out")
    return adapter

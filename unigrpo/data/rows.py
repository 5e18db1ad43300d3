"""Dataset rows: their task, their picture, and whether a run can use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image

from ..errors import check_choice
from ..types import IMAGE_IN, TASKS
from .checking import each_row
from .columns import as_renaming, meant
from .pictures import TRANSFORMS, load_image


def task_of(row: dict[str, Any]) -> str:
    """The row's ``task``, or ``mmu`` when it has an image, else ``text``."""
    if row.get("task"):
        return row["task"]
    return "mmu" if has_image(row) else "text"


def has_image(row: dict[str, Any]) -> bool:
    """Whether the row has a picture in ``image`` or ``images``."""
    return row.get("image") is not None or bool(row.get("images"))


def shows_image(row: dict[str, Any]) -> bool:
    """Whether the policy reads a picture with the row's prompt: one to ask about, one to edit, or one to think about and edit."""
    task = task_of(row)
    return task in IMAGE_IN or (task == "r2i" and has_image(row))


def image_of(row: dict[str, Any], where: str) -> Image.Image:
    """The RGB picture that a row asks about, or wants edited.

    Args:
        where: names the row in errors, such as ``train_dataset[3]``.

    Raises:
        ValueError: no picture, several, or one that cannot be read; the message names row and column.
    """
    if row.get("image") is not None:
        return load_image(row["image"], f"{where}['image']")
    images, edits = row.get("images"), task_of(row) == "i2i"
    if images is None or len(images) == 0:
        raise ValueError(
            f"{where} is {'a row to edit' if edits else 'an image-understanding row'} without an image; give an 'image' or 'images' "
            f"column, or task={'t2i' if edits else 'text'!r}"
        )
    if len(images) > 1:
        raise ValueError(
            f"{where}['images'] holds {len(images)} images; the policy reads one a prompt: keep one, or lay them side by side"
        )
    return load_image(images[0], f"{where}['images'][0]")


def undecoded(dataset: Any) -> Any:
    """A ``datasets.Dataset`` whose image columns stay encoded, so that a damaged picture is met by ``load_image``."""
    for name, feature in (getattr(dataset, "features", None) or {}).items():
        # Casting lists of pictures would write the whole dataset anew; those are decoded row by row.
        if type(feature).__name__ == "Image" and feature.decode:
            dataset = dataset.cast_column(name, type(feature)(decode=False))
    return dataset


def read_row(dataset: Any, index: int, where: str) -> dict[str, Any]:
    """One row; a picture that the dataset itself cannot decode is an error that names row and column."""
    try:
        return dataset[index]
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        features = getattr(dataset, "features", None) or {}
        lists = [name for name, own in features.items() if type(getattr(own, "feature", None)).__name__ == "Image"]
        where += f"[{lists[0]!r}]" if len(lists) == 1 else ""
        raise ValueError(f"{where} cannot be read ({error}); replace its picture or drop the row") from error


def as_prompts(dataset: Any) -> Any:
    """``dataset`` with the chats of its column ``messages`` as ``prompt`` where it has none; other rows as they are."""
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list):
        renamed = "messages" in columns and "prompt" not in columns
        return dataset.rename_column("messages", "prompt") if renamed else dataset
    if not isinstance(dataset, list | tuple):
        return dataset
    return [
        {"prompt" if name == "messages" else name: value for name, value in row.items()}
        if isinstance(row, dict) and "messages" in row and "prompt" not in row
        else row
        for row in dataset
    ]


def check_dataset(
    dataset: Any,
    name: str,
    check_row: Callable[[dict[str, Any], str], Any] | None = None,
    learn: Callable[[Any], None] | None = None,
) -> None:
    """Reads every row once, so that one that cannot be used is found now and not hours into a run.

    Args:
        name: names the dataset in errors.
        check_row: further checks, ``check_row(row, where)``; of many rows they run in other processes (``each_row``).
        learn: is told what ``check_row`` returned of each row, in order.

    Raises:
        ValueError: an empty set, a missing or empty prompt, an unknown task, an unreadable picture; it names the row.
    """
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            f"{name} is a {type(dataset).__name__} without a length; windows need one: load it without streaming"
        )
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty")

    def looked_at(index: int) -> Any:
        where = f"{name}[{index}]"
        row = read_row(dataset, index, where)
        _check_row(row, where)
        return None if check_row is None else check_row(row, where)

    for found in each_row(len(dataset), name, looked_at):
        if learn is not None:
            learn(found)


def _check_row(row: dict[str, Any], where: str) -> None:
    if "prompt" not in row:
        found = meant(row, ("prompt", "solution"))
        cure = f"rename yours, as in dataset.{as_renaming(found)}" if "prompt" in found else "rename yours"
        raise ValueError(f"{where} has no 'prompt' column, only {sorted(row)}; {cure}, or give 'messages'")
    task = task_of(row)
    _check_prompt(row["prompt"], task, where)
    _check_parts(row, where)
    if task not in TASKS:
        raise ValueError(f"{where}['task']={task!r}: choose one of {TASKS}")
    if shows_image(row):
        image_of(row, where)
    transform = row.get("image_transform")
    if transform is not None:
        check_choice(f"{where}['image_transform']", transform, TRANSFORMS)


PARTS = ("text", "image", "image_url")
"""Kinds of a message's parts; the picture itself is in a column."""


def _check_parts(row: dict[str, Any], where: str) -> None:
    """Raises ``ValueError`` for a part of a message that nothing would read."""
    said = [] if isinstance(row["prompt"], str) else [message["content"] for message in row["prompt"]]
    kinds = [part.get("type") for content in said if isinstance(content, list) for part in content]
    if unknown := [kind for kind in kinds if kind not in PARTS]:
        raise ValueError(
            f"{where}['prompt'] has a part of type {unknown[0]!r}, which nothing reads: choose among {PARTS}"
        )
    if set(kinds) - {"text"} and not shows_image(row):
        raise ValueError(
            f"{where}['prompt'] has a part of type 'image', and task {task_of(row)!r} of this row reads no picture: put it into the "
            "column 'image', or leave the part out"
        )


def _check_prompt(prompt: Any, task: str, where: str) -> None:
    if not prompt or not isinstance(prompt, str | list) or (isinstance(prompt, str) and not prompt.strip()):
        raise ValueError(f"{where}['prompt'] must be text or chat messages, got {prompt!r}")
    if isinstance(prompt, str):
        return
    for message in prompt:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"{where}['prompt']: every message needs 'role' and 'content', got {prompt!r}")
        if not isinstance(message["role"], str) or not message["role"].strip():
            raise ValueError(
                f"{where}['prompt']: a message has role {message['role']!r}; give each a name such as 'user', 'assistant' or 'system'"
            )
        content = message["content"]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        if not all(
            isinstance(part, dict) and (part.get("type") != "text" or isinstance(part.get("text"), str))
            for part in parts
        ):
            raise ValueError(
                f"{where}['prompt']: content must be text, or parts with 'type' and text, got {content!r}"
            )
    if prompt[-1]["role"] == "assistant":
        raise ValueError(
            f"{where}: the chat ends with the assistant, whose answer is what a run samples; end it with the user, or train the given "
            "answer with MaskedDenoisingTrainer (`unigrpo sft`)"
        )
    if task in ("t2i", "i2i") and not any(message["role"] == "user" and message["content"] for message in prompt):
        raise ValueError(f"{where}['prompt'] has no user message, so there is nothing to draw: {prompt!r}")

"""Rows with a given answer as people have them, brought to one form: a prompt, what is to be answered, and the task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..errors import check_choice
from ..types import TASKS
from .columns import as_renaming, meant
from .pictures import load_image
from .rows import has_image, image_of, task_of


ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
"""Who speaks in ``conversations`` (LLaVA's JSON), and the role of a chat."""

PLACEHOLDERS = ("<image>\n", "\n<image>", "<image>")
"""What stands for the picture in LLaVA's texts; the picture stands before the chat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """One row of fine-tuning.

    Attributes:
        row: the dataset row, with its ``prompt`` in the form that ``policy.encode`` reads.
        task: one of ``TASKS``.
        answer: the text that is trained; None for a picture to draw.
        plain: a text without a prompt: all of it is trained.
    """

    row: dict[str, Any]
    task: str
    answer: str | None
    plain: bool = False


def given_of(row: dict[str, Any], where: str) -> Given:
    """What a row asks and answers.

    A row has ``messages`` (a chat that ends with the assistant) or LLaVA's ``conversations``; or ``prompt`` and
    ``completion``; or ``text`` alone; with ``task="t2i"`` a ``prompt`` and the ``image`` to draw. With ``task="r2i"`` the answer is
    the thought and ``image`` what is drawn after it. Where there is an ``edited_image``, as in every row of ``"i2i"``, that is drawn, and
    ``image`` is what the prompt shows; else an ``image`` beside a text is what the text is about.

    Raises:
        ValueError: no answer, an empty one, or a chat that ends with somebody else; ``where`` names the row.
    """
    chat = _chat_of(row, where)
    if chat is not None:
        *asked, last = chat
        if last["role"] != "assistant" or not asked:
            raise ValueError(
                f"{where}: the chat has roles {[own['role'] for own in chat]}; it must ask and end with the assistant, "
                "whose last message is trained"
            )
        row = {**row, "prompt": asked, "completion": last["content"]}
    task = task_of(row)
    check_choice(f"{where}['task']", task, TASKS)
    if task in ("t2i", "i2i"):
        _asked(row, where)
        _picture(row, where)
        edited_of(row, where)
        return Given(row=row, task=task, answer=None)
    if "text" in row and "prompt" not in row and row.get("completion") is None:
        return Given(row=row, task=task, answer=_text(row["text"], f"{where}['text']"), plain=True)
    _asked(row, where)
    if task == "mmu":
        image_of(row, where)
    if task == "r2i":
        _picture(row, where)
        edited_of(row, where)
    completion = row.get("completion")
    if isinstance(completion, list) and len(completion) == 1 and isinstance(completion[0], dict):
        completion = completion[0].get("content")
    return Given(row=row, task=task, answer=_text(completion, f"{where}['completion']"))


def _asked(row: dict[str, Any], where: str) -> None:
    if not row.get("prompt"):
        found = meant([name for name in row if row[name] is not None], ("prompt", "completion"))
        cure = f", as in dataset.{as_renaming(found)}" if "prompt" in found else ""
        raise ValueError(
            f"{where} has no 'prompt', only {sorted(name for name in row if row[name] is not None)}: give prompt and completion, "
            f"messages, conversations or text{cure}"
        )


def _picture(row: dict[str, Any], where: str) -> None:
    if not has_image(row):
        raise ValueError(f"{where} is a caption without the picture to draw; give an 'image' column")
    image_of(row, where)


def edited_of(row: dict[str, Any], where: str) -> Image.Image | None:
    """The RGB picture that an edit makes of ``image``; None for rows that make none.

    Raises:
        ValueError: a row of ``i2i`` without one, or one that cannot be read.
    """
    if row.get("edited_image") is not None and task_of(row) in ("i2i", "r2i"):
        return load_image(row["edited_image"], f"{where}['edited_image']")
    if task_of(row) == "i2i":
        raise ValueError(f"{where} has an image to edit and no 'edited_image' column with what is drawn; give one")
    return None


def as_text(value: Any) -> Any:
    """A given answer that is a whole number as its text, which it was before a reader of CSV looked at it; else as it is."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _text(value: Any, where: str) -> str:
    value = as_text(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}={value!r} must be the text that is trained; name your column so, or drop the row")
    return value.strip()


def _chat_of(row: dict[str, Any], where: str) -> list[dict[str, Any]] | None:
    """The row's chat with roles of ours; None where it has none."""
    name = next((own for own in ("messages", "conversations") if row.get(own) is not None), None)
    if name is None:
        return None
    chat = []
    for number, turn in enumerate(row[name]):
        spoken = isinstance(turn, dict) and (turn.get("role") or turn.get("from"))
        content = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
        if spoken not in ROLES or not isinstance(content, str | list):
            raise ValueError(
                f"{where}[{name!r}][{number}]={turn!r} must have a role among {sorted(ROLES)} and a content (or from and value)"
            )
        if name == "conversations" and isinstance(content, str) and not number:
            for mark in PLACEHOLDERS:
                content = content.replace(mark, "")
        chat.append({"role": ROLES[spoken], "content": content})
    if not chat:
        raise ValueError(f"{where}[{name!r}] is empty")
    return chat

"""What a request holds: JSON of the reward ``remote`` as answers to be scored."""

from __future__ import annotations

import base64
import json
from typing import Any

from PIL import Image

from ...data.pictures import load_image
from ...rollout.reward_values import shortened
from ...types import TASKS, Sample


PNG = b"\x89PNG\r\n\x1a\n"
MAX_PIXELS_IN_ALL = 2**29
"""Of the pictures of one request, 1.6 GB of RGB: small files may hold large pictures."""

RESERVED = ("prompts", "completions", "task", "images", "completion_ids")
"""Keys that are no columns."""


class Refused(Exception):
    """A request that is not answered with scores; the message is one sentence for who sent it.

    Attributes:
        status: of HTTP.
        wait: seconds after which another attempt is worth it; None: the same request will not do.
    """

    def __init__(self, status: int, said: str, wait: int | None = None) -> None:
        super().__init__(said)
        self.status, self.wait = status, wait


def parsed(data: bytes, most: int) -> list[Sample]:
    """The answers of a request, at most ``most`` of them.

    Raises:
        Refused: it is not what was agreed, or too large.
    """
    try:
        body = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the request is no JSON ({shortened(error)})") from None
    if not isinstance(body, dict):
        raise Refused(
            400, f'the request must be an object of lists, such as {{"prompts": [...]}}; it is {_kind(body)}'
        )
    for name in ("prompts", "completions"):
        if not isinstance(body.get(name), list):
            raise Refused(
                400, f"the request needs {name!r}, a list with one item a row; it has {shortened(sorted(body))}"
            )
    rows = len(body["completions"])
    if rows > most:
        raise Refused(
            413, f"the request has {rows} rows, and at most {most} are taken: set batch_size of the reward `remote`"
        )
    for name, values in body.items():
        if not isinstance(values, list) or len(values) != rows:
            raise Refused(400, f"{shortened(name)!r} must be a list of {rows} items, one a row, as 'completions' is")
    reader = _Reader()
    try:
        return [_sample(body, row, reader) for row in range(rows)]
    except RecursionError:
        raise Refused(400, "the request nests lists and objects too deep") from None


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")


def _sample(body: dict[str, list], row: int, reader: _Reader) -> Sample:
    """The answer of one row."""
    prompt, where = body["prompts"][row], f"row {row}"
    if not (isinstance(prompt, str) or (isinstance(prompt, list) and all(isinstance(own, dict) for own in prompt))):
        raise Refused(
            400, f"prompts, {where}: a prompt is a text or a list of messages, not {shortened(repr(prompt))}"
        )
    completion = reader.read(body["completions"][row], f"completions, {where}")
    if not isinstance(completion, str | Image.Image):
        raise Refused(
            400, f"completions, {where}: a completion is a text or an image, not {shortened(repr(completion))}"
        )
    images = reader.read(body.get("images", {row: None})[row], f"images, {where}")
    if images is not None and not (isinstance(images, list) and all(isinstance(own, Image.Image) for own in images)):
        raise Refused(400, f"images, {where}: the images of a row are a list of images, or null")
    task = body.get("task", {row: None})[row]
    made = ("i2i", "t2i") if isinstance(completion, Image.Image) else ("mmu", "text")
    task = task or made[0 if images else 1]
    if task not in TASKS:
        raise Refused(400, f"task, {where}: {shortened(repr(task))} is none of {', '.join(TASKS)}")
    ids = body.get("completion_ids", {row: []})[row]
    if not (isinstance(ids, list) and all(type(own) is int for own in ids)):
        raise Refused(400, f"completion_ids, {where}: they are a list of whole numbers, not {shortened(repr(ids))}")
    columns = {name: reader.read(own[row], f"{name}, {where}") for name, own in body.items() if name not in RESERVED}
    given = {"row": {**columns, "prompt": prompt}, "completion": completion, "completion_ids": ids}
    return Sample(**given, task=task, images=images, index=row)


class _Reader:
    """JSON values as what they stand for; pictures are decoded, each file once."""

    def __init__(self) -> None:
        self.pixels = 0
        self.pictures: dict[str, Image.Image] = {}

    def read(self, value: Any, where: str) -> Any:
        if isinstance(value, list):
            return [self.read(own, where) for own in value]
        if not isinstance(value, dict):
            return value
        if value.get("type") == "image" and set(value) == {"type", "png"}:
            return self._picture(value["png"], where)
        return {name: self.read(own, where) for name, own in value.items()}

    def _picture(self, text: Any, where: str) -> Image.Image:
        if not isinstance(text, str):
            raise Refused(400, f'{where}: an image is {{"type": "image", "png": "<PNG file in base64>"}}')
        if text not in self.pictures:
            try:
                data = base64.b64decode(text, validate=True)
            except ValueError as error:
                raise Refused(400, f"{where}: an image is no base64 ({error})") from None
            if not data.startswith(PNG):
                raise Refused(400, f"{where}: an image is no PNG file")
            # Width and height stand at a fixed place of the file.
            self.pixels += int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big")
            if self.pixels > MAX_PIXELS_IN_ALL:
                raise Refused(
                    413, f"the pictures of a request may have {MAX_PIXELS_IN_ALL} pixels in all: set batch_size"
                )
            try:
                self.pictures[text] = load_image(data, where)
            except ValueError as error:
                raise Refused(400, str(error)) from None
        return self.pictures[text]

"""Does a picture show the objects that were asked for: how many, in which colours, where?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..errors import import_named
from ._arguments import check, is_whole, wrong_value


Detector = Callable[[list[Image.Image], list[list[str]]], Sequence[Sequence[Mapping[str, Any]]]]
"""RGB pictures, and of each the classes that its row names -> of each the objects found. An object has ``class``, and as
far as the detector can tell ``score`` in [0, 1], ``box`` (left, top, right, bottom in pixels), ``color``, ``position``."""

RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
MARGIN = 0.1
"""Share of the two objects' sizes by which their middles must be apart in a direction before it counts."""

CURE = 'a list, or its JSON text, of objects such as {"class": "bench", "count": 2, "color": "red", "position": ["left of", 0]}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One item of ``include`` or ``exclude``. ``position``: a relation and the place of an earlier item, or a word."""

    name: str
    count: int = 1
    colour: str | None = None
    position: tuple[str, int] | str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one picture is to show, and how sure a detection has to be."""

    include: list[Wanted]
    exclude: list[Wanted]
    threshold: float

    @property
    def classes(self) -> list[str]:
        """Every class that it names, once."""
        return list(dict.fromkeys(own.name for own in (*self.include, *self.exclude)))


class ObjectCheck:
    """Whether a picture shows what its row asks for, as GenEval checks it; range {0, 1}, with ``partial`` [0, 1].

    1.0 where every item of ``include`` is there, at least ``count`` times, the surest ones in the colour and at the
    position asked for, and no item of ``exclude`` as often as its ``count``. With ``partial`` the mean of all these
    conditions, each by the share that holds: 1.0 in the same cases. A relation counts between objects that are otherwise
    as asked. GenEval, arXiv 2310.11513; its own detector is Mask2Former, with CLIP for the colours. Scores are only as
    good as the detector that is given.

    Args:
        detector: see ``Detector``; or its ``pkg.mod:attr``. A class is made first, with ``detector_args``.
        partial: a share instead of all or nothing; groups of a policy that often fails then teach something.
        threshold: lowest ``score`` of an object that counts; ``counting_threshold`` in rows with the ``tag`` "counting".
        batch_size: pictures in one call of the detector.

    Raises:
        ValueError: an argument is out of range, or ``detector`` leads nowhere.
    """

    __name__ = "object_check"
    NAMES_CODE = ("detector",)

    def __init__(
        self,
        detector: str | Detector,
        *,
        detector_args: Mapping[str, Any] | None = None,
        partial: bool = False,
        threshold: float = 0.3,
        counting_threshold: float = 0.9,
        batch_size: int = 32,
    ) -> None:
        name = self.__name__
        check(isinstance(partial, bool), name, "partial", partial, "true or false")
        check(is_whole(batch_size, 1), name, "batch_size", batch_size, "a whole number of at least 1")
        for key, value in (("threshold", threshold), ("counting_threshold", counting_threshold)):
            right = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
            check(right, name, key, value, "a number from 0 to 1")
        if isinstance(detector, str):
            detector = import_named(detector)
        check(callable(detector), name, "detector", detector, "a function, a class or a 'pkg.mod:attr' path")
        if isinstance(detector, type):
            detector = detector(**(detector_args or {}))
        else:
            check(not detector_args, name, "detector_args", detector_args, "left out: the detector is no class")
        self.detector, self.partial, self.batch_size = detector, partial, batch_size
        self._thresholds = (threshold, counting_threshold)

    def __call__(
        self,
        prompts: list,
        completions: list,
        include: list | None = None,
        exclude: list | None = None,
        metadata: list | None = None,
        tag: list | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """One score a row; None where it is no picture or a broken one, and where nothing is asked for.

        ``log_metric`` receives ``object_check/failed``, the pictures that cannot be read.

        Args:
            include, exclude: dataset columns: lists of objects, or their JSON texts.
            metadata: dataset column: a mapping with ``include``, ``exclude`` and ``tag``, or its JSON text, as in GenEval's
                files; for rows without ``include`` and ``exclude``.
            tag: dataset column: "counting" asks for ``counting_threshold``.

        Raises:
            ValueError: pictures without any of these columns, a value that is none of these, or a detector that does not
                return a list of objects a picture.
        """
        pictures = [place for place, own in enumerate(completions) if isinstance(own, Image.Image)]
        if pictures and include is exclude is metadata is None:
            raise ValueError(
                "object_check needs a column `include`, `exclude` or `metadata` in the dataset, and there is none"
            )
        nothing = [None] * len(completions)
        columns = list(zip(*(own or nothing for own in (include, exclude, metadata, tag)), strict=True))
        rows = {place: row for place in pictures if (row := self._row(*columns[place])) is not None}
        seen = {}
        for place in rows:
            try:
                seen[place] = completions[place].convert("RGB")
            except (OSError, ValueError, SyntaxError):  # what PIL raises for a broken picture
                continue
        if rows and log_metric is not None:
            log_metric("object_check/failed", float(len(rows) - len(seen)))
        scores: list[float | None] = list(nothing)
        places = list(seen)
        for start in range(0, len(places), self.batch_size):
            batch = places[start : start + self.batch_size]
            found = self.detector([seen[place] for place in batch], [rows[place].classes for place in batch])
            for place, objects in zip(batch, _lists(found, len(batch)), strict=True):
                terms = conditions(rows[place], objects)
                scores[place] = sum(terms) / len(terms) if self.partial else float(all(term == 1 for term in terms))
        return scores

    def _row(self, include: Any, exclude: Any, metadata: Any, tag: Any) -> Row | None:
        if include is None and exclude is None and metadata is not None:
            metadata = _read("metadata", metadata, Mapping)
            include, exclude = metadata.get("include"), metadata.get("exclude")
            tag = metadata.get("tag") if tag is None else tag
        included, excluded = _items("include", include), _items("exclude", exclude)
        if not included and not excluded:
            return None
        return Row(include=included, exclude=excluded, threshold=self._thresholds[tag == "counting"])


def conditions(row: Row, found: Sequence[Mapping[str, Any]]) -> list[float]:
    """How far each condition of a row holds, in [0, 1]: of ``include`` number, colour and position, then ``exclude``."""
    sure = sorted((own for own in found if own.get("score", 1) >= row.threshold), key=lambda own: -own.get("score", 1))
    by_class = {name: [own for own in sure if own["class"] == name] for name in row.classes}
    terms: list[float] = []
    groups: list[list[Mapping[str, Any]] | None] = []
    for item in row.include:
        group = by_class[item.name][: item.count]
        own = [len(group) / item.count]
        if item.colour is not None:
            own.append(sum(_colour(one) == item.colour for one in group) / item.count)
        if isinstance(item.position, str):
            own.append(sum(one.get("position") == item.position for one in group) / item.count)
        elif item.position is not None:
            relation, place = item.position
            target = groups[place] if own == [1] * len(own) else None
            pairs = [(one, other) for one in group for other in target or []]
            own.append(sum(relation in relations(*pair) for pair in pairs) / len(pairs) if pairs else 0.0)
        groups.append(group if all(term == 1 for term in own) else None)
        terms += own
    for item in row.exclude:
        number = len(by_class[item.name])
        terms.append(1.0 if number < item.count else (item.count - 1) / number)
    return terms


def relations(one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    """How ``one`` lies to ``other``, by the middles of their boxes and GenEval's margin; two at a slant, or none."""
    boxes = [own.get("box") for own in (one, other)]
    if any(box is None for box in boxes):
        raise ValueError("object_check: a relation of two objects needs their `box`, and the detector gave none")
    apart, kept = [], []
    for low, high in ((0, 2), (1, 3)):
        middle = [(box[low] + box[high]) / 2 for box in boxes]
        sizes = sum(abs(box[high] - box[low]) for box in boxes)
        apart.append(middle[0] - middle[1])
        kept.append(math.copysign(max(abs(apart[-1]) - MARGIN * sizes, 0), apart[-1]))
    length = math.hypot(*apart)
    if length == 0 or max(map(abs, kept)) < 1e-3:
        return set()
    return {name for name, way in RELATIONS.items() if (kept[0] * way[0] + kept[1] * way[1]) / length > 0.5}


def _colour(found: Mapping[str, Any]) -> Any:
    return found.get("colour") if found.get("color") is None else found["color"]


def _lists(found: Any, count: int) -> Sequence[Sequence[Mapping[str, Any]]]:
    right = isinstance(found, Sequence) and len(found) == count
    if not right or not all(isinstance(one, Mapping) and "class" in one for own in found for one in own):
        raise ValueError(
            f"object_check: the detector must return a list of {count}, for each picture a list of mappings with `class`"
        )
    return found


def _read(column: str, value: Any, kind: type) -> Any:
    """A value of a column, out of its JSON text where it is one."""
    cure = CURE if kind is Sequence else "a mapping, or its JSON text, with `include`, `exclude` and `tag`"
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise wrong_value("object_check", column, value, cure) from error
    if not isinstance(value, kind) or isinstance(value, str):
        raise wrong_value("object_check", column, value, cure)
    return value


def _items(column: str, value: Any) -> list[Wanted]:
    items: list[Wanted] = []
    for own in [] if value is None else _read(column, value, Sequence):
        item = _item(own, len(items))
        if item is None:
            raise wrong_value("object_check", column, own, CURE)
        items.append(item)
    return items


def _item(own: Any, before: int) -> Wanted | None:
    """One object that is asked for, behind ``before`` others; None for a value that is none."""
    if not isinstance(own, Mapping) or not isinstance(own.get("class"), str):
        return None
    # A table of rows has null where an object lacks a key that another one has.
    count = 1 if own.get("count") is None else own["count"]
    colour, position = _colour(own), own.get("position")
    if isinstance(position, list | tuple):
        if len(position) != 2 or position[0] not in RELATIONS or not is_whole(position[1], 0) or position[1] >= before:
            return None
        position = (position[0], position[1])
    elif not isinstance(position, str | None):
        return None
    if not is_whole(count, 1) or not isinstance(colour, str | None):
        return None
    return Wanted(name=own["class"], count=count, colour=colour, position=position)

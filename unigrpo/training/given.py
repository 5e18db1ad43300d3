"""Given answers on their canvas: which tokens of a row are context, which are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..algorithm.denoising import Hidden, MaskedDenoising
from ..config.denoising_arguments import MaskedDenoisingConfig
from ..data.given import Given, edited_of, given_of
from ..data.image_codes import ImageCodec
from ..data.rows import image_of
from ..errors import TooLongError
from ..models.base import DiffusionPolicy
from ..types import SPANS, Canvas, Experience, TokenSpace
from .demonstrations import fill


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A row on its canvas (B = 1).

    Attributes:
        trained: ``[L]`` bool, what may be hidden.
        marks: ``[L]`` bool, the two tokens around a picture to draw.
        codes: ``[L]`` bool, those of a picture that follows a thought; None for other rows.
    """

    canvas: Canvas
    trained: Tensor
    marks: Tensor
    codes: Tensor | None = None


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """An error inside the block names the row."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith(where):
            raise
        kind = TooLongError if isinstance(error, TooLongError) else ValueError
        raise kind(f"{where}: {error}") from error


class Writer:
    """Writes rows for one run.

    Args:
        max_length: positions of a row with text, the codes of its picture not counted.
        thought_length: those of a thought and its padding; None = what its prompt leaves of ``max_length``.
        train_turns: ``"last"`` or ``"all"`` answers of a chat.
        image_size, image_transform: of pictures; None = the policy's size.
        vocabulary: what every log-probability is normalised over.

    Raises:
        ValueError: ``train_turns="all"`` where blocks begin with the answer: an earlier answer would not begin one.
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        objectives: Mapping[str, MaskedDenoising],
        codec: ImageCodec | None,
        *,
        max_length: int,
        thought_length: int | None = None,
        train_turns: str = "last",
        image_size: int | list[int] | None = None,
        image_transform: str = "crop",
        vocabulary: TokenSpace,
    ) -> None:
        if train_turns == "all" and policy.block_size is not None and policy.block_anchor == "prompt_end":
            raise ValueError(
                f"train_turns='all': the blocks of {type(policy).__name__} begin with the last answer, and earlier ones would lie "
                "across them; set train_turns='last'"
            )
        self.policy, self.objectives, self.codec, self.vocabulary = policy, objectives, codec, vocabulary
        self.max_length, self.thought_length, self.train_turns = max_length, thought_length, train_turns
        self.image_size, self.image_transform = image_size or policy.image_size, image_transform
        self._seen: set[str] = set()

    @classmethod
    def of_run(cls, policy: DiffusionPolicy, args: MaskedDenoisingConfig, vocab_size: int) -> Writer:
        """As the arguments of a run say, without an image tokenizer yet; probabilities are over all ``vocab_size`` ids."""
        return cls(
            policy,
            args.objectives,
            None,
            max_length=args.max_length,
            thought_length=args.thought_length,
            train_turns=args.train_turns,
            image_size=args.image_size,
            image_transform=args.image_transform,
            vocabulary=TokenSpace(start=0, stop=vocab_size),
        )

    @property
    def by_span(self) -> bool:
        """Whether a thought and its picture have each a law of their own, so that a row trains one of them at a time."""
        return SPANS["r2i"][0] in self.objectives

    def write(self, row: dict[str, Any], where: str, codes: bool = True, span: str | None = None) -> Written:
        """The row on its canvas.

        Args:
            where: names the row in errors.
            codes: False leaves pictures uncoded, zeros in their place: for checks.
            span: of a row of ``r2i`` the thought alone, without a picture yet, or the picture alone; None = the whole row.

        Raises:
            TooLongError: an answer that does not fit or would be cut away.
            ValueError: no row of ``given_of``, or a task that has no loss.
        """
        given = self._given(row, where)
        with _naming(where):
            ways = {"t2i": self._picture, "i2i": self._picture, "r2i": self._thought}
            written = ways.get(given.task, self._text)(given, where, codes)
        written = replace(written, canvas=replace(written.canvas, token_space=self.vocabulary))
        return written if span is None else self.one_span(written, span)

    def check(self, row: dict[str, Any], where: str) -> str:
        """The row's task; raises what ``write`` would, in less time where lengths say it."""
        task = (given := self._given(row, where)).task
        fills = task in ("text", "mmu") and not given.plain and self.objectives[task].train_padding != "first"
        if task not in self._seen or not fills or self.train_turns == "all":
            self.write(row, where, codes=False)
            # Rows that fill their canvas are all as long: what the model takes is known by the first.
            self._seen.add(task)
            return task
        with _naming(where):
            answer, room = self._answer(given), self.max_length
            row = given.row
            if task == "mmu":
                found = self._codes(given, where, codes=False)
                row, room = self._shown(row, found), room + len(found)
            self._padding(task, room, self._prompt_length(row, task, len(answer)), len(answer), where)
        return task

    def _given(self, row: dict[str, Any], where: str) -> Given:
        given = given_of(row, where)
        if given.task not in self.objectives and not (given.task == "r2i" and self.by_span):
            raise ValueError(
                f"{where}: the objective has no loss for task {given.task!r}, only for {sorted(self.objectives)}; choose another "
                "objective, or give one in task_overrides"
            )
        if given.task != "text" and self.codec is None:
            raise ValueError(f"{where}: task {given.task!r} needs image_tokenizer")
        return given

    def one_span(self, written: Written, span: str) -> Written:
        """The thought of a row, with masks where the picture will be, or the picture behind the whole thought."""
        assert written.codes is not None, "a row with a thought and a picture"
        canvas, codes = written.canvas, written.codes
        own, ids = codes, canvas.ids
        if span == "thought":
            assert self.policy.mask_token_id is not None, "families with the layout have a mask id"
            own, ids = canvas.fill_mask[0] & ~codes, ids.masked_fill(codes[None], self.policy.mask_token_id)
        canvas = replace(canvas, ids=ids, fill_mask=own[None], task=span)
        return replace(written, canvas=canvas, trained=written.trained & own)

    def _codes(self, given: Given, where: str, codes: bool) -> Tensor:
        """Codes ``[N]`` of the row's picture, that of its prompt where there are two."""
        return self._codes_of(given, image_of(given.row, where) if codes else None)

    def _drawn(self, given: Given, where: str, codes: bool) -> tuple[Tensor, bool]:
        """Codes ``[N]`` of the picture that is drawn, and whether it is an edit of another one."""
        edited = edited_of(given.row, where)
        if edited is None:
            return self._codes(given, where, codes), False
        return self._codes_of(given, edited if codes else None), True

    def _codes_of(self, given: Given, picture: Image.Image | None) -> Tensor:
        assert self.codec is not None and self.image_size is not None, "a policy of pictures has a size"
        if picture is None:
            return torch.zeros(self.codec.count(self.image_size), dtype=torch.int64)
        transform = given.row.get("image_transform") or self.image_transform
        return self.codec.encode([picture], self.image_size, [transform])[0]

    def _shown(self, row: dict[str, Any], codes: Tensor) -> dict[str, Any]:
        """The row with its picture's ``codes``."""
        assert self.codec is not None and self.image_size is not None, "a policy of pictures has a size"
        return self.codec.shown(row, codes, self.image_size)

    def _picture(self, given: Given, where: str, codes: bool) -> Written:
        drawn, edits = self._drawn(given, where, codes)
        found, row = drawn + self.policy.token_space("t2i").start, given.row
        row = self._shown(row, self._codes(given, where, codes)) if edits else row
        assert self.codec is not None and self.image_size is not None, "a policy of pictures has a size"
        canvas = self.policy.encode([row], given.task, **self.policy.image_lengths(*self.codec.grid(self.image_size)))
        canvas = fill(canvas, found, self.policy.pad_token_id).canvas
        trained, marks = canvas.fill_mask[0], torch.zeros_like(canvas.fill_mask[0])
        places = trained.nonzero()
        around = torch.stack([places.min() - 1, places.max() + 1])
        marks[around[(around >= 0) & (around < len(marks))]] = True
        return Written(canvas=canvas, trained=trained, marks=marks)

    def _text(self, given: Given, where: str, codes: bool) -> Written:
        answer = self._answer(given)
        row, room = given.row, self.max_length
        if given.task == "mmu":
            found = self._codes(given, where, codes)
            row, room = self._shown(row, found), room + len(found)
        if given.plain:
            start = getattr(getattr(self.policy.processor, "tokenizer", self.policy.processor), "bos_token_id", None)
            answer, used = [*([] if start is None else [start]), *answer], 0
        else:
            used = self._prompt_length(row, given.task, len(answer))
        length = len(answer) + self._padding(given.task, room, used, len(answer), where)
        limit = getattr(self.policy, "max_length", used + length)
        if used + length > limit:
            raise ValueError(
                f"max_length={self.max_length} makes this a row of {used + length} positions, and the model has {limit} "
                f"(max_sequence_length): set max_length={limit - used - length + self.max_length}"
            )
        canvas = self._blank(length) if given.plain else self._encode(row, given.task, length)
        canvas = fill(canvas, torch.tensor(answer), self.policy.pad_token_id).canvas
        trained = canvas.fill_mask[0].clone()
        if self.train_turns == "all" and not given.plain:
            trained |= self._earlier_answers(canvas, row, given.task, where)
        return Written(canvas=canvas, trained=trained, marks=torch.zeros_like(trained))

    def _thought(self, given: Given, where: str, codes: bool) -> Written:
        """A thought, its padding and the picture."""
        answer, (drawn, edits) = self._answer(given), self._drawn(given, where, codes)
        row = self._shown(given.row, self._codes(given, where, codes) if edits else drawn)
        row = {**row, "edited_codes": drawn} if edits else row
        used = len(self.policy.processor.encode_prompt(given.row["prompt"], "r2i"))
        room = self.max_length if self.thought_length is None else used + self.thought_length
        if room > self.max_length or (self.thought_length and len(answer) > self.thought_length):
            raise TooLongError(
                f"{where}: {used} tokens before the thought and {len(answer)} of it do not fit thought_length={self.thought_length} "
                f"and max_length={self.max_length}: raise what is too short, or shorten the row"
            )
        padding = self._padding("thought" if self.by_span else given.task, room, used, len(answer), where)
        room = used + len(answer) + padding
        canvas = self.policy.encode_thought(row, answer, room)
        trained = canvas.fill_mask[0].clone()
        codes = trained & self.policy.token_space("picture").contains(canvas.ids[0])
        return Written(canvas=canvas, trained=trained, marks=torch.zeros_like(trained), codes=codes)

    def _answer(self, given: Given) -> list[int]:
        """Ids of a text with the stop token that ends it."""
        assert given.answer is not None, "text is answered with text"
        ids = [*self.policy.answer_ids(given.answer), *self.policy.stop_token_ids[-1:]]
        if len(ids) > self.max_length:
            raise TooLongError(
                f"the answer needs {len(ids)} positions, and there are {self.max_length}: part of the answer would be cut away. Raise "
                f"max_length={self.max_length}, or shorten the row"
            )
        return ids

    def _padding(self, task: str, room: int, used: int, count: int, where: str) -> int:
        """Padding behind an answer of ``count`` tokens after ``used`` others in ``room`` positions."""
        spare, kind = room - used - count, self.objectives[task].train_padding
        if spare < 0:
            raise TooLongError(
                f"{where}: {used} tokens before the answer and {count} of the answer need {used + count} positions, "
                f"and there are {room}: part of the answer would be cut away. Raise max_length={self.max_length}, or shorten the row"
            )
        if kind == "block":
            return min(spare, self._behind(used, count))
        return spare if kind == "all" else min(spare, int(kind == "first"))

    def _behind(self, used: int, count: int) -> int:
        """Positions of the last block behind ``count`` tokens of an answer after ``used`` others."""
        size = self.policy.block_size
        if size is None:
            raise ValueError(
                f"train_padding='block' fills blocks, and the attention of {type(self.policy).__name__} has none: set "
                "train_padding='all', or load the model with attention='block_causal' and its block_size"
            )
        return -(count + (used if self.policy.block_anchor == "start" else 0)) % size

    def _encode(self, row: dict[str, Any], task: str, length: int) -> Canvas:
        return self.policy.encode([row], task, max_completion_length=length)

    def _prompt_length(self, row: dict[str, Any], task: str, length: int) -> int:
        canvas = self._encode(row, task, length)
        return int((canvas.attention_mask & ~canvas.fill_mask).sum())

    def _blank(self, length: int) -> Canvas:
        """A canvas of answer alone."""
        everywhere = torch.ones(1, length, dtype=torch.bool)
        ids = torch.full((1, length), self.policy.pad_token_id)
        space = self.policy.token_space("text")
        return Canvas(ids=ids, fill_mask=everywhere, attention_mask=everywhere, task="text", token_space=space)

    def _earlier_answers(self, canvas: Canvas, row: dict[str, Any], task: str, where: str) -> Tensor:
        """``[L]`` bool, what the assistant has said before its last message, each with the token that ends it."""
        found = torch.zeros_like(canvas.fill_mask[0])
        prompt = row["prompt"] if isinstance(row["prompt"], list) else []
        for turn, message in enumerate(prompt):
            if message["role"] != "assistant":
                continue
            before = self._encode({**row, "prompt": prompt[:turn]}, task, 1)
            start = before.ids[0, ~before.fill_mask[0]]
            ends = torch.isin(canvas.ids[0], torch.tensor(self.policy.stop_token_ids)) & ~canvas.fill_mask[0]
            ends[: len(start)] = False
            if not torch.equal(canvas.ids[0, : len(start)], start) or not bool(ends.any()):
                raise ValueError(
                    f"{where}: train_turns='all' cannot find message {turn} in the chat that the template writes: it changes "
                    "what was said before. Set train_turns='last', or use a template that only adds to it"
                )
            found[len(start) : int(ends.nonzero()[0]) + 1] = True
        return found

    def without_caption(self, written: Written) -> Written:
        """The same picture under the empty caption."""
        return replace(written, canvas=self.policy.guidance_canvas(written.canvas))


def experience_of(
    written: Written, hidden: Hidden, index: int, noisy: Tensor | None, attends_padding: bool
) -> Experience:
    """A noised row as the record that units are collated from, without masked padding; ``noisy [L]`` where there is no mask id."""
    canvas = written.canvas
    keep = slice(None) if attends_padding else canvas.attention_mask[0].nonzero().squeeze(1)

    def drawn(value: Tensor) -> Tensor:
        return value[keep][None, None].clone()

    trained = written.trained[keep].clone()
    return Experience(
        ids=canvas.ids[0, keep].clone(),
        attention_mask=canvas.attention_mask[0, keep].clone(),
        # Earlier answers of a chat are written too: what follows them is behind them as they are, not as they are hidden.
        fill_mask=canvas.fill_mask[0, keep] | trained,
        completion_mask=trained,
        hidden=drawn(hidden.hidden),
        target=drawn(hidden.target),
        weight=drawn(hidden.weight),
        input_ids=None if noisy is None else drawn(noisy),
        sampling_logps=torch.zeros(len(trained)),
        step_map=torch.full((len(trained),), -1),
        position_ids=None if canvas.position_ids is None else canvas.position_ids[0, keep].clone(),
        extra=canvas.extra,
        advantage=1.0,
        active=True,
        task=canvas.task,
        token_space=canvas.token_space,
        index=index,
    )

"""What the scorers of an image with a text have in common: pairs, batches, devices, counters."""

from __future__ import annotations

import math
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import SourceError
from ._published import source_of
from .text import completion_text, user_text


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

MAX_TEXT = 10_000
"""Characters of a text that are tokenized, counted from its start; every window ends long before."""


class Pair(NamedTuple):
    """What is scored of a row."""

    image: Any
    text: str


class Scorer(Protocol):
    """A loaded model. ``window``: tokens of a text that it reads, special tokens included; 0 where it reads none."""

    window: int

    def pixels(self, image: Image.Image) -> Tensor:
        """One RGB image as the model's input, ``[3, height, width]`` fp32 on the CPU."""

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Tokens of each text without truncation, special tokens included."""

    def score(self, pixels: Tensor, texts: list[str]) -> Tensor:
        """Scores ``[B]`` fp32 of ``pixels`` ``[B, 3, height, width]`` with one text each."""

    def to(self, device: torch.device) -> None:
        """Moves the model."""


class Turn:
    """A lock for one block at a time; a copy of it, pickled too, is another one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()


class ImageTextReward(ABC):
    """A reward for an image and a text, in either direction.

    Text to image: the completion is a PIL image, its text the column ``reward_prompt`` or else the prompt. Captions:
    the completion is text, its image the first of the row's ``images``. Other rows are None.

    The model is loaded by the first call that has something to score. Calls from several threads take turns.

    Args:
        batch_size: pairs in one forward.
        device: where the model is, e.g. ``"cpu"`` or ``"cuda:1"``. None is CUDA if there is any.
        dtype: of the model: ``"float32"``, ``"float16"`` or ``"bfloat16"``. The last step is always fp32.

    Raises:
        ValueError: an argument is none of these.
    """

    __name__ = "image_text"
    model: str
    """Hub id or path of what is loaded."""
    revision: str | None = None
    """Commit, tag or branch of ``model`` on the hub; None is the commit of ``_published.REVISIONS``, or the newest."""
    offload: bool = False
    """Whether the model is on the CPU between calls. A run sets it (``offload_reward_models``)."""

    def __init__(self, *, batch_size: int, device: str | torch.device | None, dtype: str) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {sorted(DTYPES)}, got {dtype!r}")
        try:
            self._device = None if device is None else torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"device must be a torch device such as 'cpu' or 'cuda:0', got {device!r}") from error
        self.batch_size, self.dtype = batch_size, dtype
        self._scorer: Scorer | None = None
        self._turn = Turn()
        self._warned: set[str] = set()

    def _pair(self, prompt: Any, completion: Any, images: Any, reward_prompt: Any) -> Pair | None:
        """What of a row is scored; None where the reward does not apply."""
        return pair_of(prompt, completion, images, reward_prompt)

    @property
    def source(self) -> str:
        """``id@commit`` of the weights, or their path."""
        return source_of(self.model, self.revision)

    @abstractmethod
    def _load(self) -> Scorer:
        """The scorer, on the CPU."""

    def without_weights(self) -> tuple[nn.Module, Callable[[], Any]] | None:
        """The model on the meta device and a call of one batch, to count what they take; None for a model on the CPU.

        Raises:
            OSError: there is nothing at ``model``, and its sizes are not known.
            ValueError: only loading it would tell.
        """
        if self._device is not None and self._device.type == "cpu":
            return None
        return self._outline()

    def _outline(self) -> tuple[nn.Module, Callable[[], Any]]:
        raise ValueError(f"{self.__name__}: model={self.model!r} has to be loaded to know its size")

    @property
    def device(self) -> torch.device:
        """Where scores are computed."""
        return self._device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def to(self, device: str | torch.device) -> ImageTextReward:
        """Moves the model, if it is loaded, and everything that is scored from now on."""
        self._device = torch.device(device)
        if self._scorer is not None:
            self._scorer.to(torch.device("cpu") if self.offload else self._device)
        return self

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """The model where it computes, and back on the CPU where it is offloaded."""
        self._scorer.to(self.device)
        try:
            yield
        finally:
            if self.offload:
                self._scorer.to(torch.device("cpu"))

    def __call__(
        self,
        prompts: list,
        completions: list,
        images: list | None = None,
        reward_prompt: list | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """One score a row; None where the row is no image with a text, or its image cannot be processed.

        Where there is anything to score, ``log_metric`` receives ``<name>/truncated_frac``, the share of the texts
        that are longer than the window of the text encoder, and ``<name>/failed``, the rows without a score.
        """
        nothing = [None] * len(completions)
        images = nothing if images is None else images
        reward_prompt = nothing if reward_prompt is None else reward_prompt
        rows = list(zip(prompts, completions, images, reward_prompt, strict=True))
        pairs = {index: pair for index, row in enumerate(rows) if (pair := self._pair(*row)) is not None}
        if not pairs:
            return nothing
        with self._turn:
            if self._scorer is None:
                self._scorer = self._loaded()
            with self._at_work():
                scores = dict.fromkeys(pairs) | self._score(pairs)
            truncated = self._truncated_frac([pair.text for pair in pairs.values()]) if self._scorer.window else None
        if log_metric is not None:
            if truncated is not None:
                log_metric(f"{self.__name__}/truncated_frac", truncated)
            log_metric(f"{self.__name__}/failed", float(sum(score is None for score in scores.values())))
        return [scores.get(index) for index in range(len(completions))]

    def _loaded(self) -> Scorer:
        # Building a model draws initial weights; the run's random numbers must not depend on when that happens.
        with torch.random.fork_rng(devices=[]):
            try:
                scorer = self._load()
            except OSError as error:
                raise SourceError(
                    f"{self.__name__}: model={self.model!r} cannot be loaded. Without a way to the hub, give a folder "
                    f"with its files. ({error})"
                ) from error
        return scorer

    def _score(self, pairs: dict[int, Pair]) -> dict[int, float]:
        """Row -> score; rows that fail are left out."""
        scores: dict[int, float] = {}
        indices = list(pairs)
        for start in range(0, len(indices), self.batch_size):
            pixels = {i: self._pixels(pairs[i].image) for i in indices[start : start + self.batch_size]}
            pixels = {index: tensor for index, tensor in pixels.items() if tensor is not None}
            if not pixels:
                continue
            # A caller's autocast would change the scores.
            with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
                batch = torch.stack(list(pixels.values())).to(self.device)
                values = self._scorer.score(batch, [pairs[index].text for index in pixels]).tolist()
            scores |= {i: value for i, value in zip(pixels, values, strict=True) if math.isfinite(value)}
            if not all(map(math.isfinite, values)):
                self._warn("overflow", f"a score is not finite with dtype {self.dtype!r}; such rows get None")
        return scores

    def _pixels(self, image: Any) -> Tensor | None:
        try:
            return self._scorer.pixels(image)
        except Exception as error:  # Images come from a policy or a dataset, and one of them must not end a run.
            self._warn("failed", f"an image cannot be processed ({type(error).__name__}: {error}); such rows get None")
            return None

    def _truncated_frac(self, texts: list[str]) -> float:
        counts = self._scorer.count_tokens(texts)
        window = self._scorer.window
        if max(counts) > window:
            self._warn(
                "truncated",
                f"a text has {max(counts)} tokens and only the first {window} count. A column `reward_prompt` can "
                "hold a shorter text.",
            )
        return sum(count > window for count in counts) / len(counts)

    def _warn(self, kind: str, message: str) -> None:
        """Once a kind; the metrics count the rest."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f"{self.__name__}: {message}", stacklevel=2)


def pair_of(prompt: Any, completion: Any, images: Any, reward_prompt: Any) -> Pair | None:
    """The image and the text of one row, or None where it has not got both.

    A blank caption is no text. A blank answer is one, because without a score it would be better off than a poor one.
    """
    if isinstance(completion, Image.Image):
        text = user_text(prompt if reward_prompt is None else reward_prompt)
        return Pair(completion, text[:MAX_TEXT]) if text and not text.isspace() else None
    text = completion_text(completion)
    if isinstance(images, list | tuple):
        images = images[0] if images else None
    return None if text is None or images is None else Pair(images, text[:MAX_TEXT])

"""Answers from a policy in three lines."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data.image_codes import ImageCodec, load_tokenizer
from ..data.pictures import load_image
from ..errors import check_choice
from ..models import DiffusionPolicy, policy_class_of
from ..models.builtin import model_path
from ..models.opening import open_model
from ..models.reference import is_peft
from ..types import IMAGE_IN, TASKS, Canvas, Rollout, is_picture, keyed_generator, spans_of
from .generate_options import check_decoding, in_own_names, one_a_prompt, sampler_of, together
from .thoughts import TOGETHER, under_given, under_nothing, under_written, with_thoughts


if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(slots=True, kw_only=True)
class LoadedPolicy:
    """A module with its description, ready to answer. The image tokenizer is loaded when the first picture needs it.

    Attributes:
        usual: a run's text lengths and image size, which go before the checkpoint's own.
    """

    model: PreTrainedModel
    policy: DiffusionPolicy
    image_tokenizer: Any = None
    codec: ImageCodec | None = None
    usual: dict[str, Any] = field(default_factory=dict)

    def generate(
        self,
        prompts: Any,
        *,
        images: Any = None,
        thoughts: Any = None,
        task: str | None = None,
        max_completion_length: int | None = None,
        steps: int | None = None,
        block_length: int | None = None,
        temperature: float | None = None,
        sampler: str | None = None,
        image_size: int | list[int] | None = None,
        image_transform: str = "squash",
        r2i_decoding: str = "thought_first",
        num_return_sequences: int = 1,
        batch_size: int = 8,
        seed: int | None = None,
        on_step: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> list[Any]:
        """One answer a prompt: text, an RGB ``PIL.Image`` or a ``ThoughtAndPicture`` (``"r2i"``). Calling the policy is the same.

        Args:
            prompts: a string, one chat (a list of messages), or a list of strings or chats.
            images: the picture that each prompt asks about, or wants edited (PIL image, path or bytes), one a prompt or one for all.
            thoughts: texts that the pictures of ``"r2i"`` are drawn under, one a prompt or one for all, ``""`` the empty one; None = the
                policy writes them.
            task: ``"text"``, ``"mmu"``, ``"t2i"``, ``"i2i"`` (edit the picture) or ``"r2i"`` (a thought, and then the picture, of
                ``images`` an edited one); default mmu with ``images``, else text. What is set for text holds for thoughts, and what is set for pictures for theirs; ``options`` go to the sampler
                of the picture.
            max_completion_length: positions of a text answer; default 256.
            steps: denoising steps; default one a position of text, 16 for a picture. In parallel it takes as many as fit.
            block_length: of text, default 32, or the whole answer if that is shorter.
            temperature: 0 = greedy. Default 0 for text and 1 for pictures, whose likeliest codes are no picture.
            sampler: a name in ``SAMPLERS``, or ``pkg.mod:attr``; default ``semi_autoregressive`` for text, ``block`` where attention
                is block-causal, ``entropy_bound`` where noise is random tokens, ``maskgit`` for pictures.
            image_size: side in pixels or ``[height, width]``, of pictures made and read; default 512.
                A checkpoint's ``config.sampling_defaults`` replaces the defaults of text lengths and image size.
            image_transform: how ``images`` get that size: ``"squash"``, ``"crop"`` or ``"pad"``.
            r2i_decoding: of ``"r2i"``; ``"joint"`` and ``"parallel"`` write thought and picture together instead, in turn or one forward for both.
            num_return_sequences: answers a prompt, those of one prompt after another.
            seed: of the random numbers, default 0; each answer has its own.
            on_step: progress of a batch, ``on_step(done, total)``.
            options: further fields of the sampler (``remasking``, ``guidance_scale`` ...), and the names of others
                (``max_new_tokens``, ``num_inference_steps``, ``do_sample``, ``generator``).

        Raises:
            ValueError: an unknown option, pictures that do not fit or cannot be read, a policy without image tokenizer or size.
        """
        task = task or ("text" if images is None else "mmu")
        check_choice("task", task, TASKS)
        check_decoding(r2i_decoding, task, thoughts)
        own = {"max_completion_length": max_completion_length, "steps": steps, "temperature": temperature}
        named = in_own_names(options, {**own, "seed": seed})
        fill, length, seed = self._sampling(task, sampler, named, block_length, options)
        rows = self._rows(prompts, task, images, image_size, image_transform)
        lengths = {} if is_picture(task) else {"max_completion_length": length}
        if is_picture(spans_of(task)[-1]):
            lengths |= self.policy.image_lengths(*self._codec().grid(self._size(image_size)))
        rows = [row for row in self._under_given(rows, thoughts, task, length) for _ in range(num_return_sequences)]
        if task == "r2i" and thoughts is None:
            think, _, _ = self._sampling("text", None, {**named, "max_completion_length": length}, block_length, {})
            if r2i_decoding in TOGETHER:
                rows, fill = under_nothing(self.policy, rows, length), together(think, fill, r2i_decoding)
            else:
                rows = under_written(rows, self._filled(rows, "thought", lengths, batch_size, think, seed, on_step))
        filled = self._filled(rows, spans_of(task)[-1], lengths, batch_size, fill, seed, on_step)
        answers = [answer for rollout in filled for answer in self._decoded(rollout, image_size)]
        return answers if task != "r2i" else with_thoughts(answers, rows, fill)

    __call__ = generate

    def _under_given(self, rows: list[dict[str, Any]], thoughts: Any, task: str, length: int) -> list[dict[str, Any]]:
        """``rows`` with the thoughts that were given, if any were."""
        if thoughts is None:
            return rows
        if task != "r2i":
            raise ValueError(f"thoughts belong to task 'r2i', not to {task!r}: leave them out")
        return under_given(self.policy, rows, one_a_prompt("thoughts", thoughts, len(rows)), length)

    def _decoded(self, rollout: Rollout, image_size: int | list[int] | None) -> list[Any]:
        """Its texts, or its pictures from their codes."""
        drawn = is_picture(rollout.canvas.task)
        return self._codec().decode(rollout.completions, self._size(image_size)) if drawn else rollout.completions

    def _rows(
        self, prompts: Any, task: str, images: Any, image_size: int | list[int] | None, image_transform: str
    ) -> list[dict[str, Any]]:
        """A row a prompt, as ``policy.encode`` reads it."""
        one_chat = not isinstance(prompts, str) and len(prompts) > 0 and isinstance(prompts[0], dict)
        prompts = [prompts] if isinstance(prompts, str) or one_chat else list(prompts)
        rows = [{"prompt": prompt} for prompt in prompts]
        if images is None and task not in IMAGE_IN:
            return rows
        if task in ("text", "t2i"):
            raise ValueError(
                f"images belong to tasks 'mmu', 'i2i' and 'r2i', not to {task!r}: leave them out, or choose one of those"
            )
        if images is None:
            raise ValueError(f"task {task!r} reads a picture: give images, one a prompt or one for all")
        transforms = [image_transform] * len(prompts)
        given = enumerate(one_a_prompt("images", images, len(prompts)))
        pictures = [load_image(image, f"images[{number}]") for number, image in given]
        size = self._size(image_size)
        codes = self._codec().encode(pictures, size, transforms)
        return [self._codec().shown(row, own, size) for row, own in zip(rows, codes, strict=True)]

    def complete(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_completion_length: int | None = None,
        steps: int | None = None,
        block_length: int | None = None,
        temperature: float | None = None,
        sampler: str | None = None,
        num_return_sequences: int = 1,
        batch_size: int = 8,
        seed: int | None = None,
        on_step: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Tensor:
        """``generate`` for text prompts that are ids already: ``[B, L]``, padded on the left -> ``[B, L + length]`` with the answers.

        Args:
            input_ids: int64; the whole prompt, chat template included.
            attention_mask: ``[B, L]``, 1 = real token; None = all.

        Raises:
            ValueError: padding on the right, an unknown option, or a policy without a mask id.
        """
        if self.policy.mask_token_id is None:
            raise ValueError(
                f"{type(self.policy).__name__} has no mask id to write at: give prompts as text to generate()"
            )
        real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if not bool(real[:, -1].all()):
            raise ValueError(
                "attention_mask has padding on the right, where the answer begins: set padding_side='left'"
            )
        own = {
            "max_completion_length": max_completion_length,
            "steps": steps,
            "temperature": temperature,
            "seed": seed,
        }
        named = in_own_names(options, own)
        fill, length, seed = self._sampling("text", sampler, named, block_length, options)
        prompt, real = (own.repeat_interleave(num_return_sequences, dim=0) for own in (input_ids, real))
        holes = torch.ones(len(prompt), length, dtype=torch.bool, device=prompt.device)
        canvas = Canvas(
            ids=torch.cat([prompt, torch.full_like(holes, self.policy.mask_token_id, dtype=prompt.dtype)], dim=1),
            fill_mask=torch.cat([torch.zeros_like(real), holes], dim=1),
            attention_mask=torch.cat([real, holes], dim=1),
            task="text",
            token_space=self.policy.token_space("text"),
        )
        parts = (canvas.take(own) for own in torch.arange(len(prompt)).split(batch_size))
        return torch.cat([rollout.canvas.ids for rollout in self._fill(parts, fill, ("generate", seed), on_step)])

    def _sampling(
        self, task: str, sampler: str | None, named: dict[str, Any], block_length: int | None, options: dict[str, Any]
    ) -> tuple[Callable, int, int]:
        """The sampler with all ``options``, the positions of a text answer, and the seed."""
        usual = {**(getattr(self.model.config, "sampling_defaults", None) or {}), **self.usual}
        known = inspect.signature(self.generate).parameters
        kind = (self.policy.block_size is not None, self.policy.mask_token_id is not None)
        fill, length = sampler_of(task, sampler, named, block_length, options, usual, known, *kind)
        return fill, length, named["seed"] or 0

    def _filled(
        self,
        rows: list[dict[str, Any]],
        span: str,
        lengths: dict[str, int],
        batch_size: int,
        fill: Callable,
        seed: int,
        on_step: Callable | None,
    ) -> Iterator[Rollout]:
        """The canvases of ``rows``, filled batch by batch."""
        starts = range(0, len(rows), batch_size)
        canvases = (self.policy.encode(rows[start : start + batch_size], span, **lengths) for start in starts)
        key = ("generate", span, seed) if span == "thought" else ("generate", seed)
        return self._fill(canvases, fill, key, on_step)

    def _fill(
        self, canvases: Iterable[Canvas], fill: Callable, key: tuple[str | int, ...], on_step: Callable | None
    ) -> Iterator[Rollout]:
        """The canvases one after another, filled in eval mode; each row has a generator of its own."""
        training, start = self.model.training, 0
        self.model.eval()
        try:
            for canvas in canvases:
                streams = [keyed_generator(*key, start + row) for row in range(len(canvas.ids))]
                start += len(canvas.ids)
                moved = canvas.to(self.model.device)
                yield fill(self.model, self.policy, moved, on_step=on_step, generators=streams)
        finally:
            self.model.train(training)

    def _size(self, given: int | list[int] | None) -> int | list[int]:
        """The size of pictures: the given one, else the policy's."""
        size = given or self.usual.get("image_size") or self.policy.image_size
        if size is None:
            raise ValueError(f"{type(self.policy).__name__} names no image size; pass image_size")
        return size

    def _codec(self) -> ImageCodec:
        if self.codec is None:
            tokenizer = self.policy.image_tokenizer if self.image_tokenizer is None else self.image_tokenizer
            if tokenizer is None:
                raise ValueError(f"{type(self.policy).__name__} names no image tokenizer; pass image_tokenizer")
            tokenizer = model_path(tokenizer) if isinstance(tokenizer, str) else tokenizer
            self.codec = ImageCodec(load_tokenizer(tokenizer), self.policy)
        return self.codec.to(self.model.device)


def load_policy(
    path: str | PreTrainedModel | PeftModel,
    *,
    policy: str | type[DiffusionPolicy] | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    processing_class: Any = None,
    image_tokenizer: Any = None,
    allow_missing: Sequence[str] = (),
    from_scratch: bool = False,
    seed: int = 0,
    **model_kwargs: Any,
) -> LoadedPolicy:
    """A policy from a hub id, a path, ``builtin:NAME`` or a loaded module; beneath an adapter its base model is loaded.

    That base may be an adapter too, which is then merged into its own.

    ``image_tokenizer`` (id, path or module) replaces the one that the model's config names. ``allow_missing`` names
    parameters, with ``*`` for any letters, that may start from random values because the files lack them. With
    ``from_scratch`` all do: of the checkpoint only the configuration and the tokenizer are read, and the weights are drawn from ``seed``.

    Raises:
        CheckpointError: parameters that do not come from the files, another family's checkpoint, or a folder with an adapter
            and a whole model.
        ValueError: an unknown policy or shipped checkpoint, damaged files, or files that need code without
            ``trust_remote_code=True``; options of loading for a module that is loaded already.
        SourceError: there is nothing at ``path``, or no way to it.
    """
    if not isinstance(path, str | Path):
        options = {**model_kwargs, **({} if dtype == "auto" else {"dtype": dtype})}
        options |= {"from_scratch": True} if from_scratch else {}
        return _of_module(path, policy, processing_class, image_tokenizer, device, [*options, *allow_missing])
    drawn: dict[str, Any] = {"from_scratch": from_scratch, "seed": seed}
    opened = open_model(str(path), policy, allow_missing, dtype=dtype, **drawn, **model_kwargs)
    model = opened.model
    base = model.get_base_model() if is_peft(model) else model
    described = opened.family.from_model(base, opened.processor if processing_class is None else processing_class)
    if device is None and "device_map" not in model_kwargs:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device) if device is not None else model
    return LoadedPolicy(model=model.eval(), policy=described, image_tokenizer=image_tokenizer)


def _of_module(
    model: Any, policy: Any, processor: Any, image_tokenizer: Any, device: Any, unread: list
) -> LoadedPolicy:
    if unread:
        raise ValueError(
            f"load_policy of a loaded {type(model).__name__} reads no files: leave out {', '.join(map(str, unread))}"
        )
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    described = policy_class_of(base, policy).from_model(base, processor)
    model = model if device is None else model.to(device)
    return LoadedPolicy(model=model, policy=described, image_tokenizer=image_tokenizer)


def generate(
    model: PreTrainedModel | PeftModel,
    inputs: Any = None,
    *,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    processing_class: Any = None,
    policy: str | type[DiffusionPolicy] | None = None,
    **options: Any,
) -> Any:
    """``model.generate``: ``LoadedPolicy.generate`` of prompts, ``LoadedPolicy.complete`` of ids.

    Raises:
        ValueError: neither or both are given, or what those two raise.
    """
    if (inputs is None) == (input_ids is None):
        raise ValueError("generate() takes either prompts or input_ids: give one of them")
    loaded = load_policy(model, policy=policy, processing_class=processing_class)
    ids = inputs if isinstance(inputs, Tensor) else input_ids
    return loaded.generate(inputs, **options) if ids is None else loaded.complete(ids, attention_mask, **options)

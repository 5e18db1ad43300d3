"""Answers from a policy in three lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from ..data.image_codes import ImageCodec, load_tokenizer
from ..data.pictures import load_image
from ..errors import check_choice
from ..models import DiffusionPolicy, resolve_policy
from ..models.adapter_files import ADAPTER_FILE, adapter_base, load_adapter
from ..models.builtin import model_path
from ..models.loading import check_from_scratch, load_config, load_processor
from ..parts import Choice, choose
from ..samplers import samplers_for
from ..types import TASKS, keyed_generator


@dataclass(slots=True, kw_only=True)
class LoadedPolicy:
    """A module with its description, ready to answer. The image tokenizer is loaded when the first picture needs it."""

    model: PreTrainedModel
    policy: DiffusionPolicy
    image_tokenizer: Any = None
    codec: ImageCodec | None = None

    def generate(
        self,
        prompts: Any,
        *,
        images: Any = None,
        task: str | None = None,
        max_completion_length: int | None = None,
        steps: int | None = None,
        block_length: int | None = None,
        temperature: float | None = None,
        sampler: str | None = None,
        image_size: int | list[int] | None = None,
        image_transform: str = "squash",
        batch_size: int = 8,
        seed: int = 0,
        on_step: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> list[Any]:
        """One answer a prompt: text, or with ``task="t2i"`` an RGB ``PIL.Image``.

        Args:
            prompts: a string, one chat (a list of messages), or a list of strings or chats.
            images: the picture that each prompt asks about (PIL image, path or bytes), one a prompt or one for all.
            task: ``"text"``, ``"mmu"`` or ``"t2i"``; default mmu with ``images``, else text.
            max_completion_length: positions of a text answer; default 256.
            steps: denoising steps; default one a position of text, 16 for a picture.
            block_length: of text, default 32, or the whole answer if that is shorter.
            temperature: 0 = greedy. Default 0 for text and 1 for pictures, whose likeliest codes are no picture.
            sampler: a name in ``SAMPLERS``, or ``pkg.mod:attr``; default ``semi_autoregressive`` for text, ``maskgit`` for pictures.
            image_size: side in pixels or ``[height, width]``, of pictures made and read; default 512.
                A checkpoint's ``config.sampling_defaults`` replaces the defaults of text lengths and image size.
            image_transform: how ``images`` get that size: ``"squash"``, ``"crop"`` or ``"pad"``.
            on_step: progress of a batch, ``on_step(done, total)``.
            options: further fields of the sampler (``remasking``, ``guidance_scale``, ``stop`` ...).

        Raises:
            ValueError: pictures that do not fit the prompts or cannot be read, or a policy without an image tokenizer or size.
        """
        one_chat = not isinstance(prompts, str) and len(prompts) > 0 and isinstance(prompts[0], dict)
        prompts = [prompts] if isinstance(prompts, str) or one_chat else list(prompts)
        task = task or ("text" if images is None else "mmu")
        check_choice("task", task, TASKS)
        usual = getattr(self.model.config, "sampling_defaults", None) or {}
        length = max_completion_length or usual.get("max_completion_length", 256)
        settings: dict[str, Any] = {"steps": steps or 16, "temperature": 1.0 if temperature is None else temperature}
        if task != "t2i":
            settings = {
                "steps": steps or usual.get("steps", length),
                "block_length": block_length or usual.get("block_length", min(32, length)),
                "temperature": temperature or 0.0,
            }
        name = sampler or TASK_SAMPLERS[task]
        fill = _sampler(choose("sampler", name, samplers_for(task)), settings, options)
        rows = [{"prompt": prompt} for prompt in prompts]
        if task == "mmu":
            transforms = [image_transform] * len(prompts)
            codes = self._codec().encode(_pictures(images, len(prompts)), self._size(image_size), transforms)
            rows = [{**row, "image_codes": own} for row, own in zip(rows, codes, strict=True)]
        lengths = {"max_completion_length": length}
        if task == "t2i":
            lengths = {"image_tokens": self._codec().count(self._size(image_size))}
        answers: list[Any] = []
        self.model.eval()
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            canvas = self.policy.encode(part, task, **lengths).to(self.model.device)
            streams = [keyed_generator("generate", seed, start + row) for row in range(len(part))]
            filled = fill(self.model, self.policy, canvas, on_step=on_step, generators=streams).completions
            answers += self._codec().decode(filled, self._size(image_size)) if task == "t2i" else filled
        return answers

    def _size(self, given: int | list[int] | None) -> int | list[int]:
        """The size of pictures: the given one, else the policy's."""
        size = given or self.policy.image_size
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


def _sampler(choice: Choice, settings: dict[str, Any], options: dict[str, Any]) -> Callable:
    """The chosen sampler with those of the usual ``settings`` that it has, and all ``options``."""
    known = [item.name for item in fields(choice.part)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"sampler {choice.name!r} has no option {unknown}; it has {known}")
    return choice.part(**{key: value for key, value in settings.items() if key in known}, **options)


TASK_SAMPLERS = {"text": "semi_autoregressive", "mmu": "semi_autoregressive", "t2i": "maskgit"}


def _pictures(images: Any, count: int) -> list[Image.Image]:
    images = list(images) if isinstance(images, list | tuple) else [images] * count
    if len(images) != count:
        raise ValueError(f"{len(images)} images for {count} prompts; give one a prompt, or one for all")
    return [load_image(image, f"images[{number}]") for number, image in enumerate(images)]


def load_policy(
    path: str,
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
    """A policy from a hub id, a path, ``builtin:NAME`` or an adapter folder (its base model is loaded beneath it).

    ``image_tokenizer`` (id, path or module) replaces the one that the model's config names. ``allow_missing`` names
    parameters, with ``*`` for any letters, that may start from random values because the files lack them. With
    ``from_scratch`` all do: of the checkpoint only the configuration and the tokenizer are read, and the weights are drawn from ``seed``.

    Raises:
        CheckpointError: parameters that do not come from the files, another family's checkpoint, or a folder with an adapter
            and a whole model.
        ValueError: an unknown policy or shipped checkpoint, damaged files, or files that need code without
            ``trust_remote_code=True``.
        SourceError: there is nothing at ``path``, or no way to it.
    """
    path = model_path(path)
    adapter = Path(path) / ADAPTER_FILE
    base = model_path(adapter_base(path)) if adapter.exists() else path
    trusted = bool(model_kwargs.get("trust_remote_code"))
    name = policy or load_config(base, trust_remote_code=trusted).model_type
    family = resolve_policy(name)
    if allow_missing:
        model_kwargs["allow_missing"] = allow_missing
    if from_scratch:
        check_from_scratch({"from_scratch": True, **model_kwargs}, adapter.exists())
        model = family.fresh_model(base, seed, dtype=dtype, **model_kwargs)
    else:
        model = family.load_model(base, dtype=dtype, **model_kwargs)
    if processing_class is None and (Path(path) / "processor_config.json").exists():
        # Saved beside an adapter, it holds the prompt options the adapter was trained with.
        processing_class = load_processor(family.processor_class, path)
    described = family.from_model(model, processing_class)
    if adapter.exists():
        model = load_adapter(model, path, allow_missing)
    if device is None and "device_map" not in model_kwargs:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device) if device is not None else model
    return LoadedPolicy(model=model.eval(), policy=described, image_tokenizer=image_tokenizer)

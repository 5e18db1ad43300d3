"""Answers from a policy in three lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from .models import DiffusionPolicy, resolve_policy
from .rng import keyed_generator
from .samplers import SAMPLERS


BUILTIN = "builtin:"


def model_path(path: str) -> str:
    """``builtin:NAME`` as the folder of a checkpoint that ships with the package; anything else as it is."""
    if not path.startswith(BUILTIN):
        return path
    shipped = Path(__file__).parent / "toy" / "checkpoints"
    name = path.removeprefix(BUILTIN)
    known = sorted(folder.name for folder in shipped.iterdir() if (folder / "config.json").exists())
    if name not in known:
        raise ValueError(f"model path {path!r} is unknown: shipped checkpoints are {[BUILTIN + n for n in known]}")
    return str(shipped / name)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPolicy:
    """A module with its description, ready to answer."""

    model: PreTrainedModel
    policy: DiffusionPolicy

    def generate(
        self,
        prompts: Any,
        *,
        task: str = "text",
        max_completion_length: int | None = None,
        steps: int | None = None,
        block_length: int | None = None,
        temperature: float = 0.0,
        sampler: str = "semi_autoregressive",
        batch_size: int = 8,
        seed: int = 0,
        **options: Any,
    ) -> list[Any]:
        """One answer a prompt.

        Args:
            prompts: a string, one chat (a list of messages), or a list of strings or chats.
            max_completion_length: positions the policy may write; default 256.
            steps: denoising steps; default one a position.
            block_length: default 32, or the whole answer if that is shorter.
                A checkpoint's ``config.sampling_defaults`` replaces these three defaults.
            temperature: 0 = greedy.
            options: further fields of the sampler (``remasking``, ``guidance_scale``, ``stop`` ...).
        """
        one_chat = not isinstance(prompts, str) and len(prompts) > 0 and isinstance(prompts[0], dict)
        prompts = [prompts] if isinstance(prompts, str) or one_chat else list(prompts)
        usual = getattr(self.model.config, "sampling_defaults", None) or {}
        length = max_completion_length or usual.get("max_completion_length", 256)
        settings = {
            "steps": steps or usual.get("steps", length),
            "block_length": block_length or usual.get("block_length", min(32, length)),
            "temperature": temperature,
            **options,
        }
        fill = SAMPLERS[sampler](**settings)
        answers = []
        self.model.eval()
        for start in range(0, len(prompts), batch_size):
            rows = [{"prompt": prompt} for prompt in prompts[start : start + batch_size]]
            canvas = self.policy.encode(rows, task, max_completion_length=length)
            streams = [keyed_generator("generate", seed, start + row) for row in range(len(rows))]
            answers += fill(self.model, self.policy, canvas.to(self.model.device), generators=streams).completions
        return answers


def load_policy(
    path: str,
    *,
    policy: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    processing_class: Any = None,
    **model_kwargs: Any,
) -> LoadedPolicy:
    """A policy from a hub id, a path, ``builtin:NAME`` or an adapter folder (its base model is loaded beneath it).

    Raises:
        ValueError: an unknown policy or shipped checkpoint.
    """
    path = model_path(path)
    adapter = Path(path) / "adapter_config.json"
    base = path
    if adapter.exists():
        base = model_path(json.loads(adapter.read_text())["base_model_name_or_path"])
    name = policy or AutoConfig.from_pretrained(base).model_type
    family = resolve_policy(name)
    model = family.load_model(base, dtype=dtype, **model_kwargs)
    if processing_class is None and (Path(path) / "processor_config.json").exists():
        # Saved beside an adapter, it holds the prompt options the adapter was trained with.
        processing_class = family.processor_class.from_pretrained(path)
    described = family.from_model(model, processing_class)
    if adapter.exists():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, path)
    if device is None and "device_map" not in model_kwargs:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device) if device is not None else model
    return LoadedPolicy(model=model.eval(), policy=described)

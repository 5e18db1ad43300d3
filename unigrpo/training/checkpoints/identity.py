"""What a run is, as far as going on from its checkpoints is concerned: what it keeps, and what may change on the way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ...config.arguments import OWN_KEYS, UniGRPOConfig
from ...config.denoising_arguments import DENOISING_KEYS, MaskedDenoisingConfig
from ...config.run_keys import RUN_KEYS
from ...data.image_codes import tokenizer_name
from ...models.reference import is_peft
from ...rollout.rewards import RewardSet, reward_name
from ...types import canvas_tasks


KEPT = ("seed", "data_seed", "world_size", "per_device_train_batch_size", "gradient_accumulation_steps", "optim")
"""Inherited keys that a run keeps, as it does all of our own that no list below names."""

TOLD = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "max_steps"),
    *("num_train_epochs", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "fp16"),
    *("advantage_clip", "log_ratio_clip", "reward_error", "num_generations_eval", "image_tokenizer"),
    *("eval_sampler", "eval_denoising_steps", "eval_temperature"),
)
"""Keys that may change, with a warning. Clips and ``reward_error`` are cures that errors advise: they must not bar the way."""

SILENT = (
    *(
        "logging_steps",
        "log_completions",
        "log_rewards",
        "num_completions_to_print",
        "log_exact_kl",
        "overwrite",
        "use_vllm",
    ),
    *("rollout_batch_size", "offload_image_tokenizer", "offload_reward_models", "reward_timeout", "trim_padding"),
    *("remove_unused_columns", "ddp_find_unused_parameters", "model_init_kwargs", "given_keys", "filled_keys"),
    *("generation_batch_size", "reward_weights"),
)
"""Keys of our own that no result depends on, or that others say: weights stand with their rewards, options of the model (which may
hold a token) in its weights."""

PATHS_OF_PEFT = ("base_model_name_or_path", "inference_mode", "auto_mapping", "revision", "peft_version", "task_type")

ROWS, NUMBERS = 64, 16
"""Rows of a dataset and numbers of each weight that are looked at."""


def described(
    args: UniGRPOConfig, tasks: Iterable[str], policy: str, rewards: RewardSet, reward_args: list[str] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the run of ``args`` keeps, and what may change: JSON, equal for runs that are the same.

    Args:
        tasks: those of the training rows; each of their canvases has its settings under its name.
        policy: the name of its class.
        reward_args: a digest for each reward of the arguments that it was made with, where they are known.
    """
    own = {name: getattr(args, name, None) for name in (*OWN_KEYS, *RUN_KEYS, *KEPT, *TOLD)}
    own["image_tokenizer"] = tokenizer_name(args.image_tokenizer)
    # The default is one or the other by the version of torch, and their states are the same.
    own["optim"] = str(getattr(args.optim, "value", args.optim)).removesuffix("_fused")
    unread = () if args.sft_weight else ("sft_batch_size",)
    unread += () if args.sync_ref_model else ("ref_model_mixup_alpha", "ref_model_sync_steps")
    settings = {task: asdict(args.for_task(task)) for task in canvas_tasks(tasks)}
    kept = {name: value for name, value in own.items() if name not in (*TOLD, *SILENT, *unread)}
    told = {name: own[name] for name in TOLD if own[name] is not None}
    for task, values in settings.items():
        kept[task] = {name: value for name, value in values.items() if name not in TOLD}
        told[task] = {name: value for name, value in values.items() if name in TOLD}
    found = zip(rewards.functions, rewards.weights or [], strict=True)
    kept["rewards"] = [{"name": _name_of(reward), "weight": weight} for reward, weight in found]
    if reward_args is not None:
        kept["reward_args"] = reward_args
    return _as_json({**kept, "policy": policy}), _as_json({**told, "tasks": sorted(tasks)})


def described_denoising(args: MaskedDenoisingConfig, policy: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """``described`` of a run on given answers: it keeps its objectives and how rows are written and mixed."""
    own = {name: getattr(args, name, None) for name in (*DENOISING_KEYS, *KEPT, *TOLD)}
    own["image_tokenizer"] = tokenizer_name(args.image_tokenizer)
    own["optim"] = str(getattr(args.optim, "value", args.optim)).removesuffix("_fused")
    # The objectives hold what the first two say; no weight depends on the third.
    unread = (*TOLD, *SILENT, "objective", "task_overrides", "num_eval_draws")
    kept = {name: value for name, value in own.items() if name not in unread}
    kept |= {f"objective.{task}": asdict(objective) for task, objective in args.objectives.items()}
    told = {name: own[name] for name in TOLD if own[name] is not None}
    return _as_json({**kept, "policy": policy}), _as_json(told)


def _name_of(reward: Callable) -> str:
    """A reward with what it was bound to: ``think_format(strict=True)``, ``short of text``."""
    task, inner = getattr(reward, "task", None), getattr(reward, "reward", reward)
    words = [f"{key}={_short(value)}" for key, value in sorted(inner.keywords.items())] if _is_bound(inner) else []
    name = reward_name(inner) + (f"({', '.join(words)})" if words else "")
    return f"{name} of {task}" if isinstance(task, str) else name


def _is_bound(reward: Callable) -> bool:
    return isinstance(reward, partial) and all(isinstance(own, str | int | float) for own in reward.keywords.values())


def arguments_digest(arguments: dict[str, Any]) -> str:
    """A digest of what a reward is made with, which may hold what nobody should read; of a path counts its last part."""

    def without_folder(value: Any) -> Any:
        return Path(value).name if isinstance(value, str) and "/" in value and "://" not in value else value

    return _digest([[key, without_folder(value)] for key, value in sorted(arguments.items())])


@torch.no_grad()
def weights_digest(model: nn.Module, trained: bool = False) -> str:
    """The kind of a model and a digest of some numbers of each of its weights.

    Of a ``PeftModel`` those under the adapters count, or with ``trained`` those of the adapters. Packed weights count by their
    shapes: how they were rounded depends on the device.
    """
    digest = hashlib.sha256()
    adapted = is_peft(model)
    for name, weight in sorted(model.named_parameters()):
        if adapted and weight.requires_grad != trained:
            continue
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        if weight.is_floating_point() and weight.device.type != "meta":
            flat = weight.detach().reshape(-1)
            digest.update(flat[:: max(1, len(flat) // NUMBERS)][:NUMBERS].float().cpu().numpy().tobytes())
    kind = model.get_base_model() if adapted else model
    return f"{type(kind).__name__} with weights {digest.hexdigest()[:12]}"


def adapter_keys(model: nn.Module) -> dict[str, Any]:
    """The kind of the trained adapter, and its keys; "none" for a whole model."""
    if not is_peft(model):
        return {"adapter": "none"}
    config = model.peft_config[model.active_adapter]
    keys = {name: value for name, value in config.to_dict().items() if name not in PATHS_OF_PEFT}
    return _as_json({"adapter": config.peft_type, "peft_config": keys})


def dataset_digest(dataset: Any) -> str | None:
    """How many rows a dataset has, and a digest of up to ``ROWS`` of them."""
    if dataset is None:
        return None
    if isinstance(dataset, dict):
        return "; ".join(f"{name}: {dataset_digest(part)}" for name, part in sorted(dataset.items()))
    count = len(dataset)
    places = sorted({int(place * (count - 1) / (ROWS - 1)) for place in range(ROWS)})
    return f"{count} rows with contents {_digest([dataset[place] for place in places])}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_short).encode()).hexdigest()[:12]


def _short(value: Any) -> str:
    if isinstance(value, Image.Image):
        return hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return str(value)


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """As it is read back: sets in order, numbers and texts as they are, everything else by its name."""

    def named(value: Any) -> Any:
        return sorted(map(str, value)) if isinstance(value, set | frozenset) else getattr(value, "value", str(value))

    return json.loads(json.dumps(values, sort_keys=True, default=named))

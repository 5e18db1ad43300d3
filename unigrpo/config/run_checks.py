"""Whether the arguments of a run can train. ``args`` is a ``UniGRPOConfig`` in the making."""

from __future__ import annotations

import difflib
from typing import Any

import torch

from ..errors import check_choice
from ..types import TASKS
from .checks import check_bound, check_parts, check_ranges
from .task import CHOICES, TASK_KEYS


def check_engine(args: Any) -> None:
    """Raises ``ValueError`` for what cannot run here or does not apply to diffusion."""
    if args.use_vllm:
        raise ValueError(
            "use_vllm=True: vLLM decodes autoregressively and cannot roll out a masked-diffusion policy. Leave it "
            "False; rollouts run on the training model. vLLM can serve a judge reward instead"
        )
    if args.bf16 and not args.use_cpu and not torch.cuda.is_available():
        raise ValueError(
            "bf16=True needs a GPU, and none is visible. Set bf16=False, or use_cpu=True to run bf16 on the CPU"
        )
    if args.auto_find_batch_size:
        raise ValueError("auto_find_batch_size=True would change the rollout window; set the batch size yourself")


COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")

GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""Those that replay CUDA graphs."""


def settle_compile(args: Any) -> None:
    """``torch_compile`` and its backend, either of which may be left to the others.

    Raises:
        ValueError: a backend or mode that is unknown, or a mode of another backend.
    """
    if not (args.torch_compile or args.torch_compile_backend or args.torch_compile_mode):
        return
    args.torch_compile, args.torch_compile_backend = True, args.torch_compile_backend or "inductor"
    check_choice("torch_compile_backend", args.torch_compile_backend, tuple(torch.compiler.list_backends(())))
    if args.torch_compile_mode is not None:
        check_choice("torch_compile_mode", args.torch_compile_mode, COMPILE_MODES)
        if args.torch_compile_backend != "inductor":
            raise ValueError(
                f"torch_compile_mode={args.torch_compile_mode!r} belongs to torch_compile_backend='inductor', not "
                f"{args.torch_compile_backend!r}; leave one of them out"
            )


def settle_batches(args: Any) -> None:
    """``generation_batch_size`` and ``steps_per_generation``, either of which may be left to the other.

    Raises:
        ValueError: sizes that do not divide each other.
    """
    micro = args.per_device_train_batch_size * args.world_size
    args.sft_batch_size = args.sft_batch_size or args.per_device_train_batch_size
    if args.steps_per_generation is not None and args.generation_batch_size is not None:
        raise ValueError("give steps_per_generation or generation_batch_size, not both")
    if args.generation_batch_size is not None:
        if args.generation_batch_size % micro:
            raise ValueError(
                f"generation_batch_size={args.generation_batch_size} must be a multiple of "
                f"per_device_train_batch_size x processes = {micro}"
            )
        args.steps_per_generation = args.generation_batch_size // micro
    args.steps_per_generation = args.steps_per_generation or args.gradient_accumulation_steps
    if args.steps_per_generation % args.gradient_accumulation_steps:
        raise ValueError(
            f"steps_per_generation={args.steps_per_generation} must be a multiple of gradient_accumulation_steps="
            f"{args.gradient_accumulation_steps}: an optimizer step would straddle two inner updates"
        )
    args.generation_batch_size = micro * args.steps_per_generation
    if args.generation_batch_size % args.num_generations:
        raise ValueError(
            f"a rollout of {args.generation_batch_size} answers (per_device_train_batch_size="
            f"{args.per_device_train_batch_size} x {args.world_size} processes x steps_per_generation="
            f"{args.steps_per_generation}) is not divisible by num_generations={args.num_generations}; "
            f"make it a multiple"
        )


def check_values(args: Any) -> None:
    """Raises ``ValueError`` for a value out of its range, or parts that do not fit."""
    for key, choices in CHOICES.items():
        if getattr(args, key) is not None:
            check_choice(key, getattr(args, key), choices)
    minimum = {"num_generations": 2, "num_generations_eval": 1, "num_iterations": 1, "num_timesteps": 1}
    for key, least in {**minimum, "ref_model_sync_steps": 1}.items():
        if getattr(args, key) < least:
            raise ValueError(f"{key}={getattr(args, key)} must be at least {least}")
    if args.attn_mask_mode is not None:
        check_choice("attn_mask_mode", args.attn_mask_mode, ("bool", "none"))
    for key in ("sft_weight", "advantage_temperature", "advantage_clip"):
        value = getattr(args, key)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ValueError(f"{key}={value!r} must be a number")
    for key in ("refill_rounds", "sft_batch_size", "rollout_batch_size"):
        value = getattr(args, key)
        if isinstance(value, bool) or not isinstance(value, int | None) or (value is None and key == "refill_rounds"):
            raise ValueError(f"{key}={value!r} must be a whole number")
    if args.refill_rounds < 0:
        raise ValueError(f"refill_rounds={args.refill_rounds} must not be negative")
    if args.multi_objective_aggregation == "normalize_then_sum" and args.advantage_estimator != "group_mean":
        raise ValueError(
            f"advantage_estimator={args.advantage_estimator!r} with multi_objective_aggregation='normalize_then_sum', which "
            "normalises each reward by its group's mean; use 'sum_then_normalize'"
        )
    if args.refill_rounds and args.advantage_estimator == "batch_mean":
        raise ValueError(
            f"refill_rounds={args.refill_rounds} with advantage_estimator='batch_mean' would throw away groups that it learns "
            "from; set refill_rounds=0"
        )
    for key in ("offload_image_tokenizer", "offload_reward_models"):
        if not isinstance(getattr(args, key), bool):
            raise ValueError(f"{key}={getattr(args, key)!r} must be true or false")
    check_choice("reward_error", args.reward_error, ("raise", "none"))
    check_bound("reward_timeout", args.reward_timeout)
    if args.sft_weight < 0:
        raise ValueError(f"sft_weight={args.sft_weight} must not be negative")
    for key in ("sft_batch_size", "rollout_batch_size"):
        if getattr(args, key) is not None and getattr(args, key) < 1:
            raise ValueError(f"{key}={getattr(args, key)} must be at least 1")
    if args.advantage_temperature <= 0:
        raise ValueError(f"advantage_temperature={args.advantage_temperature} must be positive")
    if args.advantage_clip is not None and args.advantage_clip <= 0:
        raise ValueError(f"advantage_clip={args.advantage_clip} must be positive")
    check_ranges("", args.settings_of("text", {}), args.num_timesteps)
    check_parts("", args.settings_of("text", {}))
    if args.sync_ref_model and args.beta == 0:
        raise ValueError("sync_ref_model=True with beta=0 updates a reference that is never used; set beta > 0")


def check_overrides(args: Any) -> None:
    """Raises ``ValueError`` for an override that is unknown, out of range, or does not fit."""
    for task, values in args.task_overrides.items():
        for key, value in values.items():
            if key not in TASK_KEYS:
                near = difflib.get_close_matches(key, TASK_KEYS, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(f"task_overrides.{task}.{key} is not allowed: {hint}keys are {list(TASK_KEYS)}")
            if key in CHOICES:
                check_choice(f"task_overrides.{task}.{key}", value, CHOICES[key])
        check_ranges(f"task_overrides.{task}.", args.for_task(task), args.num_timesteps)
        check_parts(f"task_overrides.{task}.", args.for_task(task))


def check_graphs(args: Any) -> None:
    """Raises ``ValueError`` for kept keys and values that CUDA graphs would write over: a replay reuses the memory of the one
    before.
    """
    for task in ("text", "mmu"):
        kept = args.for_task(task).kv_cache
        if args.torch_compile_mode in GRAPH_MODES and kept != "none":
            where = f"task_overrides.{task}." if "kv_cache" in args.task_overrides.get(task, {}) else ""
            raise ValueError(
                f"torch_compile_mode={args.torch_compile_mode!r} with {where}kv_cache={kept!r} would replay CUDA graphs over "
                "the keys and values that are kept: set torch_compile_mode to 'default' or 'max-autotune-no-cudagraphs', or "
                "kv_cache to 'none'"
            )


def check_summed_ratios(args: Any) -> None:
    """Raises ``ValueError`` for summed ratios of more than one update."""
    updates = args.num_iterations * args.steps_per_generation // args.gradient_accumulation_steps
    settings = [args.for_task(task) for task in TASKS]
    summed = [own for own in settings if own.importance_sampling_level == "sequence_sum"]
    if any(own.surrogate != "log_likelihood" for own in summed) and updates > 1:
        raise ValueError(
            f"importance_sampling_level='sequence_sum' with {updates} updates a rollout: off-policy, a ratio summed "
            "over many tokens spans orders of magnitude. Use 'sequence' (the mean) or 'token', or one update: "
            "num_iterations=1 and steps_per_generation=gradient_accumulation_steps"
        )

"""Whether the arguments of a run can train. ``args`` is a ``UniGRPOConfig`` in the making."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

import torch

from ..algorithm.advantages import ADVANTAGE_ESTIMATORS, compares_groups
from ..algorithm.combining import read_terms
from ..errors import check_choice
from ..parts import Key, choose
from ..samplers.parallel import picture_times
from ..types import CANVAS_TASKS, SPANS, is_picture
from .checks import check_bound, check_task
from .run_keys import ESTIMATOR_KEYS
from .sorted_keys import check_inherited
from .task import TASK_KEYS
from .trl_keys import check_loss


def check_engine(args: Any) -> None:
    """Raises ``ValueError`` for what cannot run here or does not apply to diffusion."""
    check_inherited(args)
    check_loss(args.loss_type)
    if args.use_vllm:
        raise ValueError(
            "use_vllm=True: vLLM decodes autoregressively and cannot roll out a masked-diffusion policy. Leave it "
            "False; rollouts run on the training model. vLLM can serve a judge reward instead"
        )
    if args.bf16 and not args.use_cpu and not torch.cuda.is_available():
        raise ValueError(
            "bf16=True needs a GPU, and none is visible. Set bf16=False, or use_cpu=True to run bf16 on the CPU"
        )
    if args.fp16 and (args.use_cpu or not torch.cuda.is_available()):
        raise ValueError(
            "fp16=True needs a GPU: nothing would be computed in half precision here. Set it to False, or bf16=True"
        )


def settle_checkpointing(args: Any) -> None:
    """``gradient_checkpointing`` under the name that transformers prefers; it fills in the other one itself."""
    for own in ("checkpointing", "checkpointing_kwargs"):
        old, new = f"gradient_{own}", f"activation_{own}"
        if hasattr(args, new) and getattr(args, new) is None:
            setattr(args, new, getattr(args, old))


HELD_OUT = {"eval_reward": "rewards", "eval_loss": "losses"}
"""By the number that checkpoints are compared by, unless another is named: what an evaluation takes."""


def settle_best_model(args: Any, usual: str = "eval_reward", asking: str | None = None) -> None:
    """The held-out number by which checkpoints are compared: the reward, the higher the better, or the loss.

    Args:
        usual: its name where none is given.
        asking: what compares, beside the arguments that do.

    Raises:
        ValueError: there is no such number, or it is not there when a checkpoint is written.
    """
    compared = {"load_best_model_at_end": args.load_best_model_at_end, "save_strategy": args.save_strategy == "best"}
    compared["lr_scheduler_type"] = args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
    asking = next((f"{name}={getattr(args, name)!r}" for name, asks in compared.items() if asks), asking)
    metric = args.metric_for_best_model
    if usual != "eval_loss" and metric in ("loss", "eval_loss"):
        raise ValueError(
            f"metric_for_best_model={metric!r}: held-out answers have no loss; leave it out for 'eval_reward'"
        )
    if asking is not None:
        args.metric_for_best_model = metric or usual
    if args.greater_is_better is None and args.metric_for_best_model is not None:
        args.greater_is_better = usual != "eval_loss" and not args.metric_for_best_model.endswith("loss")
    if asking is None:
        return
    if args.eval_strategy == "no":
        raise ValueError(
            f"{asking} compares held-out {HELD_OUT[usual]}, and eval_strategy='no' takes none: set it to 'steps' or 'epoch'"
        )
    if not args.load_best_model_at_end or args.save_strategy == "best":
        return
    if args.save_strategy != args.eval_strategy:
        raise ValueError(
            f"{asking} needs a checkpoint where it evaluates: save_strategy={_word(args.save_strategy)} must be that of "
            f"eval_strategy={_word(args.eval_strategy)}, or 'best'"
        )
    every = args.eval_steps or args.logging_steps
    if args.eval_strategy == "steps" and not _multiple(args.save_steps, every):
        raise ValueError(
            f"{asking} needs a checkpoint where it evaluates: save_steps={args.save_steps} must be a multiple of "
            f"eval_steps={every}"
        )


def _word(strategy: Any) -> str:
    return repr(getattr(strategy, "value", strategy))


def _multiple(number: float, of: float) -> bool:
    """Whether steps, or both as shares of a run, are a multiple of others."""
    if (number < 1) != (of < 1):
        return False
    return math.isclose(number / of, round(number / of), rel_tol=1e-6) if of else False


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


def check_values(args: Any, keys: Mapping[str, Key]) -> None:
    """Raises ``ValueError`` for a value out of its range, or parts that do not fit; ``keys`` are those of no task."""
    for name, about in keys.items():
        if name != "image_tokenizer":  # It may be a module.
            setattr(args, name, about.read(getattr(args, name)))
    check_bound("reward_timeout", args.reward_timeout)
    read_terms(args.reward_terms or [])
    estimator = choose("advantage_estimator", args.advantage_estimator, ADVANTAGE_ESTIMATORS)
    estimator.build({key: getattr(args, key) for key in ESTIMATOR_KEYS})
    if args.multi_objective_aggregation == "normalize_then_sum" and estimator.name != "group_mean":
        raise ValueError(
            f"advantage_estimator={estimator.name!r} with multi_objective_aggregation='normalize_then_sum', which "
            "normalises each reward by its group's mean; use 'sum_then_normalize'"
        )
    if args.refill_rounds and compares_groups(estimator.part):
        raise ValueError(
            f"refill_rounds={args.refill_rounds} with advantage_estimator={estimator.name!r} would throw away groups that it "
            "learns from; set refill_rounds=0"
        )
    for task in CANVAS_TASKS:
        check_task("", args.settings_of(task, {}))
    check_spans(args)
    if args.sync_ref_model and args.beta == 0:
        raise ValueError("sync_ref_model=True with beta=0 updates a reference that is never used; set beta > 0")


def check_spans(args: Any) -> None:
    """Raises ``ValueError`` for pictures that do not fit their group, or their thoughts."""
    if args.num_generations % args.pictures_per_thought:
        raise ValueError(
            f"pictures_per_thought={args.pictures_per_thought} must divide num_generations={args.num_generations}: a group is so "
            "many pictures of each of its thoughts"
        )
    way = args.r2i_decoding
    if way == "thought_first":
        return
    if args.r2i_noise != "joint" or args.pictures_per_thought > 1:
        raise ValueError(
            f"r2i_decoding={way!r} writes a thought together with its one picture: set r2i_noise='joint' (it is {args.r2i_noise!r}) and "
            f"pictures_per_thought=1 (it is {args.pictures_per_thought})"
        )
    thought, picture = (args.for_task(span) for span in SPANS["r2i"])
    if thought.kv_cache != "none":
        raise ValueError(
            f"r2i_decoding={way!r} writes over what kv_cache={thought.kv_cache!r} keeps: set kv_cache='none' for the thought"
        )
    if way == "parallel":
        picture_times(thought.steps, picture.steps)
        picture_times(*(own.eval_denoising_steps or own.steps for own in (thought, picture)))


def check_overrides(args: Any) -> None:
    """Raises ``ValueError`` for an override that is unknown, out of range, or does not fit."""
    for task, values in args.task_overrides.items():
        where = f"task_overrides.{task}."
        for name, value in values.items():
            if name not in TASK_KEYS:
                near = difflib.get_close_matches(name, TASK_KEYS, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(f"{where}{name} is not allowed: {hint}keys are {list(TASK_KEYS)}")
            values[name] = value if value is None else TASK_KEYS[name].read(value, where)
        check_task(where, args.for_task(task))
    check_joint_noise(args)


def check_joint_noise(args: Any) -> None:
    """Raises ``ValueError`` for spans that cannot be noised together."""
    if args.r2i_noise == "joint":
        thought, picture = (args.for_task(task) for task in SPANS["r2i"])
        noisings = [own.choice("noising") for own in (thought, picture)]
        alike = [(own.noising, own.num_noise_samples) for own in (thought, picture)]
        if alike[0] != alike[1] or any(own.part.every_step for own in noisings):
            raise ValueError(
                f"r2i_noise='joint' hides both spans of an answer in one draw: give thought and picture one noising and "
                f"num_noise_samples, none that follows the order of writing; they are {alike}"
            )


def check_graphs(args: Any) -> None:
    """Raises ``ValueError`` for kept keys and values that CUDA graphs would write over: a replay reuses the memory of the one
    before.
    """
    for task in (task for task in CANVAS_TASKS if not is_picture(task)):
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
    settings = [args.for_task(task) for task in CANVAS_TASKS]
    summed = [own for own in settings if own.importance_sampling_level == "sequence_sum"]
    if any(own.uses_ratio for own in summed) and updates > 1:
        raise ValueError(
            f"importance_sampling_level='sequence_sum' with {updates} updates a rollout: off-policy, a ratio summed "
            "over many tokens spans orders of magnitude. Use 'sequence' (the mean) or 'token', or one update: "
            "num_iterations=1 and steps_per_generation=gradient_accumulation_steps"
        )

"""The arguments: defaults, presets, task overrides, and errors that name field, value and cure."""

from __future__ import annotations

import copy
import math
import pickle
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import Trainer

from unigrpo import MaskedDenoisingConfig, UniGRPOConfig
from unigrpo.config.run_checks import COMPILE_MODES, GRAPH_MODES
from unigrpo.config.task import TASK_KEYS

from ..support.configs import config


OUTSIDE = [
    ("num_generations", 1, "at least 2"), ("num_generations_eval", 0, "lie in [1, "), ("num_iterations", 0, "lie in [1, "),
    ("max_completion_length", 0, "at least 1"), ("steps", 0, "lie in [1, "), ("block_length", 0, "at least 1"),
    ("eval_denoising_steps", 0, "lie in [1, "), ("trajectory_shrink", 0, "at least 1"), ("bound_exponent", 0.5, "at least 1"),
    ("beta", -0.1, "negative"), ("guidance_scale", -1.0, "negative"), ("refill_rounds", -1, "negative"), ("temperature", -1.0, "negative"),
    ("eval_temperature", -1.0, "negative"), ("remask_temperature", -1.0, "negative"), ("loss_weight", -1.0, "negative"),
    ("top_k", -1, "not be negative"), ("epsilon_high", -0.1, "positive"), ("log_ratio_clip", 0.0, "positive"),
    ("advantage_temperature", 0.0, "positive"), ("advantage_clip", -1.0, "positive"), ("delta", 1.0, "greater than 1"),
    ("epsilon", 1.0, "(0, 1)"), ("epsilon", 0.0, "(0, 1)"), ("top_p", 0.0, "(0, 1]"), ("min_p", 1.5, "[0, 1]"),
    ("p_mask_prompt", 1.5, "[0, 1]"), ("bound_mixture", 1.5, "[0, 1]"), ("mask_ratio_min", 1.0, "[0, 1)"), ("mask_ratio_max", 1.5, "(0, 1]"),
    ("image_size", 0, "side in pixels or [height, width]"), ("image_size", [64, 64, 3], "[height, width]"),
    ("advantage_temperature", "x", "a number"), ("advantage_clip", "one", "a number"), ("sft_weight", "x", "a number"),
    ("refill_rounds", None, "a whole number"), ("sft_batch_size", 2.5, "a whole number"), ("offload_reward_models", "yes", "true or false"),
    ("rollout_batch_size", 0, "at least 1"), ("rollout_batch_size", 2.5, "a whole number"), ("reward_error", "warn", "['raise', 'none']"),
    ("reward_error", None, "is not valid"), ("reward_timeout", 0.0, "a positive number of seconds, or None for no bound"),
    ("reward_timeout", -1.0, "a positive"), ("reward_timeout", math.nan, "finite"), ("reward_timeout", math.inf, "finite"),
    ("reward_timeout", "soon", "a number, or none"), ("reward_timeout", True, "a number, or none"),
    ("torch_compile_backend", "inductr", "mean 'inductor'"), ("torch_compile_mode", "fast", "reduce-overhead"),
    ("advantage_temperature", math.nan, "finite"), ("use_vllm", True, "Leave it False"), ("auto_find_batch_size", True, "yourself"),
    ("algorithm", "unigrp0", "mean 'unigrpo'"), ("importance_sampling_level", "tokens", "mean 'token'"), ("kl_estimator", "k4", "k3"),
    ("scale_rewards", "groups", "mean 'group'"), ("loss_type", "mean", "grpo"),
    ("timesteps", "stratifed", "mean 'stratified'"), ("remasking", "confidence", "low_confidence"), ("reduce", "per_tokens", "mean 'per_token'"),
    ("multi_objective_aggregation", "sum", "normalize"), ("length_normalization", "mask", "mean 'masked'"),
    ("prompt_truncation", "middle", "'error', 'left', 'right'"), ("guidance", "rollouts", "mean 'rollout'"),
    ("image_transform", "stretch", "'squash', 'crop', 'pad'"), ("mask_schedule", "cos", "cosine"), ("remask_noise_decay", "none", "compound"),
    ("attn_mask_mode", "bol", "mean 'bool'"), ("draw_coupling", "antithetical", "mean 'antithetic'"), ("noising", "randon", "mean 'random'"),
    ("advantage_estimator", "leave_one", "mean 'leave_one_out'"), ("surrogate", "pppo", "mean 'ppo'"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "words"), OUTSIDE)
def test_a_value_outside_its_range_is_named_with_the_cure(key, value, words):
    """As a key of the run, and of one task."""
    given = [] if key == "loss_weight" else [(key, {key: value})]
    given += [(f"task_overrides.t2i.{key}", {"task_overrides": {"t2i": {key: value}}})] if key in TASK_KEYS else []
    for where, values in given:
        with pytest.raises(ValueError) as caught:
            config(**values)
        assert f"{where}={value!r}" in str(caught.value) and words in str(caught.value)


SUMMED = {"importance_sampling_level": "sequence_sum"}
GRAPHS = {"torch_compile_mode": "reduce-overhead", "kv_cache": "dual"}
NO_TEXT_CACHE = {"task_overrides": {"text": {"kv_cache": "none"}, "mmu": {"kv_cache": "none"}}}
APART = [
    ({"per_device_train_batch_size": 6, "num_generations": 4}, ["6 answers", "per_device_train_batch_size=6", "num_generations=4", "multiple"]),
    ({"steps_per_generation": 3, "gradient_accumulation_steps": 2}, ["steps_per_generation=3", "gradient_accumulation_steps=2", "multiple", "straddle"]),
    ({"generation_batch_size": 12, "per_device_train_batch_size": 8}, ["generation_batch_size=12", "= 8", "multiple"]),
    ({"steps_per_generation": 2, "generation_batch_size": 16}, ["steps_per_generation", "generation_batch_size", "not both"]),
    (GRAPHS, ["torch_compile_mode='reduce-overhead'", "with kv_cache='dual'", "CUDA graphs", "or kv_cache to 'none'"]),
    ({"torch_compile_mode": "max-autotune", "task_overrides": {"mmu": {"kv_cache": "prefix"}}}, ["task_overrides.mmu.kv_cache='prefix'", "'max-autotune-no-cudagraphs'"]),
    ({**GRAPHS, **NO_TEXT_CACHE}, ["torch_compile_mode='reduce-overhead' with kv_cache='dual'"]),
    ({"torch_compile_backend": "eager", "torch_compile_mode": "default"}, ["belongs to torch_compile_backend='inductor'"]),
    ({"loss_type": "cispo"}, ["loss_type='cispo'", "surrogate='cispo'"]),
    ({"task_overrides": {"t2i": {"loss_type": "cispo"}}}, ["task_overrides.t2i.loss_type='cispo'", "surrogate='cispo'"]),
    ({"temperature": 0.0}, ["temperature=0", "use e.g. 1.0"]),
    ({"task_overrides": {"text": {"temperature": 0.0}}}, ["task_overrides.text.temperature=0", "1.0"]),
    ({"timestep_start": 1001}, ["timestep_start=1001", "num_timesteps=1000"]),
    ({"task_overrides": {"text": {"timestep_start": 2000}}}, ["task_overrides.text.timestep_start=2000", "num_timesteps=1000"]),
    ({"sync_ref_model": True, "beta": 0.0}, ["sync_ref_model=True", "beta=0", "beta > 0"]),
    (SUMMED, ["'sequence_sum' with 4 updates a rollout", "Use 'sequence'", "num_iterations=1"]),
    ({**SUMMED, "num_iterations": 1, "steps_per_generation": 2}, ["with 2 updates", "steps_per_generation=gradient_accumulation_steps"]),
    ({"task_overrides": {"t2i": SUMMED}}, ["'sequence_sum' with 4 updates"]),
    ({"algorithm": "espo", "num_noise_samples": 3}, ["num_noise_samples=3", "pairs", "even", "draw_coupling='stratified'"]),
    ({"algorithm": "espo", "task_overrides": {"t2i": {"num_noise_samples": 3}}}, ["task_overrides.t2i.num_noise_samples=3", "even"]),
    ({"num_noise_samples": 0}, ["num_noise_samples=0", "every step", "StructuredNoising", "at least 1"]),
    ({"algorithm": "trace_rl", "task_overrides": {"t2i": {"noising": "full", "num_noise_samples": 0}}}, ["task_overrides.t2i.num_noise_samples=0", "FullNoising"]),
    ({"kl_estimator": "exact", "kl_reference": "old"}, ["kl_estimator='exact'", "kl_reference='old'", "'k3'", "'initial'"]),
    ({"algorithm": "coupled_grpo", "mask_ratio_min": 0.9}, ["mask_ratio_min=0.9", "greater than mask_ratio_max=0.8"]),
    ({"mask_ratio_min": 0.3}, ["mask_ratio_min=0.3", "timesteps='stratified'", "'truncated'"]),
    ({"delta": 1.05}, ["delta=1.05 must be greater than 1.2"]),
    ({"advantage_estimator": "softmax", "multi_objective_aggregation": "normalize_then_sum"}, ["advantage_estimator='softmax' with", "use 'sum_then_normalize'"]),
    ({"advantage_estimator": "batch_mean", "refill_rounds": 1}, ["refill_rounds=1 with", "set refill_rounds=0"]),
    ({"algorithm": "espo", "epsilon": 0.0}, ["epsilon=0.0", "(0, 1)"]),
    ({"task_overrides": '{"t2i": '}, ["task_overrides", "JSON"]),
    ({"task_overrides": "[1]"}, ["task_overrides=[1]", "mapping"]),
    ({"task_overrides": {"t2i": 3}}, ["task_overrides.t2i=3", "mapping"]),
    ({"task_overrides": {"image": {}}}, ["task_overrides", "'image'", "t2i"]),
    ({"task_overrides": {"t2i": {"step": 3}}}, ["task_overrides.t2i.step", "did you mean 'steps'", "guidance_scale"]),
    ({"task_overrides": {"t2i": {"num_generations": 3}}}, ["task_overrides.t2i.num_generations", "not allowed"]),
    ({"task_overrides": {"t2i": {"num_iterations": 3}}}, ["task_overrides.t2i.num_iterations", "not allowed"]),
]  # fmt: skip


@pytest.mark.parametrize(("values", "parts"), APART)
def test_values_that_do_not_go_together_are_named_with_the_cure(values, parts):
    with pytest.raises(ValueError) as caught:
        config(**values)
    assert [part for part in parts if part not in str(caught.value)] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="bf16 is fine with a GPU")
def test_bf16_without_a_gpu():
    with pytest.raises(ValueError, match=r"bf16=True needs a GPU.*bf16=False.*use_cpu=True"):
        config(bf16=True, use_cpu=False)
    assert config(bf16=True).bf16


@pytest.mark.smoke
def test_defaults():
    args = config()
    expected = {
        "num_generations": 8, "num_iterations": 4, "num_noise_samples": 1, "epsilon": 0.2, "epsilon_high": 0.2, "beta": 0.01,
        "scale_rewards": "group", "loss_type": "grpo", "length_normalization": "masked", "importance_sampling_level": "token",
        "timesteps": "stratified", "num_timesteps": 1000, "timestep_start": None, "noising": "structured", "disable_dropout": True,
        "remove_unused_columns": False, "learning_rate": None, "ddp_find_unused_parameters": False, "offload_image_tokenizer": False,
        "offload_reward_models": False, "steps_per_generation": 1, "generation_batch_size": 8,
    }  # fmt: skip
    assert {key: getattr(args, key) for key in expected} == expected
    assert args.for_task("text").epsilon_high == 0.2


def test_overridden_ratio_level_brings_its_clip_range():
    args = config(epsilon_high=0.3, task_overrides={"t2i": {"importance_sampling_level": "sequence"}})
    own, other = args.for_task("t2i"), args.for_task("text")
    # What was given holds for every task; only the default follows the level.
    assert (own.epsilon, own.epsilon_high) == (1e-3, 0.3)
    assert (other.epsilon, other.epsilon_high) == (0.2, 0.3)
    explicit = {"importance_sampling_level": "sequence", "epsilon": 0.01, "epsilon_high": 0.02}
    settings = config(task_overrides={"t2i": explicit}).for_task("t2i")
    assert (settings.epsilon, settings.epsilon_high) == (0.01, 0.02)


@pytest.mark.parametrize(("value", "meaning"), [(True, "group"), (False, "none"), ("batch", "batch"), (None, "group")])
def test_scale_rewards_takes_bools(value, meaning):
    assert config(scale_rewards=value).scale_rewards == meaning


def test_rollout_sizes():
    args = config(per_device_train_batch_size=4, gradient_accumulation_steps=2, num_generations=4)
    assert (args.steps_per_generation, args.generation_batch_size) == (2, 8)
    args = config(
        per_device_train_batch_size=4, gradient_accumulation_steps=2, num_generations=4, generation_batch_size=16
    )
    assert (args.steps_per_generation, args.generation_batch_size) == (4, 16)


def test_graph_modes_are_those_that_torch_replays():
    """Kept keys and values are refused with these modes and with no other, and these modes without a cache are fine."""
    options = torch._inductor.list_mode_options()
    assert set(GRAPH_MODES) == {mode for mode, own in options.items() if own.get("triton.cudagraphs")}
    for mode in COMPILE_MODES:
        assert config(torch_compile_mode=mode).for_task("text").kv_cache == "none"
        without = {task: {"kv_cache": "none"} for task in ("text", "mmu", "thought")}
        pictures = config(torch_compile_mode=mode, kv_cache="dual", task_overrides=without)
        assert pictures.for_task("text").kv_cache == "none"
        if mode not in GRAPH_MODES:
            assert config(torch_compile_mode=mode, kv_cache="dual").kv_cache == "dual"


def test_unused_parameters_are_not_searched_for_unless_asked(monkeypatch):
    """What accelerate hands to DDP: transformers would search under an adapter."""
    handed = []
    monkeypatch.setattr(transformers.trainer, "DistributedDataParallelKwargs", lambda **own: handed.append(own))
    for asked, expected in (({}, False), ({"ddp_find_unused_parameters": True}, True)):
        trainer = SimpleNamespace(args=config(**asked), model=torch.nn.Linear(1, 1))
        Trainer._build_accelerator_args(trainer)
        assert handed.pop()["find_unused_parameters"] is expected


@pytest.mark.parametrize("kind", [UniGRPOConfig, MaskedDenoisingConfig])
def test_a_token_is_used_and_never_shown(kind, tmp_path):
    """Trackers, logs and checkpoints get the arguments; a copy for a run keeps the token."""
    args = kind(
        str(tmp_path),
        model_init_kwargs={"token": "hf_secret", "revision": "main"},
        hub_token="hf_other",
        report_to="none",
    )
    shown = f"{args} {args!r} {args.to_dict()} {args.to_json_string()} {args.to_sanitized_dict()} {pickle.loads(pickle.dumps(args)).__dict__}"
    assert "hf_secret" not in shown and "hf_other" not in shown and "'revision': 'main'" in shown
    assert copy.copy(args).model_init_kwargs["token"] == "hf_secret" and copy.copy(args).hub_token == "hf_other"

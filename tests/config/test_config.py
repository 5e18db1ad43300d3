"""The arguments: defaults, presets, task overrides, and errors that name field, value and cure."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import Trainer

from unigrpo import MaskedDenoisingConfig, UniGRPOConfig
from unigrpo.config.run_checks import COMPILE_MODES, GRAPH_MODES

from ..support.configs import config


ERRORS = {
    "one generation": ({"num_generations": 1}, ["num_generations=1", "at least 2"]),
    "no eval generation": ({"num_generations_eval": 0}, ["num_generations_eval=0", "at least 1"]),
    "no update": ({"num_iterations": 0}, ["num_iterations=0", "at least 1"]),
    "no answer": ({"max_completion_length": 0}, ["max_completion_length=0", "at least 1"]),
    "no steps": ({"steps": 0}, ["steps=0", "at least 1"]),
    "no block": ({"block_length": 0}, ["block_length=0", "at least 1"]),
    "indivisible": (
        {"per_device_train_batch_size": 6, "num_generations": 4},
        ["6 answers", "per_device_train_batch_size=6", "num_generations=4", "multiple"],
    ),
    "straddling": (
        {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
        ["steps_per_generation=3", "gradient_accumulation_steps=2", "multiple", "straddle"],
    ),
    "generation batch": (
        {"generation_batch_size": 12, "per_device_train_batch_size": 8},
        ["generation_batch_size=12", "= 8", "multiple"],
    ),
    "both sizes": (
        {"steps_per_generation": 2, "generation_batch_size": 16},
        ["steps_per_generation", "generation_batch_size", "not both"],
    ),
    "algorithm": ({"algorithm": "unigrp0"}, ["algorithm='unigrp0'", "did you mean 'unigrpo'", "choose one of"]),
    "graphs": (
        {"torch_compile_mode": "reduce-overhead", "kv_cache": "dual"},
        ["torch_compile_mode='reduce-overhead'", "with kv_cache='dual'", "CUDA graphs", "or kv_cache to 'none'"],
    ),
    "graphs of a task": (
        {"torch_compile_mode": "max-autotune", "task_overrides": {"mmu": {"kv_cache": "prefix"}}},
        ["torch_compile_mode='max-autotune'", "task_overrides.mmu.kv_cache='prefix'", "'max-autotune-no-cudagraphs'"],
    ),
    "graphs of a thought": (
        {
            "torch_compile_mode": "reduce-overhead",
            "kv_cache": "dual",
            "task_overrides": {"text": {"kv_cache": "none"}, "mmu": {"kv_cache": "none"}},
        },
        ["torch_compile_mode='reduce-overhead' with kv_cache='dual'"],
    ),
    "offload": ({"offload_reward_models": "yes"}, ["offload_reward_models='yes'", "true or false"]),
    "vllm": ({"use_vllm": True}, ["use_vllm=True", "Leave it False"]),
    "auto batch": ({"auto_find_batch_size": True}, ["auto_find_batch_size=True", "yourself"]),
    "epsilon": ({"epsilon": 1.0}, ["epsilon=1.0", "(0, 1)"]),
    "epsilon zero": ({"epsilon": 0.0}, ["epsilon=0.0", "(0, 1)"]),
    "epsilon high": ({"epsilon_high": -0.1}, ["epsilon_high=-0.1", "positive"]),
    "temperature": ({"temperature": 0.0}, ["temperature=0", "use e.g. 1.0"]),
    "negative temperature": ({"temperature": -1.0}, ["temperature=-1.0", "negative"]),
    "negative beta": ({"beta": -0.1}, ["beta=-0.1", "negative"]),
    "negative guidance": ({"guidance_scale": -1.0}, ["guidance_scale=-1.0", "negative"]),
    "negative refills": ({"refill_rounds": -1}, ["refill_rounds=-1", "negative"]),
    "timestep": ({"timestep_start": 1001}, ["timestep_start=1001", "num_timesteps=1000"]),
    "sync without reference": ({"sync_ref_model": True, "beta": 0.0}, ["sync_ref_model=True", "beta=0", "beta > 0"]),
    "level": ({"importance_sampling_level": "tokens"}, ["importance_sampling_level='tokens'", "mean 'token'"]),
    "kl": ({"kl_estimator": "k4"}, ["kl_estimator='k4'", "k1", "k2", "k3"]),
    "scale": ({"scale_rewards": "groups"}, ["scale_rewards='groups'", "mean 'group'"]),
    "loss": ({"loss_type": "mean"}, ["loss_type='mean'", "grpo"]),
    "loss of TRL": ({"loss_type": "cispo"}, ["loss_type='cispo'", "surrogate='cispo'"]),
    "no token": ({"top_k": -1}, ["top_k=-1", "not be negative"]),
    "no mass": ({"top_p": 0.0}, ["top_p=0.0", "lie in (0, 1]"]),
    "more than the likeliest": ({"min_p": 1.5}, ["min_p=1.5", "lie in [0, 1]"]),
    "rule": ({"timesteps": "stratifed"}, ["timesteps='stratifed'", "mean 'stratified'"]),
    "remasking": ({"remasking": "confidence"}, ["remasking='confidence'", "low_confidence"]),
    "aggregation": ({"multi_objective_aggregation": "sum"}, ["multi_objective_aggregation='sum'", "normalize"]),
    "normalization": ({"length_normalization": "mask"}, ["length_normalization='mask'", "mean 'masked'"]),
    "truncation": ({"prompt_truncation": "middle"}, ["prompt_truncation='middle'", "'error', 'left', 'right'"]),
    "guidance": ({"guidance": "rollouts"}, ["guidance='rollouts'", "mean 'rollout'"]),
    "transform": ({"image_transform": "stretch"}, ["image_transform='stretch'", "'squash', 'crop', 'pad'"]),
    "schedule": ({"mask_schedule": "cos"}, ["mask_schedule='cos'", "cosine"]),
    "decay": ({"remask_noise_decay": "none"}, ["remask_noise_decay='none'", "compound"]),
    "image size": ({"image_size": 0}, ["image_size=0", "side in pixels or [height, width]"]),
    "image sizes": ({"image_size": [64, 64, 3]}, ["image_size=[64, 64, 3]", "[height, width]"]),
    "mask ratio": ({"mask_ratio_min": 1.0}, ["mask_ratio_min=1.0", "[0, 1)"]),
    "eval steps": ({"eval_denoising_steps": 0}, ["eval_denoising_steps=0", "at least 1"]),
    "eval temperature": ({"eval_temperature": -1.0}, ["eval_temperature=-1.0", "negative"]),
    "remask temperature": ({"remask_temperature": -1.0}, ["remask_temperature=-1.0", "negative"]),
    "summed, two updates": (
        {"importance_sampling_level": "sequence_sum"},
        ["'sequence_sum' with 4 updates a rollout", "Use 'sequence'", "num_iterations=1"],
    ),
    "summed, two steps": (
        {"importance_sampling_level": "sequence_sum", "num_iterations": 1, "steps_per_generation": 2},
        ["with 2 updates", "steps_per_generation=gradient_accumulation_steps"],
    ),
    "summed, one task": (
        {"task_overrides": {"t2i": {"importance_sampling_level": "sequence_sum"}}},
        ["'sequence_sum' with 4 updates"],
    ),
    "overrides, no JSON": ({"task_overrides": '{"t2i": '}, ["task_overrides", "JSON"]),
    "overrides, a list": ({"task_overrides": "[1]"}, ["task_overrides=[1]", "mapping"]),
    "override, no mapping": ({"task_overrides": {"t2i": 3}}, ["task_overrides.t2i=3", "mapping"]),
    "override transform": (
        {"task_overrides": {"mmu": {"image_transform": "fit"}}},
        ["task_overrides.mmu.image_transform='fit'", "squash"],
    ),
    "attention": ({"attn_mask_mode": "bol"}, ["attn_mask_mode='bol'", "mean 'bool'"]),
    "task": ({"task_overrides": {"image": {}}}, ["task_overrides", "'image'", "t2i"]),
    "override key": (
        {"task_overrides": {"t2i": {"step": 3}}},
        ["task_overrides.t2i.step", "did you mean 'steps'", "guidance_scale"],
    ),
    "override batch": (
        {"task_overrides": {"t2i": {"num_generations": 3}}},
        ["task_overrides.t2i.num_generations", "not allowed"],
    ),
    "override iterations": (
        {"task_overrides": {"t2i": {"num_iterations": 3}}},
        ["task_overrides.t2i.num_iterations", "not allowed"],
    ),
    "override choice": ({"task_overrides": {"text": {"kl_estimator": "k9"}}}, ["task_overrides.text.kl_estimator='k9'", "k3"]),
    "override epsilon": ({"task_overrides": {"text": {"epsilon": 2}}}, ["task_overrides.text.epsilon=2", "(0, 1)"]),
    "override temperature": ({"task_overrides": {"text": {"temperature": 0.0}}}, ["task_overrides.text.temperature=0", "1.0"]),
    "override steps": ({"task_overrides": {"text": {"steps": 0}}}, ["task_overrides.text.steps=0", "at least 1"]),
    "override beta": ({"task_overrides": {"text": {"beta": -1.0}}}, ["task_overrides.text.beta=-1.0", "negative"]),
    "override timestep": (
        {"task_overrides": {"text": {"timestep_start": 2000}}},
        ["task_overrides.text.timestep_start=2000", "num_timesteps=1000"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_error_names_field_value_and_cure(case):
    values, parts = ERRORS[case]
    with pytest.raises(ValueError) as caught:
        config(**values)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="bf16 is fine with a GPU")
def test_bf16_without_a_gpu():
    with pytest.raises(ValueError, match=r"bf16=True needs a GPU.*bf16=False.*use_cpu=True"):
        config(bf16=True, use_cpu=False)
    assert config(bf16=True).bf16


@pytest.mark.smoke
def test_defaults():
    args = config()
    expected = {
        "num_generations": 8,
        "num_iterations": 4,
        "num_noise_samples": 1,
        "epsilon": 0.2,
        "epsilon_high": 0.2,
        "beta": 0.01,
        "scale_rewards": "group",
        "loss_type": "grpo",
        "length_normalization": "masked",
        "importance_sampling_level": "token",
        "timesteps": "stratified",
        "num_timesteps": 1000,
        "timestep_start": None,
        "noising": "structured",
        "disable_dropout": True,
        "remove_unused_columns": False,
        "learning_rate": None,
        "ddp_find_unused_parameters": False,
        "offload_image_tokenizer": False,
        "offload_reward_models": False,
        "steps_per_generation": 1,
        "generation_batch_size": 8,
    }
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

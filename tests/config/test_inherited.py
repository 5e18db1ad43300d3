"""Keys that come from ``TrainingArguments`` and from peft are read as strictly as the own ones."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from peft import LoraConfig
from transformers import TrainingArguments

from unigrpo.config.arguments import UniGRPOConfig
from unigrpo.config.inherited import AT_LEAST, BELOW, settle_fields, settle_inherited
from unigrpo.errors import RecipeError
from unigrpo.runs.build import build_config, build_lora

from ..support.configs import config
from ..support.recipes import MINIMAL, recipe


WRONG = [1 + 2j]
"""Of no field's type: no number, no text, no mapping, and a list of neither."""

MISTAKES = {
    "learning_rate": ("fast", "a number of at least 0"),
    "max_steps": ("ten", "a whole number of at least -1"),
    "seed": ("abc", "a whole number of at least 0 and below 4294967296"),
    "data_seed": (-1, "at least 0"),
    "report_to": (["wandbb"], "report_to='wandbb' is not valid: did you mean 'wandb'?"),
    "lr_scheduler_type": ("cosin", "did you mean 'cosine'?"),
    "optim": ("adamw_torhc", "did you mean 'adamw_torch'?"),
    "save_strategy": ("stpes", "did you mean 'steps'?"),
    "eval_strategy": ("epohc", "did you mean 'epoch'?"),
    "hub_strategy": ("endd", "did you mean 'end'?"),
    "log_level": ("errr", "did you mean 'error'?"),
    "ddp_backend": ("ncl", "did you mean 'nccl'?"),
    "debug": ("underflow", "did you mean 'underflow_overflow'?"),
    "dataloader_multiprocessing_context": ("forkk", "did you mean 'fork'?"),
    "warmup_steps": (-1, "at least 0"),
    "per_device_train_batch_size": (0, "at least 1"),
    "gradient_accumulation_steps": (2.5, "a whole number of at least 1"),
    "max_grad_norm": (-1, "at least 0"),
    "weight_decay": ("x", "a number"),
    "adam_beta1": (2, "a number of at least 0 and below 1"),
    "adam_epsilon": (float("nan"), "a number"),
    "num_train_epochs": ("x", "a number"),
    "logging_steps": (True, "a number"),
    "bf16": ("true", "true or false, without quotes"),
    "use_cpu": (1, "true or false"),
    "run_name": (5, "text or None"),
    "hub_token": (5, "hub_token=*** must be text"),
    "label_names": ("labels", "a list of text items or None"),
    "liger_kernel_config": ({"rope": "no"}, "a mapping"),
    "lr_scheduler_kwargs": ("{min_lr", "is not JSON"),
    "gradient_checkpointing_kwargs": ("use_reentrant", "must be a mapping, or JSON of one"),
    "fsdp_config": ("nope.json", "is not a file"),
    "accelerator_config": ({"split_batchs": True}, "did you mean 'split_batches'?"),
    "parallelism_config": ({"tp_size": 2}, "a ParallelismConfig or None"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_with_field_value_and_cure(name, tmp_path):
    value, cure = MISTAKES[name]
    with pytest.raises(ValueError, match=f"^{name}") as caught:
        config(**{name: value})
    assert cure in str(caught.value) and "\n" not in str(caught.value)
    written = recipe(tmp_path, MINIMAL)
    written.config[name] = value
    with pytest.raises(RecipeError) as from_recipe:
        build_config(written)
    assert str(from_recipe.value).endswith(str(caught.value))


@pytest.mark.smoke
@pytest.mark.parametrize("name", [own.name for own in fields(TrainingArguments) if own.init])
def test_every_inherited_field_has_a_type(name):
    """Also those that a later version brings: the types are read from the annotations."""
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        UniGRPOConfig(**{"output_dir": "unused", "use_cpu": True, name: WRONG})


def test_a_field_that_is_new_is_typed_without_being_listed(monkeypatch):
    @dataclass
    class Later(TrainingArguments):
        patience: int = 3
        kept: list[float] | None = None

    monkeypatch.setattr("unigrpo.config.inherited.TrainingArguments", Later)
    args = Later("unused", use_cpu=True, patience="7")
    settle_inherited(args)
    assert args.patience == 7
    args.kept = ["much"]
    with pytest.raises(ValueError, match="kept="):
        settle_inherited(args)


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", None, None),
        ("max_steps", "10", 10),
        ("max_steps", "1e3", 1000),
        ("seed", 7.0, 7),
        ("warmup_steps", 0.1, 0.1),
        ("output_dir", Path("runs"), "runs"),
        ("report_to", ["none"], []),
        ("lr_scheduler_kwargs", '{"power": 2}', {"power": 2}),
        ("include_num_input_tokens_seen", True, "all"),
        ("fsdp", False, False),
    ],
)
def test_what_is_plainly_meant_is_taken(name, given, read):
    args = UniGRPOConfig(**{"output_dir": "unused", "use_cpu": True, name: given})
    found = getattr(args, name)
    assert found == read and type(found) is type(read)
    # What a run has settled is taken again.
    settle_inherited(args)
    assert getattr(args, name) == found


@pytest.mark.parametrize(
    ("change", "cure"),
    [
        ("r=big", "lora.r='big' must be a whole number of at least 1"),
        ("r=0", "at least 1"),
        ("lora_dropout=1.5", "lora.lora_dropout=1.5 must be a number of at least 0 and below 1"),
        ("bias=al", "did you mean 'all'?"),
        ("use_dora='yes'", "true or false, without quotes"),
        ("target_modules=[1]", "a list of text items"),
        ("init_lora_weights=pisa", "did you mean 'pissa'?"),
        ("layer_replication=[[0, 4, 2]]", "lora.layer_replication"),
        ("loftq_config.loftq_bits=four", "lora.loftq_config.loftq_bits='four' must be a whole number"),
        ("eva_config.roh=2", "did you mean 'rho'?"),
    ],
)
def test_adapter_keys_are_typed_by_peft(change, cure, tmp_path):
    with pytest.raises(RecipeError, match=r"recipe\.yaml: lora") as caught:
        recipe(tmp_path, MINIMAL, f"lora.{change}")
    assert cure in str(caught.value)


def test_adapter_keys_as_text_and_as_mappings(tmp_path):
    built = build_lora(recipe(tmp_path, MINIMAL, "lora.r='16'", "lora.eva_config.rho=3.0"))
    # peft makes an object of a mapping from 0.21 on.
    eva = built.eva_config
    assert built.r == 16 and (eva["rho"] if isinstance(eva, dict) else eva.rho) == 3.0
    assert build_lora(recipe(tmp_path, MINIMAL, "lora.init_lora_weights=pissa")).init_lora_weights == "pissa"


@pytest.mark.parametrize("name", [own.name for own in fields(LoraConfig) if own.init])
def test_every_adapter_key_has_a_type(name):
    with pytest.raises(ValueError, match=rf"^lora\.{name}="):
        settle_fields(LoraConfig, {name: WRONG}, "lora.")


def test_ranges_are_of_fields_that_there_are():
    """``warmup_ratio`` is gone from newer transformers."""
    known = {own.name for own in fields(TrainingArguments)} | {f"lora.{own.name}" for own in fields(LoraConfig)}
    assert {*AT_LEAST, *BELOW} - known <= {"warmup_ratio"}

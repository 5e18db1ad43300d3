"""Nothing that ``TrainingArguments`` brings is swallowed: every field works, is refused with the cure, or warns."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, fields

import pytest
from transformers import TrainingArguments
from trl import GRPOConfig, SFTConfig

from unigrpo.config.arguments import UniGRPOConfig
from unigrpo.config.denoising_arguments import MaskedDenoisingConfig
from unigrpo.config.sorted_keys import IGNORED, REFUSED, UNSORTED, unsorted_fields
from unigrpo.config.trl_keys import OF_SFT, OTHER_NAMES, cure_of
from unigrpo.runs.kinds import key_of_other
from unigrpo.runs.sft import parse_sft_recipe

from ..support.configs import config
from ..support.recipes import MINIMAL, recipe
from ..support.runs import history
from ..support.tiny import prompts


pytestmark = pytest.mark.smoke

OTHER = {
    "liger_kernel_config": {"rope": True},
    "length_column_name": "size",
    "label_names": ["labels"],
    "include_for_metrics": ["loss"],
    "include_num_input_tokens_seen": "all",
    "train_sampling_strategy": "sequential",
    "debug": "underflow_overflow",
    "label_smoothing_factor": 0.1,
    "dataloader_multiprocessing_context": "fork",
    "ddp_static_graph": True,
}
"""Values of fields that take another than the one below."""

HERE = {own.name for own in fields(TrainingArguments)}


def other_value(name: str):
    """A value of a sorted field that is not its default."""
    default = next(own.default for own in fields(TrainingArguments) if own.name == name)
    return OTHER.get(name, not default if isinstance(default, bool) else 2)


def test_every_inherited_field_is_sorted_once():
    assert unsorted_fields(TrainingArguments) == [], UNSORTED.format(names=unsorted_fields(TrainingArguments))


def test_a_field_of_a_later_release_is_noticed():
    @dataclass
    class Later(TrainingArguments):
        patience: int = 3

    assert unsorted_fields(Later) == ["patience"]


ROLLED_OUT = re.compile(r"rollout|window|prompt|reward|kv_cache|score|\bratio")
"""Words of reinforcement learning."""


@pytest.mark.parametrize("name", sorted(({*REFUSED, *IGNORED} & HERE) - {"parallelism_config", "tf32"}))
def test_fine_tuning_is_told_nothing_of_rollouts(name):
    more = {"dataloader_num_workers": 2} if name.startswith("dataloader") else {}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            MaskedDenoisingConfig("unused", use_cpu=True, **{**more, name: other_value(name)})
            (said,) = [str(own.message) for own in warned if str(own.message).startswith("these keys")]
        except ValueError as error:
            said = str(error)
    assert name in said and not ROLLED_OUT.search(said)


@pytest.mark.parametrize("name", sorted((REFUSED.keys() & HERE) - {"parallelism_config", "tf32"}))
def test_what_would_break_the_algorithm_is_refused_with_the_cure(name):
    with pytest.raises(ValueError, match=f"^{name}=") as caught:
        config(**{name: other_value(name)})
    assert str(caught.value).endswith(REFUSED[name])


@pytest.mark.parametrize("name", sorted(IGNORED.keys() & HERE))
def test_what_does_nothing_says_so(name):
    value = other_value(name)
    more = {"dataloader_num_workers": 2} if name.startswith("dataloader") else {}
    with pytest.warns(UserWarning, match=re.escape(f"{name}={value!r} ({IGNORED[name]})")):
        made = config(**{**more, name: value})
    assert getattr(made, name) == value


def test_defaults_are_silent_also_in_a_config_made_again():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = config()
        UniGRPOConfig(**{name: getattr(made, name) for name in sorted(HERE)})


def test_half_precision_needs_a_device_that_has_it():
    with pytest.raises(ValueError, match="fp16=True needs a GPU"):
        config(fp16=True)


def test_determinism_changes_no_number(make_trainer):
    """It is the same run, by kernels that are deterministic on every device."""
    import torch

    runs = []
    for full_determinism in (False, True):
        trainer = make_trainer(full_determinism=full_determinism, max_steps=2)
        try:
            trainer.train()
        finally:
            torch.use_deterministic_algorithms(False)
        runs.append(history(trainer))
    assert runs[0] == runs[1]


# ---- keys of TRL ----


@pytest.mark.parametrize(
    "name", sorted({own.name for own in fields(GRPOConfig)} - {own.name for own in fields(UniGRPOConfig)})
)
def test_a_key_of_trl_is_answered_with_the_cure(name, tmp_path):
    assert cure_of(name) is not None, f"{name}: give it a cure in unigrpo/config/trl_keys.py"
    with pytest.raises(TypeError, match=f"^{name} is no key of UniGRPOConfig: ") as caught:
        config(**{name: 1})
    assert str(caught.value).endswith(cure_of(name))
    with pytest.raises(ValueError, match=f"unknown key '{name}'") as of_recipe:
        recipe(tmp_path, MINIMAL, f"{name}=1")
    assert str(of_recipe.value).endswith(cure_of(name))


@pytest.mark.parametrize(
    "name", sorted({own.name for own in fields(SFTConfig)} - {own.name for own in fields(MaskedDenoisingConfig)})
)
def test_a_key_of_trls_fine_tuning_is_answered_with_the_cure(name):
    assert name in OF_SFT, f"{name}: give it a cure in unigrpo/config/trl_keys.py"
    with pytest.raises(TypeError, match=f"^{name} is no key of MaskedDenoisingConfig: ") as caught:
        MaskedDenoisingConfig("runs/x", **{name: 1})
    assert str(caught.value).endswith(OF_SFT[name])
    with pytest.raises(ValueError, match=f"unknown key '{name}'; ") as of_recipe:
        parse_sft_recipe({name: 1}, "mine.yaml")
    assert str(of_recipe.value).endswith(key_of_other(name, "sft") or OF_SFT[name])


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_what_others_call_a_key_is_answered_with_its_name_here(name):
    assert OTHER_NAMES[name] in {own.name for own in fields(UniGRPOConfig)}
    with pytest.raises(
        TypeError, match=f"^{name} is no key of UniGRPOConfig: its name here is '{OTHER_NAMES[name]}'$"
    ):
        config(**{name: 1})


@pytest.mark.parametrize("kind", [UniGRPOConfig, MaskedDenoisingConfig])
def test_a_misspelt_key_is_answered_with_the_nearest(kind):
    with pytest.raises(TypeError, match=f"lerning_rate is no key of {kind.__name__}: did you mean 'learning_rate'"):
        kind("runs/x", lerning_rate=1)


# ---- the best checkpoint ----

SAVING = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


@pytest.mark.parametrize(
    ("change", "cure"),
    [
        ({"eval_strategy": "no"}, "set it to 'steps' or 'epoch'"),
        ({"save_strategy": "epoch"}, "save_strategy='epoch' must be that of eval_strategy='steps', or 'best'"),
        ({"eval_steps": 2, "save_steps": 3}, "save_steps=3 must be a multiple of eval_steps=2"),
        ({"eval_steps": 0.1, "save_steps": 3}, "save_steps=3 must be a multiple of eval_steps=0.1"),
        ({"metric_for_best_model": "loss"}, "leave it out for 'eval_reward'"),
    ],
)
def test_a_best_checkpoint_that_cannot_be_found_is_refused_before_the_run(change, cure):
    with pytest.raises(ValueError, match=r"^(load_best_model_at_end=True|metric_for_best_model='loss')") as caught:
        config(load_best_model_at_end=True, **{**SAVING, **change})
    assert cure in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "sets"), [("accuracy", None), ("eval_rewards/other/mean", None), ("eval_reward", {"near": prompts(2)})]
)
def test_a_metric_that_no_evaluation_has_is_refused_before_the_run(metric, sets, make_trainer):
    with pytest.raises(ValueError, match="metric_for_best_model=") as caught:
        make_trainer(eval_rows=sets or prompts(2), metric_for_best_model=metric, load_best_model_at_end=True, **SAVING)
    assert "eval_near_reward" in str(caught.value) if sets else "eval_reward" in str(caught.value)


def test_the_best_weights_are_those_of_the_highest_held_out_reward(make_trainer, monkeypatch):
    """By default, and not those with the lowest loss, which no evaluation has."""
    trainer = make_trainer(eval_rows=prompts(2), load_best_model_at_end=True, max_steps=3, **SAVING)
    assert (trainer.args.metric_for_best_model, trainer.args.greater_is_better) == ("eval_reward", True)
    weights, rewards, evaluate = [], iter([0.1, 0.7, 0.3]), trainer.evaluate

    def scored(*given, **named):
        weights.append(trainer.model.get_output_embeddings().weight.detach().clone())
        return {**evaluate(*given, **named), "eval_reward": next(rewards)}

    monkeypatch.setattr(trainer, "evaluate", scored)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert trainer.model.get_output_embeddings().weight.equal(weights[1])
    assert not weights[1].equal(weights[2])

"""A run starts where it says: something trains, ratio 1, KL 0. Adapters of all kinds are in ``tests/models/test_adapter_table.py``."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from unigrpo import UniGRPOConfig, UniGRPOTrainer
from unigrpo.models import reference
from unigrpo.training import setup

from ..support.adapters import two_adapters
from ..support.runs import adapted, logs_of
from ..support.tiny import TRAINING, low_ids, prompts, tiny_model, tiny_processor


SHORT = {**TRAINING, "max_steps": 1, "num_iterations": 1, "steps_per_generation": 2, "max_completion_length": 6}


def trainer_of(tmp_path, model, config=None, optimizers=(None, None), **changes) -> UniGRPOTrainer:
    settings = UniGRPOConfig(**{**SHORT, "output_dir": str(tmp_path / "run"), **changes})
    return UniGRPOTrainer(
        model,
        low_ids,
        settings,
        prompts(16),
        processing_class=tiny_processor(),
        peft_config=config,
        optimizers=optimizers,
    )


def saved(folder) -> str:
    adapted().save_pretrained(folder)
    return str(folder)


# ---- something trains ----


def test_the_configuration_of_a_saved_adapter_trains_as_a_fresh_one(tmp_path):
    config = LoraConfig.from_pretrained(saved(tmp_path / "saved"))
    assert config.inference_mode
    trainer = trainer_of(tmp_path, tiny_model(), config)
    before = {name: own.detach().clone() for name, own in trainer.model.named_parameters() if own.requires_grad}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert len(before) == 42 and any(not torch.equal(after[name], value) for name, value in before.items())
    assert config.inference_mode, "the caller's own is left as it is"


def frozen(tmp_path):
    return tiny_model().requires_grad_(False), {}


def merged(tmp_path):
    return adapted().merge_and_unload(), {}


def opened_to_be_read(tmp_path):
    return PeftModel.from_pretrained(tiny_model(), saved(tmp_path / "saved")), {}


def trained_beside_the_active_one(tmp_path):
    model = adapted()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    for name, own in model.named_parameters():
        own.requires_grad_(".second." in name)
    return model, {}


def two_at_once(tmp_path):
    model = adapted()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])
    return model, {}


def optimizer_of_what_was_frozen(tmp_path):
    model = tiny_model()
    return model, {"config": LoraConfig(r=4), "optimizers": (torch.optim.SGD(model.parameters(), 1e-3), None)}


def optimizer_of_another_model(tmp_path):
    return tiny_model(), {"optimizers": (torch.optim.SGD(tiny_model().parameters(), 1e-3), None)}


NOTHING = {
    frozen: r"nothing to train.*model.requires_grad_\(True\)",
    merged: "nothing to train.*merging",
    opened_to_be_read: "nothing to train.*is_trainable=True",
    trained_beside_the_active_one: "active adapter 'default' has nothing to train",
    two_at_once: "active at once.*add_weighted_adapter",
    optimizer_of_what_was_frozen: "holds none of the parameters that are trained",
    optimizer_of_another_model: "holds none of the parameters that are trained",
}


@pytest.mark.parametrize("make", NOTHING, ids=lambda make: make.__name__)
def test_a_run_that_could_not_train_does_not_begin(tmp_path, make):
    model, options = make(tmp_path)
    with pytest.raises(ValueError, match=NOTHING[make]):
        trainer_of(tmp_path, model, **options)


def test_a_merged_model_takes_a_fresh_adapter_and_a_given_optimizer_trains(tmp_path):
    trainer_of(tmp_path, adapted().merge_and_unload(), LoraConfig(r=4))
    model = tiny_model()
    trainer = trainer_of(tmp_path, model, optimizers=(torch.optim.SGD(model.parameters(), 1.0), None))
    before = model.get_input_embeddings().weight.detach().clone()
    trainer.train()
    assert not torch.equal(model.get_input_embeddings().weight, before)


# ---- the reference is the start ----


def test_what_is_trained_beside_an_adapter_does_not_move_the_reference(tmp_path):
    model = adapted()
    model.get_base_model().model.transformer.ln_f.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"1 trained parameters lie outside the adapter 'default' \(.*ln_f.*beta=0"):
        trainer_of(tmp_path, model)
    assert trainer_of(tmp_path, model, beta=0.0).model.active_adapter == "default"


def test_the_name_of_the_frozen_copy_is_not_taken(tmp_path):
    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["q_proj"]), adapter_name=reference.ADAPTER)
    with pytest.raises(ValueError, match="called 'ref'"):
        trainer_of(tmp_path, model)


def test_what_a_continued_adapter_keeps_frozen_stays_frozen(tmp_path):
    model = adapted()
    for name, own in model.named_parameters():
        own.requires_grad_("lora_B" in name)
    trainer = trainer_of(tmp_path, model)
    with trainer._reference():
        pass
    trained = {name for name, own in trainer.model.named_parameters() if own.requires_grad}
    assert len(trained) == 21 and all("lora_B.default" in name for name in trained)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reference_that_is_not_the_start_ends_the_run_at_its_first_window(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(setup, "keep_start", lambda model, fresh: None)
    trainer = trainer_of(tmp_path, tiny_model(dtype), LoraConfig(r=4, init_lora_weights="pissa"), disable_tqdm=True)
    with pytest.raises(
        ValueError, match=r"lora \(init_lora_weights='pissa'\): the reference is not the policy.*beta=0"
    ):
        trainer.train()
    assert trainer.state.global_step == 0


def test_noise_in_train_mode_ends_the_run_at_its_first_window(tmp_path):
    trainer = trainer_of(tmp_path, tiny_model(), LoraConfig(r=4))

    def noise(module, _, output):
        return output + 0.05 * torch.randn_like(output) if module.training else output

    trainer.model.get_input_embeddings().register_forward_hook(noise)
    with pytest.raises(ValueError, match=r"lora: the unmoved policy .* in train mode"):
        trainer.train()


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (None, {"beta": 0.0}),
        (LoraConfig(r=4, lora_dropout=0.5), {"disable_dropout": False}),
        (LoraConfig(r=4, init_lora_weights="pissa"), {"bf16": True, "gradient_checkpointing": True}),
    ],
    ids=["no reference", "dropout", "PiSSA, bf16, checkpointing"],
)
def test_looking_at_the_start_stops_no_healthy_run_and_changes_no_number(tmp_path, config, changes):
    runs = []
    for look in (True, False):
        trainer = trainer_of(tmp_path, tiny_model(), config, max_steps=2, **changes)
        trainer._starts = look
        torch.manual_seed(7)
        trainer.train()
        logs = [
            {k: v for k, v in log.items() if "time" not in k and "per_second" not in k} for log in logs_of(trainer)
        ]
        runs.append((logs, torch.get_rng_state().tolist()))
        assert len(logs) == 2 and trainer._starts is False
    assert runs[0] == runs[1]


# ---- several adapters in a checkpoint ----


def fresh_pissa():
    return tiny_model(), LoraConfig(r=4, init_lora_weights="pissa")


def second_of_two():
    return two_adapters(tiny_model(), LoraConfig(r=4, init_lora_weights="gaussian", target_modules=["q_proj"])), None


@pytest.mark.parametrize("make", [fresh_pissa, second_of_two])
def test_a_run_with_several_adapters_resumes_as_it_was(tmp_path, make):
    def trained(resume: bool) -> list[tuple]:
        torch.manual_seed(0)
        trainer = trainer_of(tmp_path, *make(), max_steps=3, save_strategy="steps", save_steps=1)
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1") if resume else None)
        return [(log["step"], log["loss"], log["kl"], log["grad_norm"]) for log in logs_of(trainer)]

    whole = trained(resume=False)
    assert len(whole) == 3 and whole[1][2] > 0
    assert trained(resume=True) == whole

"""What TRL's own tests ask of its trainer, as far as it makes sense here: every setting trains, and what is not there says so."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import BertConfig, BertForSequenceClassification
from trl import GRPOConfig

from unigrpo import UniGRPOConfig, load_policy
from unigrpo.config.trl_keys import OF_TRAINER
from unigrpo.models import MMaDAProcessor

from ..support.runs import logs_of
from ..support.tiny import golden_tokenizer, low_ids, prompts


def lengths(completion_ids, **_):
    return [len(ids) / 12 for ids in completion_ids]


def for_even_prompts(prompts, completion_ids, **_):
    """None for every second prompt, whose groups then have another reward alone."""
    return [
        None if prompt.startswith("w7") else float(ids[0] % 2)
        for prompt, ids in zip(prompts, completion_ids, strict=True)
    ]


LITTLE = {
    "max_steps": 2,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 2,
    "learning_rate": 0.1,
    "max_grad_norm": 1e6,
}
TRAINS = {
    "one inner update without a reference": {"num_iterations": 1, "beta": 0.0},
    "several inner updates": {"num_iterations": 2, "max_steps": 3},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo"},
    "sequence ratios": {"importance_sampling_level": "sequence"},
    "cispo": {"surrogate": "cispo"},
    "two-sided bound": {"delta": 1.5, "epsilon_high": 0.28},
    "rewards of the batch": {"scale_rewards": "batch"},
    "rewards as they are": {"scale_rewards": False},
    "each reward normalised": {
        "rewards": [low_ids, lengths],
        "reward_weights": [0.7, 0.3],
        "multi_objective_aggregation": "normalize_then_sum",
    },
    "rewards that apply to some": {"rewards": [low_ids, for_even_prompts]},
    "recomputed activations": {"gradient_checkpointing": True},
    "an adapter on recomputed activations": {"gradient_checkpointing": True, "lora": True},
    "a reference that follows": {"sync_ref_model": True, "ref_model_sync_steps": 1},
    "a rollout for each micro-step": {"gradient_accumulation_steps": 1, "steps_per_generation": 1},
    "a rollout for three steps": {"gradient_accumulation_steps": 1, "steps_per_generation": 3, "num_iterations": 1},
    "the best of the likely tokens": {"top_k": 20, "top_p": 0.9, "min_p": 0.01},
    "a dataset with other columns": {"rows": Dataset.from_list([{**row, "extra": 1} for row in prompts(16)])},
}


@pytest.mark.filterwarnings("ignore:.*cut off.*", "ignore:.*(change|read)s? nothing.*")
@pytest.mark.parametrize("name", TRAINS)
def test_a_setting_trains(make_trainer, name):
    """Its losses are numbers, and every weight that may move has moved."""
    trainer = make_trainer(**{**LITTLE, **TRAINS[name]})
    before = {
        name: weight.detach().clone() for name, weight in trainer.model.named_parameters() if weight.requires_grad
    }
    trainer.train()
    logs = logs_of(trainer)
    assert len(logs) == trainer.args.max_steps
    assert all(math.isfinite(log["loss"]) and log["grad_norm"] > 0 for log in logs)
    still = [
        name
        for name, weight in trainer.model.named_parameters()
        if name in before and torch.equal(weight, before[name])
    ]
    # lora_A has no gradient in the first step, in which lora_B is 0; unused positions of the vocabulary are rows, not weights.
    assert still == []


def test_a_reward_model_beside_a_function(make_trainer):
    """With its own tokenizer, as a module; what it says of an answer is what it says when it is asked alone."""
    tokenizer = golden_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer), **sizes, initializer_range=0.5, num_labels=1, name_or_path="a/judge"
        )
        model = BertForSequenceClassification(config)
    trainer = make_trainer(
        rewards=[model, lengths], reward_processing_classes=[tokenizer, None], reward_weights=[1.0, 0.5], max_steps=1
    )
    trainer.train()
    table, (log,) = trainer._window.table, logs_of(trainer)
    text = table["prompt"][0] + table["completion"][0]
    with torch.no_grad():
        alone = model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[0, 0].item()
    assert table["judge"][0] == pytest.approx(alone, rel=1e-4)
    both = torch.tensor([table["judge"], table["lengths"]])
    assert log["reward"] == pytest.approx((both[0] + 0.5 * both[1]).mean().item(), rel=1e-4)


def test_a_bare_tokenizer_is_a_processing_class(make_trainer):
    trainer = make_trainer(processor=golden_tokenizer(), max_steps=1)
    assert isinstance(trainer.processing_class, MMaDAProcessor)
    trainer.train()
    usual = make_trainer(max_steps=1)
    usual.train()
    assert trainer._window.table == usual._window.table


BRIEF = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if brief %}w9 w9{% else %}w8{% endif %}"


def test_rollouts_and_what_is_saved_hand_their_arguments_to_the_chat_template(make_trainer, tmp_path):
    processor = MMaDAProcessor(golden_tokenizer(), chat_template=BRIEF)
    trainer = make_trainer(processor=processor, chat_template_kwargs={"brief": True}, max_steps=1)
    trainer.train()
    for row in trainer._window.experiences:
        assert row.ids[~row.fill_mask][-2:].tolist() == [9, 9]
    trainer.save_model()
    assert load_policy(str(tmp_path / "run")).policy.processor.encode_prompt("w1") == [1, 9, 9]
    assert processor.encode_prompt("w1") == [1, 8]


@pytest.mark.parametrize("name", OF_TRAINER)
def test_an_argument_of_trls_trainer_is_answered_with_the_cure(make_trainer, name):
    with pytest.raises(TypeError, match=f"^{name} is no argument of UniGRPOTrainer: ") as caught:
        make_trainer(of_trainer={name: None})
    assert str(caught.value).endswith(OF_TRAINER[name])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"rows": IterableDataset.from_generator(lambda: iter(prompts(4)))},
            "without a length; .*load it without streaming",
        ),
        ({"processor": "bert"}, "processing_class='bert': give a tokenizer or a MMaDAProcessor"),
        ({"rewards": []}, "reward_funcs is empty"),
        ({"rewards": [None]}, "a reward must be a name, a module or a callable"),
        ({"rewards": [low_ids], "reward_weights": [1.0, 2.0]}, "reward_weights has 2 values for 1 rewards"),
        ({"reward_processing_classes": [None, None]}, "reward_processing_classes has 2 entries for 1 rewards"),
        ({"num_generations": 3}, "16 answers .* is not divisible by num_generations=3"),
        ({"num_generations": 1}, "num_generations=1 must be at least 2"),
        ({"generation_batch_size": 10, "steps_per_generation": None}, "generation_batch_size=10 must be a multiple of"),
        ({"generation_batch_size": 16}, "steps_per_generation or generation_batch_size, not both"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size=True: .* set the batch size yourself"),
        ({"sync_ref_model": True, "beta": 0.0}, "sync_ref_model=True with beta=0"),
        ({"sync_ref_model": True, "lora": True}, "sync_ref_model=True does nothing with adapters.*False"),
        ({"use_liger_kernel": True}, "use_liger_kernel=True: its kernels are for causal language models"),
        ({"scale_rewards": "rows"}, "scale_rewards='rows' is not valid"),
        *(({"loss_type": name}, f"loss_type='{name}': ") for name in ("cispo", "sapo", "vespo", "luspo")),
    ],
)  # fmt: skip
def test_what_cannot_train_is_one_sentence(make_trainer, given, said):
    with pytest.raises(ValueError, match=said) as caught:
        make_trainer(**given)
    assert "\n" not in str(caught.value)


SHARED = sorted({own.name for own in fields(GRPOConfig)} & {own.name for own in fields(UniGRPOConfig) if own.init})


def test_every_key_that_trl_has_too_takes_the_value_that_it_has_there():
    """A script that writes its defaults out still starts; where None stands for another key's value, a sentence says what to give."""
    refused = {}
    for own in fields(GRPOConfig):
        if own.name in SHARED:
            value = own.default if own.default_factory is MISSING else own.default_factory()
            try:
                UniGRPOConfig(**{"output_dir": "out", "use_cpu": True, "report_to": "none", own.name: value})
            except ValueError as error:
                refused[own.name] = str(error)
    assert len(SHARED) > 100 and sorted(refused) == ["bf16", "num_generations_eval"], refused
    assert all(text.startswith(f"{name}=None must be") and "\n" not in text for name, text in refused.items())

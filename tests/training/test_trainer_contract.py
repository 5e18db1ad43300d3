"""What a user of TRL expects: names in the logs, kinds of rewards and models, evaluation, files, and learning."""

from __future__ import annotations

import asyncio
import warnings

import pyarrow.parquet
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from unigrpo import UniGRPOTrainer
from unigrpo.samplers import SemiAutoregressive
from unigrpo.types import keyed_generator

from ..support.runs import logs_of
from ..support.tiny import low_ids, prompts, tiny_model, tiny_processor


def short_answers(completion_ids, **_):
    """1 for answers under 12 tokens."""
    return [float(len(ids) < 12) for ids in completion_ids]


async def slow_parity(completion_ids, **_):
    await asyncio.sleep(0)
    return [float(ids[0] % 2) for ids in completion_ids]


def half_silent(completion_ids, log_extra, log_metric, **_):
    """Scores every second answer, and reports on the side."""
    log_extra("first_id", [ids[0] for ids in completion_ids])
    log_metric("judge/calls", 1.0)
    return [float(ids[0] % 2) if i % 2 else None for i, ids in enumerate(completion_ids)]


METRICS = [  # Those whose values are not asked for below.
    "frac_reward_zero_std", "completions/clipped_ratio", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean",
]  # fmt: skip


def test_metrics_of_sync_and_async_rewards(make_trainer):
    rewards = [low_ids, short_answers, slow_parity, half_silent]
    trainer = make_trainer(
        rewards=rewards, reward_weights=[1.0, 0.0, 2.0, 0.5], log_completions=True, num_completions_to_print=1
    )
    trainer.train()
    first, *rest = logs_of(trainer)
    assert [name for name in METRICS if name not in first] == []
    table = trainer._window.table
    own = torch.tensor([table[name] for name in ("low_ids", "short_answers", "slow_parity", "half_silent")]).T
    weighted = (own.nan_to_num(0.0) * torch.tensor([1.0, 0.0, 2.0, 0.5])).sum(dim=1)
    assert first["reward"] == pytest.approx(weighted.mean().item(), abs=1e-6)
    assert first["reward_std"] == pytest.approx(weighted.view(4, 4).std(dim=1).mean().item(), abs=1e-6)
    for name, column in zip(("low_ids", "short_answers", "slow_parity", "half_silent"), own.T, strict=True):
        applies = column[~column.isnan()]
        assert len(applies) == (8 if name == "half_silent" else 16)
        assert first[f"rewards/{name}/mean"] == pytest.approx(applies.mean().item(), abs=1e-6)
        assert first[f"rewards/{name}/std"] == pytest.approx(applies.std().item(), abs=1e-6)
    lengths = torch.tensor([float(row.completion_mask.sum()) for row in trainer._window.experiences])
    assert first["completions/mean_length"] == pytest.approx(lengths.mean().item())
    assert (first["completions/min_length"], first["completions/max_length"]) == (lengths.min(), lengths.max())
    assert first["kl"] == 0.0
    assert first["judge/calls"] == 1.0
    assert 0 < first["entropy"] < torch.tensor(196.0).log()
    assert all(log["kl"] > 0 for log in rest)
    assert table["first_id"] == [int(row.ids[row.completion_mask][0]) for row in trainer._window.experiences]


def test_length_metrics_follow_the_stop_token(make_trainer):
    trainer = make_trainer(num_iterations=1, max_steps=12, learning_rate=5e-3, rewards=short_answers, beta=0.0)
    trainer.train()
    seen = [log for log in logs_of(trainer) if "completions/mean_terminated_length" in log]
    assert seen
    for log in seen:
        assert log["completions/max_terminated_length"] <= 12
        assert log["completions/clipped_ratio"] < 1.0
        if log["completions/clipped_ratio"] == 0.0:
            assert log["completions/mean_terminated_length"] == log["completions/mean_length"]


@pytest.mark.smoke
def test_completions_are_written_to_parquet(make_trainer, tmp_path, capsys):
    trainer = make_trainer(
        rewards=[low_ids, half_silent], log_completions=True, num_completions_to_print=2, max_steps=8
    )
    trainer.train()
    files = sorted(path.name for path in (tmp_path / "run" / "completions").iterdir())
    assert files == ["completions_00000.parquet", "completions_00004.parquet"]
    columns = pyarrow.parquet.read_table(tmp_path / "run" / "completions" / files[1]).to_pydict()
    table = trainer._window.table
    assert list(columns) == [
        "task",
        "prompt",
        "completion",
        "solution",
        "low_ids",
        "half_silent",
        "first_id",
        "advantage",
    ]
    assert columns["prompt"] == table["prompt"] and columns["completion"] == table["completion"]
    assert columns["advantage"] == pytest.approx(table["advantage"])
    assert len(columns["prompt"]) == 16
    assert "Completions at step 4" in capsys.readouterr().out


@torch.no_grad()
def greedy_reward(trainer, rows) -> float:
    """``low_ids`` of argmax answers, sampled here by hand."""
    sampler = SemiAutoregressive(steps=6, block_length=6, temperature=0.0)
    scores = []
    for row in rows:
        canvas = trainer.policy.encode([row], "text", max_completion_length=12)
        rollout = sampler(trainer.model.eval(), trainer.policy, canvas, generators=[keyed_generator("any")])
        scores += low_ids(None, None, [rollout.canvas.ids[rollout.completion_mask].tolist()])
    return sum(scores) / len(scores)


def test_evaluation_is_greedy_and_repeatable(make_trainer):
    held_out = prompts(5, (4, 9))
    trainer = make_trainer(eval_rows=held_out, per_device_eval_batch_size=2, num_generations_eval=2)
    metrics = trainer.evaluate()
    assert metrics["eval_reward"] == pytest.approx(greedy_reward(trainer, held_out), abs=1e-6)
    assert metrics["eval_rewards/low_ids/mean"] == metrics["eval_reward"]
    assert metrics["eval_completions/max_length"] <= 12
    assert trainer.evaluate()["eval_reward"] == metrics["eval_reward"]
    sampled = make_trainer(eval_rows=held_out, eval_temperature=1.0, num_generations_eval=8).evaluate()
    assert sampled["eval_reward"] != metrics["eval_reward"]


def test_evaluation_during_training_keeps_the_best(make_trainer):
    sets = {"near": prompts(2), "far": Dataset.from_list(prompts(3, (9,)))}
    trainer = make_trainer(eval_rows=sets, eval_strategy="steps", eval_steps=2)
    trainer.train()
    evaluated = [log for log in trainer.state.log_history if "eval_near_reward" in log]
    assert [log["step"] for log in evaluated] == [2, 4]
    assert sum("eval_far_reward" in log for log in trainer.state.log_history) == 2
    metrics = trainer.evaluate()
    assert metrics["eval_near_reward"] == pytest.approx(greedy_reward(trainer, sets["near"]), abs=1e-6)
    assert metrics["eval_far_reward"] == pytest.approx(greedy_reward(trainer, sets["far"]), abs=1e-6)


def test_evaluation_needs_prompts(make_trainer):
    with pytest.raises(ValueError, match=r"evaluate needs eval_dataset"):
        make_trainer().evaluate()
    with pytest.raises(ValueError, match=r"eval_dataset\[0\]\['prompt'\]"):
        make_trainer().evaluate([{"prompt": ""}])
    with pytest.raises(ValueError, match=r"use evaluate\(\)"):
        make_trainer().prediction_step()


def test_model_and_rewards_by_name(make_trainer, tmp_path):
    path = tmp_path / "model"
    tiny_model().save_pretrained(path)
    tiny_processor().save_pretrained(path)
    names = ["think_format", "tests.support.tiny:low_ids"]
    by_name = make_trainer(model=str(path), processor=False, rewards=names, reward_weights=[0.0, 1.0])
    half = make_trainer(model=str(path), processor=False, model_init_kwargs={"dtype": "bfloat16"})
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert by_name.rewards.names == ["think_format", "low_ids"]
    by_name.train()
    by_object = make_trainer(rewards=low_ids)
    by_object.train()
    assert [log["loss"] for log in logs_of(by_name)] == [log["loss"] for log in logs_of(by_object)]
    assert logs_of(by_name)[0]["rewards/think_format/mean"] == 0.0


LEARNING = [(False, 4e-3), pytest.param(True, 1e-2, marks=pytest.mark.slow)]
"""An adapter's gradients are compared elsewhere, and the slow quickstart learns with one."""


@pytest.mark.parametrize(("lora", "learning_rate"), LEARNING)
def test_training_raises_the_reward(make_trainer, lora, learning_rate):
    trainer = make_trainer(
        lora=lora,
        eval_rows=prompts(8),
        gradient_accumulation_steps=4,
        num_iterations=2 if lora else 1,
        max_steps=26 if lora else 16,
        beta=0.01,
        learning_rate=learning_rate,
    )
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    after = trainer.evaluate()["eval_reward"]
    rewards = [log["reward"] for log in logs_of(trainer) if "reward" in log]
    assert sum(rewards[-3:]) / 3 - rewards[0] > 0.2
    assert after - before > 0.2


def test_unknown_things_raise(make_trainer):
    """Through the trainer too; what the configuration refuses is tested where it is read."""
    with pytest.raises(ValueError, match=r"train_dataset has 2 prompts, one rollout needs 4"):
        make_trainer(rows=prompts(2)).train()
    with pytest.raises(ValueError, match=r"peft_config is given for a model that is a PeftModel"):
        make_trainer(model=get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear")), lora=True)
    with pytest.raises(ValueError, match=r"no policy is known for Linear.*choose one of"):
        make_trainer(model=torch.nn.Linear(2, 2))


def test_arguments_of_the_caller_are_not_changed(tmp_path):
    from unigrpo import UniGRPOConfig

    args = UniGRPOConfig(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = UniGRPOTrainer(tiny_model(), low_ids, args, prompts(4), processing_class=tiny_processor())
    assert args.learning_rate is None
    assert trainer.args.learning_rate == 1e-6


def test_a_new_adapter_depends_on_the_seed_alone(make_trainer):
    def start(seed: int, drawn_before: int) -> list[torch.Tensor]:
        torch.rand(drawn_before)
        trainer = make_trainer(lora=True, seed=seed)
        return [weight.detach() for name, weight in trainer.model.named_parameters() if "lora_A" in name]

    first, again, other = start(3, 1), start(3, 1000), start(4, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_checkpointed_adapters_train_and_save_without_a_warning(make_trainer, tmp_path):
    """The base's name is not a folder, as ``builtin:NAME`` and hub ids are not; the hub cannot be asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.filterwarnings("error", message="Could not find a config file")
        trainer = make_trainer(lora=True, gradient_checkpointing=True, max_steps=1)
        trainer.model.peft_config["default"].base_model_name_or_path = "builtin:arithmetic"
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
    assert trainer.model.base_model.model.is_gradient_checkpointing
    assert (tmp_path / "saved" / "adapter_model.safetensors").exists()

"""The best checkpoint of fine-tuning is that of the lowest held-out loss, and a run may stop early by it."""

from __future__ import annotations

import pytest
import torch
from transformers import EarlyStoppingCallback

from unigrpo import MaskedDenoisingConfig

from ..support.given_runs import TEXT, given_trainer
from ..support.laws import weights


SAVING = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
SETS = {"near": TEXT[:2], "far": TEXT[2:4]}


def scored(trainer, monkeypatch, metric: str, values: list[float]) -> list[dict[str, torch.Tensor]]:
    """``trainer`` whose held-out ``metric`` takes ``values``, and the weights at each evaluation."""
    seen, own, evaluate = [], iter(values), trainer.evaluate

    def replaced(*given, **named):
        seen.append({name: weight.detach().clone() for name, weight in weights(trainer.model).items()})
        with monkeypatch.context() as patch:
            measure, value = trainer.measure, next(own)
            patch.setattr(trainer, "measure", lambda sets: {**measure(sets), metric: value})
            return evaluate(*given, **named)

    monkeypatch.setattr(trainer, "evaluate", replaced)
    return seen


@pytest.mark.parametrize(
    ("sets", "metric", "lora", "strategy"),
    [
        (TEXT[:2], "loss", False, "steps"),
        (TEXT[:2], "loss", True, "best"),
        (SETS, "far_text_nats_per_token", True, "steps"),
    ],
)
def test_the_best_weights_are_those_of_the_lowest_held_out_loss(tmp_path, monkeypatch, sets, metric, lora, strategy):
    """One set needs no metric to be named; of several one is."""
    named = {} if metric == "loss" else {"metric_for_best_model": metric}
    saving = {**SAVING, "save_strategy": strategy, "load_best_model_at_end": True, "save_total_limit": 1}
    trainer = given_trainer(tmp_path, eval_rows=sets, lora=lora, **saving, **named)
    seen = scored(trainer, monkeypatch, metric, [0.7, 0.1, 0.3])
    trainer.train()
    assert trainer.state.best_metric == 0.1
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    own = weights(trainer.model)
    assert all(torch.equal(own[name], weight) for name, weight in seen[1].items())
    assert any(not torch.equal(own[name], weight) for name, weight in seen[2].items())


def test_a_run_stops_early_by_its_held_out_loss(tmp_path, monkeypatch):
    trainer = given_trainer(
        tmp_path,
        eval_rows=TEXT[:2],
        max_steps=6,
        **SAVING,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    scored(trainer, monkeypatch, "loss", [0.7, 0.1, 0.3, 0.2, 0.0, 0.0])
    trainer.train()
    assert (trainer.args.metric_for_best_model, trainer.state.global_step) == ("eval_loss", 4)


@pytest.mark.parametrize(
    ("sets", "change", "said"),
    [
        (TEXT[:2], {"metric_for_best_model": "eval_reward"}, r"'eval_reward' is not valid: .*choose one of \['eval_loss', 'eval_text_loss'"),
        (SETS, {}, r"'eval_loss' is not valid: .*'eval_near_loss', .*'eval_far_loss'"),
        (SETS, {"metric_for_best_model": "near_mmu_loss"}, r"'eval_near_mmu_loss' is not valid: did you mean"),
        (TEXT[:2], {"eval_strategy": "no"}, r"compares held-out losses, and eval_strategy='no' takes none"),
        (TEXT[:2], {"save_strategy": "epoch"}, r"save_strategy='epoch' must be that of eval_strategy='steps', or 'best'"),
    ],
)  # fmt: skip
def test_a_number_that_no_evaluation_has_is_refused_before_the_run(tmp_path, sets, change, said):
    with pytest.raises(ValueError, match=said) as caught:
        given_trainer(tmp_path, eval_rows=sets, load_best_model_at_end=True, **{**SAVING, **change})
    assert "\n" not in str(caught.value)


def test_stopping_early_without_evaluations_is_refused(tmp_path):
    with pytest.raises(ValueError, match="EarlyStoppingCallback compares held-out losses, and eval_strategy='no'"):
        given_trainer(tmp_path, eval_rows=TEXT[:2], callbacks=[EarlyStoppingCallback()])
    given = MaskedDenoisingConfig(str(tmp_path), metric_for_best_model="text_nats_per_token", use_cpu=True)
    assert given.greater_is_better is False, "fewer nats are better"

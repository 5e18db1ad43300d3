"""Laws of the training step on the tiny model: ratio one, loss scale, accumulation, noise, reference, randomness."""

from __future__ import annotations

import random
from itertools import product

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

from unigrpo import UniGRPOTrainer
from unigrpo.training.old_and_reference import add_old_and_reference
from unigrpo.training.window import rebuild_window

from ..support.images import GUIDED, assert_on_policy, options
from ..support.laws import (
    Calls,
    aligned,
    assert_accumulation_changes_nothing,
    calls_of,
    difference,
    first_window,
    losses_of,
    total_and_gradient,
    weights,
)
from ..support.runs import adapted
from ..support.tiny import low_ids, prompts, tiny_model


MIXED = (2, 70, 5, 130)
"""Prompt lengths in words that put rows in three buckets of 64 tokens."""

LORA = [False, True]
GIVEN = [3.0, -1.0, 0.5, 2.0, 0.25, 1.0, -0.5, 4.0]
"""Advantages of eight rows."""


def arguments(kind: str, count: int = 4, **changes) -> dict:
    """A run of text alone, of pictures to make ("t2i"), of pictures to read ("mmu"), or of all three ("mixed")."""
    return {"rows": prompts(count, MIXED), **changes} if kind == "text" else options(kind, count, GUIDED, **changes)


def units_of(trainer) -> list[int]:
    """Units of each micro-batch of the current window."""
    return [len(units) for units in trainer._window.micro_batches]


# ---- ratio one, KL zero ----


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("kind", "policy", "dtype"),
    [
        *product(["text", "mixed"], ["full", "lora", "trained adapter"], [torch.float32]),
        *product(["text"], ["full", "lora"], [torch.bfloat16]),
    ],
)
def test_ratio_is_one_and_kl_zero_at_the_start(make_trainer, kind, policy, dtype):
    """In bf16 too: the same unit runs the same kernels with and without gradients."""
    model = adapted() if policy == "trained adapter" else aligned(tiny_model(dtype))
    draws = 2 if kind == "text" else 1
    trainer = make_trainer(lora=policy == "lora", model=model, **arguments(kind, num_noise_samples=draws))
    window = first_window(trainer)
    assert {row.task for row in window.experiences} == ({"text", "mmu", "t2i"} if kind == "mixed" else {"text"})
    assert sum(map(len, window.micro_batches)) >= 3
    assert_on_policy(trainer, window, {"t2i"})


def test_law_can_fail(make_trainer):
    trainer = make_trainer(lora=True, **arguments("mixed"))
    window = first_window(trainer)
    add_old_and_reference(trainer.pipeline(), window, always_old=True)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    for _, _, terms in losses_of(trainer, window):
        assert not bool((terms.ratio == 1.0).all())
        assert bool((terms.kl > 0).all())


@pytest.mark.parametrize(
    ("kind", "lora", "precision"),
    [("text", False, "autocast"), ("text", True, "autocast"), ("mixed", True, "fp32")],
)
def test_policy_that_does_not_move_stays_at_ratio_one(make_trainer, kind, lora, precision):
    """With learning rate 0, every old pass after the first optimizer step is really computed, inside the engine."""
    own = {"learning_rate": 0.0, "num_iterations": 2, "max_steps": 4, "bf16": precision == "autocast"}
    trainer = make_trainer(lora=lora, model=aligned(), **arguments(kind, **own))
    dtypes = set()
    first = next(m for name, m in trainer.model.named_modules() if name.endswith("blocks.0.q_proj"))
    first.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    trainer.train()
    assert dtypes == {torch.bfloat16 if precision == "autocast" else torch.float32}
    logs = [log for log in trainer.state.log_history if "kl" in log]
    assert len(logs) == 4
    assert all(log["ratio/max"] == 1.0 and log["ratio/mean"] == 1.0 and log["kl"] == 0.0 for log in logs)
    assert all(log["grad_norm"] > 0 for log in logs)
    assert bool(trainer._window.experiences[0].old_known[1:].all())


# ---- loss scale ----


@pytest.mark.parametrize(
    ("kind", "lora", "draws"),
    [("text", False, 1), ("text", True, 2), ("t2i", False, 2), ("mmu", False, 2), ("mixed", True, 2)],
)
def test_loss_is_minus_the_mean_advantage(make_trainer, kind, lora, draws):
    sizes = {"steps_per_generation": 2, "num_generations": 2, "num_noise_samples": draws}
    trainer = make_trainer(lora=lora, beta=0.0, **arguments(kind, 8, **sizes))
    window = first_window(trainer)
    for row, advantage in zip(window.experiences, GIVEN, strict=True):
        row.advantage = advantage
    window = rebuild_window(trainer.pipeline(), window.experiences, window.order)
    for k in range(2):
        total, gradient = total_and_gradient(trainer, window, k)
        assert total == pytest.approx(-sum(GIVEN) / 8, abs=1e-6)
        assert max(g.abs().max() for g in gradient.values()) > 0


def test_rows_that_count_for_nothing_still_count_in_the_mean(make_trainer):
    trainer = make_trainer(beta=0.0, steps_per_generation=2, num_generations=2)
    window = first_window(trainer)
    for row in window.experiences:
        row.advantage, row.active = 2.0, row.index not in (1, 6)
    window = rebuild_window(trainer.pipeline(), window.experiences, window.order)
    total, _ = total_and_gradient(trainer, window)
    assert total == pytest.approx(-2.0 * 6 / 8, abs=1e-6)


@pytest.mark.parametrize(("loss_type", "draws"), [("grpo", 3), ("dapo", 1), ("dapo", 3)])
def test_one_advantage_for_all_is_minus_the_loss_however_many_tokens_a_draw_scores(make_trainer, loss_type, draws):
    trainer = make_trainer(
        rows=prompts(8, MIXED),
        beta=0.0,
        steps_per_generation=2,
        num_generations=2,
        noising="random",
        num_noise_samples=draws,
        loss_type=loss_type,
    )
    window = first_window(trainer)
    assert len({int(draw.sum()) for row in window.experiences for draw in row.target[0]}) > 2
    for row in window.experiences:
        row.advantage = 2.0
    trainer._window = rebuild_window(trainer.pipeline(), window.experiences, window.order)
    steps = enumerate(trainer._window.micro_batches)
    total = sum(trainer._policy_loss(trainer.model, unit, 0, step).item() for step, units in steps for unit in units)
    assert total == pytest.approx(-2.0, abs=1e-5)


@pytest.mark.parametrize(("kind", "lora"), [("text", False), ("t2i", False), ("mixed", True)])
def test_order_of_rows_changes_nothing(make_trainer, kind, lora):
    trainer = make_trainer(lora=lora, **arguments(kind, 8, steps_per_generation=2, num_generations=2))
    window = first_window(trainer)
    total, gradient = total_and_gradient(trainer, window)
    for order in (list(range(8)), [7, 3, 0, 5, 1, 6, 2, 4]):
        assert order != window.order
        other = rebuild_window(trainer.pipeline(), window.experiences, order)
        assert other.micro_batches != window.micro_batches
        other_total, other_gradient = total_and_gradient(trainer, other)
        assert abs(total - other_total) < 1e-5
        assert difference(gradient, other_gradient) < 1e-5


def one_missing(prompts, completions, completion_ids, **_):
    """``low_ids`` with no opinion on the sixth answer."""
    scores = low_ids(prompts, completions, completion_ids)
    return [None if i == 5 else score for i, score in enumerate(scores)]


@pytest.mark.parametrize(("lora", "reward"), [(False, low_ids), (True, one_missing)])
def test_accumulation_changes_nothing(make_trainer, lora, reward):
    given = {"lora": lora, "rewards": reward, "rows": prompts(4, MIXED), "learning_rate": 0.01}
    # Between 1 and 4 lies nothing that neither has; two counts are told apart once.
    counts = (4,) if lora else (2, 4)
    trainer = assert_accumulation_changes_nothing(make_trainer, counts, num_iterations=3, max_steps=3, **given)
    assert len({-(-len(row.ids) // 64) for row in trainer._window.experiences}) == 3
    assert sum(not row.active for row in trainer._window.experiences) == (reward is one_missing)


# ---- noise ----


class Recorder(UniGRPOTrainer):
    """Notes the hidden positions of every row at every update."""

    seen: list

    def _policy_loss(self, model, unit, k, step):
        self._rows = unit.indices
        return super()._policy_loss(model, unit, k, step)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        for place, row in enumerate(self._rows):
            real = inputs.canvas.attention_mask[place]
            self.seen.append((row, tuple(inputs.hidden[place][real].tolist())))
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def test_every_inner_update_has_its_own_noise_under_any_accumulation(make_trainer):
    noise = []
    for accumulation in (1, 2):
        cut = {"gradient_accumulation_steps": accumulation, "max_steps": 3 * 2 // accumulation}
        sizes = {"steps_per_generation": 2, "num_generations": 2, "num_iterations": 3}
        trainer = make_trainer(kind=Recorder, rows=prompts(8, MIXED), **sizes, **cut)
        trainer.seen = []
        trainer.train()
        assert len(trainer.seen) == 8 * 3
        for row in range(8):
            assert len({mask for number, mask in trainer.seen if number == row}) == 3
        noise.append(set(trainer.seen))
    assert noise[0] == noise[1]


@pytest.mark.parametrize("lora", LORA)
def test_new_old_and_reference_policy_see_the_same_noise(make_trainer, lora):
    trainer = make_trainer(lora=lora, rows=prompts(8, MIXED), max_steps=4)
    policy = calls_of(trainer)
    reference = policy if lora else Calls(trainer._twin)
    trainer.train()
    updates = policy.ids("update")
    per_update = sum(units_of(trainer))
    first_step = sum(units_of(trainer)[:2])
    assert len(updates) == 2 * per_update
    assert reference.ids("reference" if lora else "score") == updates
    assert policy.ids("score") == updates[first_step:]
    assert updates[:per_update] != updates[per_update:]


# ---- modes and forwards ----


def dropout_rates(trainer) -> set[float]:
    return {module.p for module in trainer.model.modules() if isinstance(module, nn.Dropout)}


def test_rollouts_run_in_eval_mode(make_trainer):
    assert dropout_rates(make_trainer(lora=True, dropout=0.5)) == {0.0}
    trainer = make_trainer(lora=True, dropout=0.5, disable_dropout=False, max_steps=2)
    assert dropout_rates(trainer) == {0.5}
    calls = calls_of(trainer)
    trainer.train()
    assert {r["training"] for r in calls.records if r["kind"] == "update"} == {True}
    others = [record for record in calls.records if record["kind"] != "update"]
    assert {record["kind"] for record in others} == {"sample", "score", "reference"}
    assert not any(record["training"] or record["dropout"] for record in others)


@pytest.mark.parametrize("lora", LORA)
def test_beta_zero_and_one_update_score_nothing_beforehand(make_trainer, lora):
    trainer = make_trainer(lora=lora, beta=0.0, num_iterations=1, steps_per_generation=2, max_steps=3)
    assert trainer._twin is None
    calls = calls_of(trainer)
    trainer.train()
    assert calls.count("score") == calls.count("reference") == 0
    assert calls.count("update") == 3 * sum(units_of(trainer))
    assert all(row.ref_logps is None for row in trainer._window.experiences)


@pytest.mark.parametrize("lora", LORA)
def test_beta_zero_scores_the_old_policy_only_after_it_moved(make_trainer, lora):
    trainer = make_trainer(lora=lora, beta=0.0, num_iterations=2, max_steps=4)
    calls = calls_of(trainer)
    trainer.train()
    counts = units_of(trainer)
    assert calls.count("score") == sum(counts) + sum(counts[2:])
    assert calls.count("reference") == 0


# ---- reference ----


def reference_logps(window) -> list[torch.Tensor]:
    return [row.ref_logps for row in window.experiences]


@pytest.mark.parametrize("policy", ["full", "lora", "trained adapter"])
def test_reference_stays_the_initial_policy(make_trainer, policy):
    """After training, the reference scores a window exactly as the untrained policy does."""

    def make():
        model = adapted() if policy == "trained adapter" else None
        return make_trainer(lora=policy == "lora", model=model, learning_rate=1e-2, max_steps=2)

    trained, fresh = make(), make()
    start = weights(trained.model)
    trained.train()
    moved = {name for name, value in weights(trained.model).items() if not torch.equal(value, start[name])}
    if policy == "full":
        assert moved == set(start)
        assert all(torch.equal(value, start[name]) for name, value in weights(trained._twin).items())
    else:
        assert moved == {name for name in start if ".default." in name}
    window = first_window(trained, 5)
    add_old_and_reference(trained.pipeline(), window, always_old=True)
    kept = reference_logps(window)
    add_old_and_reference(fresh.pipeline(), window, always_old=True)
    for row, reference in zip(window.experiences, kept, strict=True):
        assert torch.equal(reference, row.ref_logps)
        assert torch.equal(reference, row.old_logps)
    assert {n for n, p in trained.model.named_parameters() if p.requires_grad} == moved


def test_learning_rate_defaults(make_trainer):
    assert make_trainer(learning_rate=None).args.learning_rate == 1e-6
    assert make_trainer(learning_rate=None, lora=True).args.learning_rate == 5e-6
    assert make_trainer(learning_rate=None, model=adapted()).args.learning_rate == 5e-6
    assert make_trainer(learning_rate=3e-4, lora=True).args.learning_rate == 3e-4


def test_synchronised_reference_moves_towards_the_policy(make_trainer):
    trainer = make_trainer(sync_ref_model=True, ref_model_mixup_alpha=0.25, ref_model_sync_steps=2, max_steps=2)
    start = weights(trainer.model)
    trainer.train()
    policy = weights(trainer.model)
    assert any(not torch.equal(start[name], value) for name, value in policy.items())
    for name, value in weights(trainer._twin).items():
        torch.testing.assert_close(value, 0.25 * policy[name] + 0.75 * start[name])


# ---- groups of equal rewards ----


def constant(completions, **_):
    return [1.0] * len(completions)


def test_equal_groups_without_kl_run_no_forward(make_trainer):
    trainer = make_trainer(rewards=constant, beta=0.0)
    start, calls = weights(trainer.model), calls_of(trainer)
    trainer.train()
    assert calls.count("score") == calls.count("update") == 0
    assert calls.count("sample") > 0
    assert all(torch.equal(start[name], value) for name, value in weights(trainer.model).items())
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["loss"] for log in logs] == [0.0] * 4
    assert logs[0]["frac_reward_zero_std"] == 1.0


def test_equal_groups_with_kl_keep_it(make_trainer):
    trainer = make_trainer(rewards=constant, beta=0.5, steps_per_generation=2, num_generations=2)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in trainer.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    window = first_window(trainer)
    assert all(row.advantage == 0.0 and row.active for row in window.experiences)
    kl = torch.cat([terms.kl for _, _, terms in losses_of(trainer, window)])
    total, gradient = total_and_gradient(trainer, window)
    assert len(kl) == 8
    assert kl.min() > 0
    assert total == pytest.approx(0.5 * kl.mean().item(), rel=1e-5)
    assert max(g.abs().max() for g in gradient.values()) > 0


def flat_first_half(prompts, completions, completion_ids, solution, **_):
    """Says nothing about the first eight prompts."""
    scores = low_ids(prompts, completions, completion_ids)
    return [0.0 if int(s) < 8 else score for s, score in zip(solution, scores, strict=True)]


def test_equal_groups_are_refilled(make_trainer):
    options = {"rewards": flat_first_half, "shuffle_dataset": False}
    stale = first_window(make_trainer(**options))
    assert all(row.advantage == 0.0 for row in stale.experiences)
    trainer = make_trainer(**options, refill_rounds=12)
    window = first_window(trainer)
    assert sum(row.advantage != 0.0 for row in window.experiences) >= 8
    late = {row["prompt"] for row in prompts(16)[8:]}
    groups = [window.table["prompt"][start : start + 4] for start in range(0, 16, 4)]
    assert all(len(set(group)) == 1 and set(group) <= late for group in groups)
    assert [row.index for row in window.experiences] == list(range(16))


def test_refilled_answers_are_drawn_anew(make_trainer):
    """The same prompt again, in the same place of the same window: only the random stream tells the two apart."""
    seen = []

    def flat_at_first(prompts, completions, completion_ids, **_):
        seen.append([list(ids) for ids in completion_ids])
        return [0.0] * len(completions) if len(seen) == 1 else low_ids(prompts, completions, completion_ids)

    first_window(make_trainer(rewards=flat_at_first, rows=prompts(16)[:1] * 16, refill_rounds=1))
    first, again = seen[:2]
    assert len(again) == len(first) and all(new != old for new, old in zip(again, first, strict=True))


# ---- randomness ----


@pytest.mark.parametrize("lora", LORA)
def test_training_leaves_the_global_generators_alone(make_trainer, lora, monkeypatch):
    # The shape checker picks the list item it looks at with Python's generator.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    trainer = make_trainer(lora=lora, refill_rounds=1, save_strategy="steps", save_steps=2, eval_rows=prompts(2))
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    trainer.train()
    trainer.evaluate()
    assert random.getstate() == python
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy, strict=True))
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_runs_do_not_depend_on_the_global_generators(make_trainer):
    losses = []
    for seed in (0, 1):
        trainer = make_trainer(max_steps=2)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[0] == losses[1]
    other = make_trainer(seed=7, max_steps=2)
    other.train()
    assert [log["loss"] for log in other.state.log_history if "loss" in log] != losses[0]


# ---- answers that never ended ----


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
@pytest.mark.parametrize("normalization", ["masked", "completion"])
def test_answers_that_were_cut_off_are_out_of_the_loss(make_trainer, loss_type, normalization):
    """With ratio 1 a token's term is minus its advantage: TRL's formulas by hand, sums over the answers that ended."""
    trainer = make_trainer(
        rows=prompts(8, MIXED),
        beta=0.0,
        steps_per_generation=2,
        num_generations=2,
        loss_type=loss_type,
        length_normalization=normalization,
        mask_truncated_completions=True,
    )
    trainer.policy.stop_token_ids = tuple(range(2, 160, 12))
    window = first_window(trainer)
    for row, advantage in zip(window.experiences, GIVEN, strict=True):
        row.advantage = advantage
    window = rebuild_window(trainer.pipeline(), window.experiences, window.order)
    ended = [
        bool(torch.isin(row.ids[row.fill_mask], torch.tensor(trainer.policy.stop_token_ids)).any())
        for row in window.experiences
    ]
    assert 1 < sum(ended) < 8
    assert [bool(row.target.any()) for row in window.experiences] == ended
    scored = [int(row.target[0].sum()) * own for row, own in zip(window.experiences, ended, strict=True)]
    lengths = [int(row.completion_mask.sum()) * own for row, own in zip(window.experiences, ended, strict=True)]
    counted = scored if normalization == "masked" else lengths
    sums = [-advantage * tokens for advantage, tokens in zip(GIVEN, scored, strict=True)]
    expected = {
        "grpo": sum(own / max(tokens, 1) for own, tokens in zip(sums, counted, strict=True)) / 8,
        "dr_grpo": sum(sums) / (8 * 12),
        "dapo": sum(sums) / sum(counted),
        "bnpo": sum(
            sum(sums[index] for index in half) / sum(counted[index] for index in half) / 2
            for half in (window.order[:4], window.order[4:])
        ),
    }
    total, _ = total_and_gradient(trainer, window)
    assert total == pytest.approx(expected[loss_type], rel=1e-5)


def test_a_window_of_answers_that_were_cut_off_moves_nothing(make_trainer):
    trainer = make_trainer(mask_truncated_completions=True, max_steps=2, beta=0.1)
    trainer.policy.stop_token_ids = (159,)
    before = weights(trainer.model)
    trainer.train()
    assert trainer.state.log_history[0]["completions/clipped_ratio"] == 1.0
    assert difference(before, weights(trainer.model)) == 0.0


def test_a_policy_without_a_stop_token_cannot_mask_by_it(make_trainer, monkeypatch):
    monkeypatch.setattr(
        "unigrpo.models.mmada.policy.MMaDAPolicy.stop_token_ids", property(lambda self: (), lambda self, _: None)
    )
    with pytest.raises(ValueError, match="mask_truncated_completions=True leaves every answer out"):
        make_trainer(mask_truncated_completions=True)

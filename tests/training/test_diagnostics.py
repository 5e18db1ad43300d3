"""What is logged to tell a healthy run from a sick one: values by hand, names by task, laws on the tiny model."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from unigrpo.algorithm.advantages import group_advantages
from unigrpo.algorithm.likelihood import score_tokens, token_logprobs
from unigrpo.algorithm.loss import LossTerms
from unigrpo.training.batches import collate
from unigrpo.training.diagnostics import (
    FIFTHS,
    KL_TOKENS,
    estimates,
    hidden_fifths,
    loss_metrics,
    ratio_metrics,
    sampling_metrics,
    thinned,
    window_metrics,
)
from unigrpo.training.experience import make_experience
from unigrpo.training.metrics import Metrics, completion_metrics, reward_metrics
from unigrpo.training.old_and_reference import log_exact_kl
from unigrpo.types import Experience, TokenSpace

from ..support.images import ONE_PROMPT, options
from ..support.laws import aligned, first_window
from ..support.tiny import prompts


LOSS = [
    "entropy", "kl", "ratio/mean", "ratio/std", "ratio/max", "ratio/ess", "clip_ratio/low_mean", "clip_ratio/high_mean",
    "clip_ratio/region_mean", "sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max",
]  # fmt: skip
WINDOW = [
    "estimator/std",
    "reward_std",
    "frac_reward_zero_std",
    "rewards/low_ids/mean",
    "rewards/low_ids/group_std",
    *(f"mask_ratio/{fifth}" for fifth in FIFTHS),
]
CANVAS_TASKS = ("text", "mmu", "t2i")


def terms(ratio: list[float], low: list[bool] | None = None, high: list[bool] | None = None) -> LossTerms:
    none = [False] * len(ratio)
    return LossTerms(
        losses=torch.zeros(1),
        kl=torch.tensor([0.5]),
        ratios=torch.tensor([ratio]),
        low=torch.tensor([low or none]),
        high=torch.tensor([high or none]),
        scored=torch.ones(1, len(ratio), dtype=torch.bool),
    )


def logged(function, *arguments, by_task: bool = False) -> dict[str, float]:
    metrics = Metrics(by_task)
    function(metrics, *arguments)
    return metrics.flush()


def names_by_task(log: dict[str, float]) -> set[str]:
    """Names told apart by task, but for the reward's."""
    return {name for name in log if name.rsplit("/", 1)[-1] in CANVAS_TASKS and not name.startswith("reward/")}


# ---- one unit ----


def test_ratios_by_hand():
    log = logged(ratio_metrics, terms([0.5, 1.0, 1.5, 3.0], [True, False, False, False], [False] * 3 + [True]), "text")
    assert log == pytest.approx(
        {
            "ratio/mean": 1.5,
            "ratio/std": math.sqrt((1.0 + 0.25 + 0.0 + 2.25) / 3),
            "ratio/max": 3.0,
            "ratio/ess": 36.0 / (4 * 12.5),
            "clip_ratio/low_mean": 0.25,
            "clip_ratio/high_mean": 0.25,
            "clip_ratio/region_mean": 0.5,
        }
    )


@pytest.mark.parametrize(
    ("ratio", "ess"),
    [([1.0] * 7, 1.0), ([0.25] * 3, 1.0), ([1e30, 1.0, 1.0, 1.0], 0.25), ([2.0], 1.0), ([3.0, 1.0], 0.8)],
)
def test_effective_sample_size(ratio, ess):
    log = logged(ratio_metrics, terms(ratio), "text")
    assert log["ratio/ess"] == pytest.approx(ess, rel=1e-12)
    assert ("ratio/std" in log) == (len(ratio) > 1)


def test_difference_from_the_sampler_by_hand():
    drawn, scored = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.25, -1.0, -0.5])
    assert logged(sampling_metrics, drawn, scored, "text") == pytest.approx(
        {"sampling/sampling_logp_difference/mean": 1.25 / 3, "sampling/sampling_logp_difference/max": 1.0}
    )
    assert logged(sampling_metrics, drawn[:0], scored[:0], "text") == {}


def unit_log(beta: float = 0.1, uses_ratio: bool = True, sampled: bool = True, by_task: bool = False) -> dict:
    """A unit of one row with tokens 1 and 2 scored."""
    settings = SimpleNamespace(beta=beta, importance_sampling_level="token")
    algorithm = SimpleNamespace(settings=settings, uses_ratio=uses_ratio, mixes_draws=False)
    target = torch.tensor([[False, True, True]])
    batch = SimpleNamespace(
        canvas=SimpleNamespace(task="mmu"),
        target=target,
        counts=[2],
        ratios=2,
        sampling_logps=torch.tensor([[9.0, -1.0, -2.0]]) if sampled else None,
        old_logps=torch.tensor([[0.0, -1.5, -2.0]]),
    )
    scores = SimpleNamespace(entropy=torch.tensor([[9.0, 1.0, 2.0]]))
    return logged(loss_metrics, algorithm, batch, scores, terms([1.0, 2.0]), by_task=by_task)


def test_one_unit():
    log = unit_log()
    assert sorted(log) == sorted(LOSS)
    assert (log["kl"], log["entropy"]) == (0.5, 1.5)
    assert (log["sampling/sampling_logp_difference/mean"], log["sampling/sampling_logp_difference/max"]) == (0.25, 0.5)
    assert sorted(unit_log(beta=0.0, uses_ratio=False, sampled=False)) == ["entropy"]
    both = unit_log(by_task=True)
    assert sorted(both) == sorted([*LOSS, *(f"{name}/mmu" for name in LOSS)])
    assert all(both[f"{name}/mmu"] == both[name] == log[name] for name in LOSS)


# ---- one window ----


def row(shares: list[list[int]], old: list[list[float]] | None = None, known: tuple = (), task="text") -> Experience:
    """A row of one prompt token and five answer tokens; draw (k, s) hides ``shares[k][s]`` of them and the prompt.

    ``old[k][s]`` is the log-probability of each of its scored tokens, the first one 1 nat more and the last 1 less.
    """
    answer = torch.tensor([False] + [True] * 5)
    target = torch.zeros(len(shares), len(shares[0]), 6, dtype=torch.bool)
    logps = torch.zeros(target.shape)
    for k, counts in enumerate(shares):
        for s, count in enumerate(counts):
            target[k, s, 1 : 1 + count] = True
            if old is not None and count:
                logps[k, s, 1 : 1 + count] = old[k][s]
                logps[k, s, 1] += 1.0
                logps[k, s, count] -= 1.0
    hidden = target.clone()
    hidden[..., 0] = True
    return Experience(
        ids=torch.arange(6),
        attention_mask=torch.ones(6, dtype=torch.bool),
        fill_mask=answer,
        completion_mask=answer.clone(),
        hidden=hidden,
        target=target,
        weight=target.float(),
        sampling_logps=torch.zeros(6),
        step_map=torch.zeros(6, dtype=torch.int64),
        advantage=1.0,
        active=True,
        task=task,
        token_space=TokenSpace(start=0, stop=50),
        index=0,
        old_logps=None if old is None else logps,
        old_known=None if old is None else torch.tensor(known),
    )


def test_mask_ratios_by_hand():
    """Whole fifths belong to the range above them, all of the answer to the last; a draw that scores nothing is none."""
    assert hidden_fifths(row([[1, 2], [3, 4], [5, 0]])).tolist() == [1, 2, 3, 4, 4]
    log = logged(window_metrics, [row([[1, 5], [5, 0]]), row([[2]], task="t2i")])
    assert sorted(log) == [f"mask_ratio/{name}" for name in FIFTHS]
    assert list(log.values()) == [0, 0.25, 0.25, 0, 0.5]
    split = logged(window_metrics, [row([[1, 5], [5, 0]]), row([[2]], task="t2i")], by_task=True)
    assert [split[f"mask_ratio/{name}/text"] for name in FIFTHS] == pytest.approx([0, 1 / 3, 0, 0, 2 / 3])
    assert [split[f"mask_ratio/{name}/t2i"] for name in FIFTHS] == [0, 0, 1, 0, 0]
    assert {name: split[name] for name in log} == log


def test_spread_of_the_estimator_by_hand():
    moved = row([[2, 3], [4, 0]], [[-1.0, -2.0], [-4.0, 0.0]], (True, True))
    assert estimates(moved).tolist() == pytest.approx([-1.0, -2.0, -4.0])
    later = row([[2, 2], [2, 3], [2, 2]], [[-9.0, -9.0], [-3.0, -5.0], [-9.0, -9.0]], (False, True, False))
    assert estimates(later).tolist() == pytest.approx([-3.0, -5.0])
    one, none, fresh = row([[2]], [[-1.0]], (True,)), row([[2]], [[0.0]], (False,)), row([[2]])
    assert [len(estimates(own)) for own in (one, none, fresh)] == [1, 0, 0]
    first = math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2)
    log = logged(window_metrics, [moved, later, one, none, fresh])
    assert log["estimator/std"] == pytest.approx((first + math.sqrt(2.0)) / 2)
    assert "estimator/std" not in logged(window_metrics, [one, none, fresh])


def test_a_mean_does_not_depend_on_how_its_values_were_divided():
    """Over units of any size, on one process or two."""
    values = torch.arange(12.0).square()
    for sizes in ([12], [5, 7], [1, 3, 8]):
        here, there = Metrics(), Metrics()
        for place, part in enumerate(values.split(sizes)):
            (here, there)[place % 2].add("kl", part.mean(), weight=len(part))
        told = here.flush(lambda own, other=there: [*own, other.pending()])
        assert told == {"kl": pytest.approx(float(values.mean()))}


def test_rewards_by_hand():
    """Four groups of two, the last one of pictures; the second reward leaves most rows out."""
    first = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 3.0, 1.0]
    second = [math.nan, 4.0, math.nan, math.nan, 1.0, 2.0, math.nan, math.nan]
    scores, tasks = torch.tensor([first, second]).T, ["text"] * 6 + ["t2i"] * 2
    advantages = group_advantages(scores, torch.tensor([1.0, 0.0]), 2)
    log = logged(reward_metrics, ["a", "b"], scores, advantages, 2, tasks, by_task=True)
    half = math.sqrt(0.5)
    assert log == pytest.approx(
        {
            "reward": 7 / 8,
            "rewards/a/mean": 7 / 8,
            "rewards/a/mean/text": 0.5,
            "rewards/a/mean/t2i": 2.0,
            "rewards/a/std": torch.tensor(first).std().item(),
            "rewards/a/group_std": (half + 0 + 0 + 2 * half) / 4,
            "rewards/a/group_std/text": half / 3,
            "rewards/a/group_std/t2i": 2 * half,
            "rewards/a/frac_none": 0.0,
            "rewards/a/frac_none/text": 0.0,
            "rewards/a/frac_none/t2i": 0.0,
            "rewards/a/frac_ties": 0.5,
            "rewards/a/frac_ties/text": 2 / 3,
            "rewards/a/frac_ties/t2i": 0.0,
            "rewards/b/frac_none": 5 / 8,
            "rewards/b/frac_none/text": 0.5,
            "rewards/b/frac_none/t2i": 1.0,
            "rewards/b/frac_ties": 0.0,
            "rewards/b/frac_ties/text": 0.0,
            "rewards/b/mean": 7 / 3,
            "rewards/b/mean/text": 7 / 3,
            "rewards/b/std": torch.tensor([4.0, 1.0, 2.0]).std().item(),
            "rewards/b/group_std": half,
            "rewards/b/group_std/text": half,
            "reward_std": (half + 0 + 0 + 2 * half) / 4,
            "reward_std/text": half / 3,
            "reward_std/t2i": 2 * half,
            "frac_reward_zero_std": 0.5,
            "frac_reward_zero_std/text": 2 / 3,
            "frac_reward_zero_std/t2i": 0.0,
        }
    )
    plain = logged(reward_metrics, ["a", "b"], scores, advantages, 2, tasks)
    assert plain == {name: log[name] for name in plain} and names_by_task(plain) == set()


def test_share_of_cut_answers_by_task():
    """Stop token 7; pictures have none and do not count."""

    def answer(ids: list[int], task: str):
        canvas = SimpleNamespace(ids=torch.tensor([ids]), task=task)
        return SimpleNamespace(canvas=canvas, completion_mask=torch.ones(1, len(ids), dtype=torch.bool))

    answers = [answer([1, 7], "text"), answer([1, 2], "text"), answer([3], "t2i"), answer([1], "mmu")]
    log = logged(completion_metrics, answers, (7,), by_task=True)
    assert {name: value for name, value in log.items() if "clipped" in name} == pytest.approx(
        {
            "completions/clipped_ratio": 2 / 3,
            "completions/clipped_ratio/text": 0.5,
            "completions/clipped_ratio/mmu": 1.0,
        }
    )


def test_compared_tokens_are_spread_over_the_unit():
    target = torch.rand(5, 100, generator=torch.Generator().manual_seed(0)) < 0.6
    kept = thinned(target)
    assert KL_TOKENS / 2 < int(kept.sum()) <= KL_TOKENS and not bool((kept & ~target).any())
    assert bool(kept.any(dim=1).all())
    assert torch.equal(thinned(target[:, :10]), target[:, :10])
    assert thinned(torch.ones(1, 9, dtype=torch.bool), 3).nonzero()[:, 1].tolist() == [0, 3, 6]
    assert not bool(thinned(torch.zeros(2, 3, dtype=torch.bool)).any())


# ---- runs ----


def train_logs(trainer) -> list[dict]:
    trainer.train()
    return [log for log in trainer.state.log_history if "loss" in log]


def test_a_run_of_one_task_logs_plain_names(make_trainer):
    first, second, *_ = train_logs(make_trainer(max_steps=2))
    assert [name for name in [*LOSS, *WINDOW, "kl_exact"] if name not in first] == []
    assert names_by_task(first) == names_by_task(second) == set()
    assert "reward/text" in first
    assert sum(first[f"mask_ratio/{fifth}"] for fifth in FIFTHS) == pytest.approx(1.0)
    assert first["ratio/ess"] == 1.0 and first["ratio/std"] == 0.0 and first["kl_exact"] == 0.0
    assert 0 < second["ratio/ess"] < 1.0 and second["ratio/std"] > 0
    drawn = [first[f"sampling/sampling_logp_difference/{name}"] for name in ("max", "mean")]
    assert drawn[0] > drawn[1] > 1e-3, "random masks are not the sampler's contexts"
    assert not set(WINDOW) & set(second)


@pytest.mark.smoke
def test_a_run_of_several_tasks_also_logs_by_task(make_trainer):
    (first,) = train_logs(
        make_trainer(**options("mixed", 4, max_steps=1, gradient_accumulation_steps=4, num_noise_samples=2))
    )
    for task in CANVAS_TASKS[:3]:
        missing = [name for name in [*LOSS, *WINDOW] if f"{name}/{task}" not in first]
        assert missing == [], task
        assert sum(first[f"mask_ratio/{fifth}/{task}"] for fifth in FIFTHS) == pytest.approx(1.0)
    assert [f"kl_exact/{task}" in first for task in CANVAS_TASKS[:3]] == [True, True, False]
    assert [f"completions/clipped_ratio/{task}" in first for task in CANVAS_TASKS[:3]] == [True, True, False]
    assert first["reward_std"] == pytest.approx(
        (first["reward_std/text"] + first["reward_std/mmu"] + 2 * first["reward_std/t2i"]) / 4, abs=1e-6
    )


def test_windows_of_one_task_in_a_run_of_several_log_by_task(make_trainer):
    settings = options("mixed", 5, per_device_train_batch_size=4, num_generations=4, max_steps=3)
    logs = train_logs(make_trainer(**settings, **ONE_PROMPT))
    for log, task in zip(logs, ("t2i", "mmu", "text"), strict=True):
        assert {name.rsplit("/", 1)[-1] for name in names_by_task(log)} == {task}
        assert [name for name in log if name.startswith("reward/")] == [f"reward/{task}"]
        assert log[f"entropy/{task}"] == log["entropy"]


def test_pictures_held_out_do_not_make_a_run_of_several_tasks(make_trainer):
    settings = options("mixed", 4, eval_rows=options("mixed", 4)["rows"], max_steps=1)
    settings["rows"] = prompts(4)
    assert names_by_task(train_logs(make_trainer(**settings))[0]) == set()


def test_without_a_ratio(make_trainer):
    """Old log-probabilities are then known only until the first step moves the policy."""
    logs = train_logs(make_trainer(algorithm="wd1", num_iterations=2, beta=0.0, max_steps=4))
    assert ["sampling/sampling_logp_difference/mean" in log for log in logs] == [True, False, False, False]
    assert all("entropy" in log for log in logs)
    unwanted = ("ratio/", "clip_ratio/", "kl", "estimator/")
    assert [name for log in logs for name in log if name.startswith(unwanted)] == []


# ---- exact KL ----


def moved(make_trainer, **arguments):
    """A trainer whose policy has left its reference, and a window of it."""
    trainer = make_trainer(lora=True, model=aligned(), rows=prompts(4), **arguments)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    return trainer, first_window(trainer)


def test_exact_kl_of_the_first_unit(make_trainer):
    trainer, window = moved(make_trainer)
    pipe, metrics = trainer.pipeline(), Metrics()
    log_exact_kl(pipe, window, ["text"] * 16, metrics)
    batch = collate(window.experiences, window.micro_batches[0][0], 0, pipe.policy, "cpu")
    arguments = (pipe.policy, batch.canvas, batch.hidden, batch.target, batch.noisy_ids)
    assert 0 < int(batch.target.sum()) <= KL_TOKENS
    trainer.model.eval()
    with torch.no_grad(), pipe.reference() as model:
        reference = token_logprobs(model, *arguments)
    with torch.no_grad():
        kl = score_tokens(trainer.model, *arguments, ref_logprobs=reference).kl[batch.target]
    assert metrics.flush() == {"kl_exact": pytest.approx(kl.mean().item(), rel=1e-5)}
    assert kl.mean().item() > 1e-4


def test_every_rank_makes_the_same_forwards(make_trainer):
    """Here the other rank's rows are of a task that this one has none of."""
    trainer, window = moved(make_trainer)
    calls, metrics = [], Metrics(by_task=True)
    trainer.model.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    for tasks, forwards in ((["text"], 2), (["text", "mmu"], 4), (["t2i"], 0)):
        calls.clear()
        log_exact_kl(trainer.pipeline(), window, tasks, metrics)
        assert calls == [False] * forwards
    assert sorted(metrics.flush()) == ["kl_exact", "kl_exact/text"]


@pytest.mark.parametrize("changes", [{"beta": 0.0}, {"kl_estimator": "exact"}, {"kl_reference": "old"}])
def test_no_exact_kl_where_none_is_wanted(make_trainer, changes):
    trainer = make_trainer(**changes)
    metrics = Metrics()
    make_experience(trainer.pipeline(), next(iter(trainer.get_train_dataloader())), 0, metrics)
    assert "kl_exact" not in metrics.flush()

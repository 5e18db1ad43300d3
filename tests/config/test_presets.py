"""Every preset against its paper's formula in plain arithmetic, and presets as plain, overridable configuration."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import unigrpo
from unigrpo.config.arguments import UniGRPOConfig
from unigrpo.config.build import build_algorithm, build_algorithms
from unigrpo.config.presets import PRESETS, TASK_DEFAULTS
from unigrpo.config.run_keys import RUN_KEYS
from unigrpo.config.task import TASK_KEYS
from unigrpo.runs.build import build_config
from unigrpo.runs.keys import describe
from unigrpo.training.batches import collate
from unigrpo.training.scores import compare
from unigrpo.training.window import rebuild_window
from unigrpo.types import CANVAS_TASKS, Canvas, Experience, Rollout, TokenSpace

from ..support.recipes import MINIMAL, recipe
from ..support.records import terms_of


pytestmark = pytest.mark.filterwarnings("ignore:algorithm .* does not read what was set")


PROMPT, WRITTEN, LENGTH = 2, 12, 14
COUNTS = (10, 9, 4, 12)
"""Tokens that count, in four rows of one group."""

REWARDS = (1.0, 0.0, 0.25, 0.5)
"""Above, below, below and above their mean of 0.4375."""

SHIFTS = (0.7, 0.5, -0.8, -0.1)
"""Mean log-ratio of each row: clipped above, not clipped, clipped below, inside."""


def config(**values) -> UniGRPOConfig:
    sizes = {
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "block_length": 4,
        "max_completion_length": WRITTEN,
    }
    return UniGRPOConfig("unused", **{"use_cpu": True, "report_to": "none", **sizes, **values})


def new(b: int, s: int, j: int) -> float:
    return -0.3 - ((3 * b + 5 * s + 7 * j) % 11) / 5


def old(b: int, s: int, j: int) -> float:
    return new(b, s, j) - SHIFTS[b] - (((2 * b + 3 * s + 5 * j) % 7) - 3) / 10


def ref(b: int, s: int, j: int) -> float:
    return new(b, s, j) + (((b + 2 * s + 3 * j) % 5) - 1.5) / 4


# ---- the library's side: noising, cutting, collating and the loss of every unit, with a table in place of the model ----


class Table:
    """Four rows whose log-probabilities are given, under the draws of ``args``' noising at the last inner update."""

    def __init__(self, args: UniGRPOConfig, task: str = "text", rewards=REWARDS) -> None:
        self.args, self.task = args, task
        self.algorithms = build_algorithms(args)
        self.algorithm = self.algorithms[task]
        self.pipe = SimpleNamespace(
            args=args,
            algorithms=self.algorithms,
            policy=SimpleNamespace(attends_padding=False, pad_token_id=0, mask_token_id=1),
            gather=lambda values: values,
            device="cpu",
            rank=0,
        )
        self.A = compare(args, [1.0], torch.tensor(rewards, dtype=torch.float64)[:, None]).values.tolist()
        self.k = args.num_iterations - 1
        self.noise = self._draw()
        self.target = [
            [(row[self.k, s].nonzero().squeeze(1) - PROMPT).tolist() for s in range(row.shape[1])]
            for row in self.noise.target
        ]
        self.n = COUNTS

    def _draw(self):
        fill = torch.zeros(4, LENGTH, dtype=torch.bool)
        fill[:, PROMPT:] = True
        counts = torch.zeros_like(fill)
        for row, count in enumerate(COUNTS):
            counts[row, PROMPT : PROMPT + count] = True
        # Written in an order of its own, one token a step.
        steps = torch.full((4, LENGTH), -1)
        steps[:, PROMPT:] = torch.tensor([(5 * j + 2) % WRITTEN for j in range(WRITTEN)])
        canvas = Canvas(
            ids=torch.zeros(4, LENGTH, dtype=torch.int64),
            fill_mask=fill,
            attention_mask=torch.ones_like(fill),
            task=self.task,
            token_space=TokenSpace(start=0, stop=10),
        )
        self.rollout = Rollout(
            canvas=canvas,
            completion_mask=counts,
            step_map=steps,
            sampling_logps=torch.zeros(4, LENGTH),
            completions=[""] * 4,
        )
        return self.algorithm.noising(
            self.rollout,
            num_iterations=self.args.num_iterations,
            num_samples=self.algorithm.settings.num_noise_samples,
            key=(0, 0),
            rows=[0, 1, 2, 3],
        )

    def rows(self) -> list[Experience]:
        shape = self.noise.target.shape[1:]

        def spread(values, b):
            table = torch.zeros(shape, dtype=torch.float64)
            for s in range(shape[1]):
                table[:, s, PROMPT:] = torch.tensor([values(b, s, j) for j in range(WRITTEN)], dtype=torch.float64)
            return table

        canvas, rollout = self.rollout.canvas, self.rollout
        return [
            Experience(
                ids=canvas.ids[b],
                attention_mask=canvas.attention_mask[b],
                fill_mask=canvas.fill_mask[b],
                completion_mask=rollout.completion_mask[b],
                hidden=self.noise.hidden[b],
                target=self.noise.target[b],
                weight=self.noise.weight[b],
                sampling_logps=rollout.sampling_logps[b],
                step_map=rollout.step_map[b],
                advantage=self.A[b],
                active=True,
                task=self.task,
                token_space=canvas.token_space,
                index=b,
                old_logps=spread(old, b),
                old_known=torch.ones(shape[0], dtype=torch.bool),
                ref_logps=spread(ref, b),
                extra={"new": spread(new, b)[None]},
            )
            for b in range(4)
        ]

    def loss(self) -> float:
        """The sum of the losses of all units of one optimizer step, as the trainer sums them."""
        rows = self.rows()
        window = rebuild_window(self.pipe, rows, [0, 1, 2, 3])
        loss, settings, total = self.algorithm.loss, self.algorithm.settings, 0.0
        per_step = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        for step, units in enumerate(window.micro_batches):
            for unit in units:
                batch = collate(rows, unit, self.k, self.pipe.policy, "cpu", self.algorithm.mixes_draws)
                draws = range(self.noise.target.shape[2]) if unit.draw is None else [unit.draw]
                terms = terms_of(
                    loss,
                    torch.stack([rows[b].extra["new"][0, self.k, s] for b in unit.indices for s in draws]),
                    batch.old_logps,
                    batch.old_logps if settings.kl_reference == "old" else batch.ref_logps,
                    batch.advantages,
                    batch.target,
                    batch.weight,
                    batch.completion_length,
                    scored_tokens=batch.scored_tokens,
                    tokens_per_row=window.tokens_per_row(loss.loss_type, step, self.k, self.task),
                )
                total += settings.loss_weight * (terms.losses * batch.scale).sum().item() / per_step
        return total


# ---- the papers' side ----


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def clipped(log_ratio: float, advantage: float, low: float, high: float | None = None) -> float:
    """C(rho, A) = min(rho A, clip(rho, 1 - low, 1 + high) A)."""
    ratio = math.exp(log_ratio)
    return min(ratio * advantage, min(max(ratio, 1 - low), 1 + (low if high is None else high)) * advantage)


def k3(x: float) -> float:
    """x = log p_ref - log p."""
    return math.exp(x) - x - 1


def centred() -> list[float]:
    return [reward - mean(REWARDS) for reward in REWARDS]


def standardised(correction: int) -> list[float]:
    std = math.sqrt(sum(value**2 for value in centred()) / (4 - correction))
    return [value / (std + 1e-4) for value in centred()]


def leave_one_out() -> list[float]:
    return [own - mean(REWARDS[:i] + REWARDS[i + 1 :]) for i, own in enumerate(REWARDS)]


def softmax_weights(temperature: float = 1.0) -> list[float]:
    """w+ = softmax(A / psi), w- = softmax(-A / psi); G (w+ - w-), for a loss that is a mean over G rows."""
    up, down = [math.exp(a / temperature) for a in centred()], [math.exp(-a / temperature) for a in centred()]
    return [4 * (u / sum(up) - d / sum(down)) for u, d in zip(up, down, strict=True)]


def structured(t: Table) -> float:
    """-1/G sum_i 1/|M_i| sum_{M_i} [C(rho, A, .2) - .01 k3(ref)], Eq. 5 of 2505.15809; one mask an update."""
    return mean(
        -mean(
            clipped(new(b, 0, j) - old(b, 0, j), t.A[b], 0.2) - 0.01 * k3(ref(b, 0, j) - new(b, 0, j))
            for j in t.target[b][0]
        )
        for b in range(4)
    )


def diffu_grpo(t: Table) -> float:
    """-sum_i sum_t [C(rho, A, .5) - .04 k3(ref)] / sum_i |o_i|: every token of every answer, with one weight."""
    total = sum(
        clipped(new(b, 0, j) - old(b, 0, j), t.A[b], 0.5) - 0.04 * k3(ref(b, 0, j) - new(b, 0, j))
        for b in range(4)
        for j in range(t.n[b])
    )
    return -total / sum(t.n)


def coupled_grpo(t: Table) -> float:
    """log p_j = 1/2 [log p_j^full + w_j log p_j^pair], w = n / l in the half of l tokens; then C(.5) - .01 k3 a token."""

    def mixed(values, b, j):
        (half,) = [s for s in (1, 2) if j in t.target[b][s]]
        return 0.5 * values(b, 0, j) + 0.5 * t.n[b] / len(t.target[b][half]) * values(b, half, j)

    def token(b, j):
        own = mixed(new, b, j)
        return clipped(own - mixed(old, b, j), t.A[b], 0.5) - 0.01 * k3(mixed(ref, b, j) - own)

    return -mean(mean(token(b, j) for j in range(t.n[b])) for b in range(4))


def rows_to_old(t: Table) -> float:
    """Each row of hidden tokens has its own mean of C(.2) - .01 k3(old), an answer the mean of its rows."""

    def row(b, s):
        terms = []
        for j in t.target[b][s]:
            d = new(b, s, j) - old(b, s, j)
            terms.append(clipped(d, t.A[b], 0.2) - 0.01 * k3(-d))
        return mean(terms)

    return -mean(mean(row(b, s) for s in range(len(t.target[b])) if t.target[b][s]) for b in range(4))


def wd1(t: Table) -> float:
    """-sum_i (w+_i - w-_i) sum_t log p_t, Eq. 8 of 2507.08838."""
    return -mean(t.A[b] * sum(new(b, 0, j) for j in range(t.n[b])) for b in range(4))


def spg(t: Table) -> float:
    """A >= 0: lower = 1/S sum_s log p / t_s. A < 0: half of it and half (1/1.5) log 1/S sum_s p^1.5 / t_s. Token sums."""

    def token(b, j):
        seen = [(s, t.n[b] / len(t.target[b][s])) for s in (0, 1) if j in t.target[b][s]]
        if not seen:
            return 0.0
        lower = sum(w * new(b, s, j) for s, w in seen) / 2
        upper = math.log(sum(w * math.exp(1.5 * new(b, s, j)) for s, w in seen) / 2) / 1.5
        return lower if t.A[b] >= 0 else 0.5 * upper + 0.5 * lower

    return -sum(t.A[b] * token(b, j) for b in range(4) for j in range(t.n[b])) / sum(t.n)


def espo(t: Table) -> float:
    """E = 1/4 sum_s (n + 1) / l_s sum_{M_s} log p; rho = exp((E - E_old) / n); C(.2) - .003 (E - E_ref)^2 / (2 n)."""

    def bound(values, b):
        return mean(
            (t.n[b] + 1) / max(len(own), 1) * sum(values(b, s, j) for j in own) for s, own in enumerate(t.target[b])
        )

    def sequence(b):
        own, n = bound(new, b), t.n[b]
        return clipped((own - bound(old, b)) / n, t.A[b], 0.2) - 0.003 * (own - bound(ref, b)) ** 2 / (2 * n)

    return -mean(sequence(b) for b in range(4))


def gdpo(t: Table) -> float:
    """E = sum_q w_q n / l_q sum_{M_q} log p with l_q = round(xi_q n), xi = 1/2 -+ 1/(2 sqrt 3), w = 1/2;
    C(exp((E - E_old) / n), A, .5).
    """
    nodes = (0.5 - 0.5 / math.sqrt(3), 0.5 + 0.5 / math.sqrt(3))

    def bound(values, b):
        sizes = [max(round(node * t.n[b]), 1) for node in nodes]
        assert [len(t.target[b][q]) for q in (0, 1)] == sizes
        return sum(0.5 * t.n[b] / sizes[q] * sum(values(b, q, j) for j in t.target[b][q]) for q in (0, 1))

    return -mean(clipped((bound(new, b) - bound(old, b)) / t.n[b], t.A[b], 0.5) for b in range(4))


def mask_grpo(t: Table) -> float:
    """-sum over all hidden tokens of [C(.2) - .01 k3(ref)] / their number."""
    total = sum(
        clipped(new(b, 0, j) - old(b, 0, j), t.A[b], 0.2) - 0.01 * k3(ref(b, 0, j) - new(b, 0, j))
        for b in range(4)
        for j in t.target[b][0]
    )
    return -total / sum(len(t.target[b][0]) for b in range(4))


def just_grpo(t: Table) -> float:
    """-1/G sum_i 1/|o_i| sum_t C(rho, A, .2); token t is scored by draw t."""
    return -mean(mean(clipped(new(b, j, j) - old(b, j, j), t.A[b], 0.2) for j in range(t.n[b])) for b in range(4))


def bgpo(t: Table) -> float:
    """d_s = 1/n sum_{M_s} n/l_s (log p - log p_old); A (1 + d) for A >= 0 and A exp(d) below; the mean over draws."""

    def draw(b, s):
        own = t.target[b][s]
        d = sum(new(b, s, j) - old(b, s, j) for j in own) / len(own)
        return t.A[b] * (1 + d if t.A[b] >= 0 else math.exp(d))

    return -mean(mean(draw(b, s) for s in range(4)) for b in range(4))


def dipo(t: Table) -> float:
    """-1/G sum_i 1/|o_i| sum_t [C(rho, A, .2, .28) - .1 k3(ref)]; every token is scored by the step that wrote it."""

    def token(b, j):
        (s,) = [s for s, own in enumerate(t.target[b]) if j in own]
        d = new(b, s, j) - old(b, s, j)
        return clipped(d, t.A[b], 0.2, 0.28) - 0.1 * k3(ref(b, s, j) - new(b, s, j))

    return -mean(mean(token(b, j) for j in range(t.n[b])) for b in range(4))


FORMULAS = {
    "unigrpo": (structured, standardised(1)),
    "diffu_grpo": (diffu_grpo, centred()),
    "coupled_grpo": (coupled_grpo, leave_one_out()),
    "random_masking": (rows_to_old, standardised(0)),
    "trace_rl": (rows_to_old, standardised(0)),
    "wd1": (wd1, softmax_weights()),
    "spg": (spg, centred()),
    "espo": (espo, leave_one_out()),
    "gdpo": (gdpo, centred()),
    "mask_grpo": (mask_grpo, standardised(1)),
    "just_grpo": (just_grpo, standardised(1)),
    "bgpo": (bgpo, standardised(1)),
    "dipo": (dipo, standardised(1)),
}


def test_every_preset_has_a_formula_here():
    assert FORMULAS.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_the_advantages_of_a_preset_are_the_papers(name):
    values = Table(config(algorithm=name)).A
    assert values == pytest.approx(FORMULAS[name][1], abs=1e-7)


@pytest.mark.smoke
@pytest.mark.parametrize("name", PRESETS)
def test_the_loss_of_a_preset_is_the_papers(name):
    table = Table(config(algorithm=name))
    assert table.loss() == pytest.approx(FORMULAS[name][0](table), abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_the_loss_of_a_preset_is_the_papers_for_images(name):
    """The same method on images: guidance belongs to the likelihood, and the exact KL of image defaults is set aside."""
    table = Table(config(algorithm=name, kl_estimator="k2" if name == "espo" else "k3"), "t2i")
    assert table.loss() == pytest.approx(FORMULAS[name][0](table), abs=1e-6, rel=1e-6)


def test_what_each_preset_hides():
    """The draws that the formulas read: their number, and which tokens of an answer they score together."""
    everything = [list(range(n)) for n in COUNTS]
    for name in ("diffu_grpo", "wd1"):
        assert [own for (own,) in Table(config(algorithm=name)).target] == everything
    for name in ("coupled_grpo", "espo"):
        table = Table(config(algorithm=name))
        first = 1 if name == "coupled_grpo" else 0
        for b, own in enumerate(table.target):
            assert len(own) == (3 if first else 4)
            assert not first or own[0] == everything[b]
            for s in range(first, len(own), 2):
                assert sorted(own[s] + own[s + 1]) == everything[b]
    for name in ("just_grpo", "dipo"):
        for b, own in enumerate(Table(config(algorithm=name)).target):
            scored = [places for places in own if places]
            assert len(scored) == COUNTS[b]
            assert sorted(j for (j,) in scored) == everything[b]
            if name == "just_grpo":
                assert [j for (j,) in scored] == everything[b]
    stages = [[own for own in row if own] for row in Table(config(algorithm="trace_rl")).target]
    assert [[len(own) for own in row] for row in stages] == [[8, 2], [8, 1], [4], [8, 4]]
    last = Table(config(algorithm="mask_grpo", task_overrides={"t2i": {"noising": "structured"}}), "t2i").target
    assert [len(own) for (own,) in last] == list(COUNTS)


def test_the_table_clips_on_both_sides():
    """Otherwise the formulas above would not see a wrong clip range."""
    for name, low, high in (("unigrpo", 0.2, 0.2), ("diffu_grpo", 0.5, 0.5), ("dipo", 0.2, 0.28)):
        table = Table(config(algorithm=name))
        ratios = [
            (math.exp(new(b, s, j) - old(b, s, j)), table.A[b])
            for b in range(4)
            for s, own in enumerate(table.target[b])
            for j in own
        ]
        assert any(r > 1 + high and a > 0 for r, a in ratios) and any(r < 1 - low and a < 0 for r, a in ratios)
        assert any(r > 1 + high and a < 0 for r, a in ratios) and any(1 - low < r < 1 + high for r, a in ratios)


# ---- parts that no preset uses ----


def own_loss(**changes) -> tuple[float, Table]:
    usual = {"noising": "full", "num_iterations": 1, "beta": 0.0, "scale_rewards": "none"}
    table = Table(config(**{**usual, **changes}))
    return table.loss(), table


def tokens(table, formula) -> list[list[float]]:
    """``formula(d, A, new)`` of every token of every row."""
    return [
        [formula(new(b, 0, j) - old(b, 0, j), table.A[b], new(b, 0, j)) for j in range(COUNTS[b])] for b in range(4)
    ]


TOKEN_LOSSES = {
    # sg(min(rho, 1 + high)) A log p: only the upper bound acts.
    "cispo": ({"surrogate": "cispo", "epsilon_high": 0.4}, lambda d, a, logp: min(math.exp(d), 1.4) * a * logp),
    # A < 0: max(min(rho A, clip(rho) A), delta A), which is the ratio cut at delta first.
    "delta": ({"delta": 1.5}, lambda d, a, _: clipped(d, a, 0.2) if a >= 0 else max(clipped(d, a, 0.2), 1.5 * a)),
    # Log-ratios within +-0.3 before anything else; the wide clip range lets it show above and below.
    "log-ratio": ({"log_ratio_clip": 0.3, "epsilon": 0.9}, lambda d, a, _: math.exp(max(-0.3, min(d, 0.3))) * a),
    # beta k3(log p_old - log p) beside the surrogate.
    "KL to old": ({"kl_reference": "old", "beta": 0.5}, lambda d, a, _: clipped(d, a, 0.2) - 0.5 * k3(-d)),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_a_loss_of_tokens_is_minus_the_mean_over_each_rows_tokens(name):
    options, formula = TOKEN_LOSSES[name]
    value, table = own_loss(**options)
    assert value == pytest.approx(-mean(mean(row) for row in tokens(table, formula)), abs=1e-6)
    assert value != pytest.approx(own_loss()[0], abs=1e-3)
    settings = table.algorithm.settings
    assert table.algorithm.needs_old and not settings.needs_reference


BATCH_MEAN = {"num_generations": 2, "advantage_estimator": "batch_mean", "scale_rewards": "none"}
SOFTMAX = {"advantage_estimator": "softmax", "advantage_temperature": 0.5, "scale_rewards": "none"}


@pytest.mark.parametrize(
    ("options", "rewards", "expected"),
    [
        # Its first and its second answer lie outside, the others inside.
        ({"advantage_clip": 0.5}, REWARDS, [0.5, -0.5, *standardised(1)[2:]]),
        # The baseline is the mean over both groups of two: (1 + 0 + .25 + .5) / 4 = .4375; no group has one of its own.
        (BATCH_MEAN, REWARDS, [0.5625, -0.4375, -0.1875, 0.0625]),
        (BATCH_MEAN, (1, 1, 0, 0), [0.5, 0.5, -0.5, -0.5]),
        (SOFTMAX, REWARDS, softmax_weights(0.5)),
    ],
)
def test_advantages_by_hand(options, rewards, expected):
    assert pytest.approx(expected, abs=1e-6) == Table(config(**options), rewards=rewards).A


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo", "dr_grpo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_loss_types(loss_type, level):
    """Row sums over: the row's tokens; all tokens of the step, or of the micro-batch; G max_completion_length.

    A sequence counts with its tokens where tokens are counted. Two micro-batches make one step: rows 0 1 and 2 3.
    """
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    value, table = own_loss(loss_type=loss_type, importance_sampling_level=level, epsilon=0.2, **sizes)
    if level == "token":
        sums = [sum(row) for row in tokens(table, lambda d, a, _: clipped(d, a, 0.2))]
    else:
        means = [mean(row) for row in tokens(table, lambda d, a, _: d)]
        sums = [n * clipped(d, a, 0.2) for n, d, a in zip(COUNTS, means, table.A, strict=True)]
    expected = {
        "grpo": mean(total / n for total, n in zip(sums, COUNTS, strict=True)),
        "dapo": sum(sums) / sum(COUNTS),
        "bnpo": mean([sum(sums[:2]) / sum(COUNTS[:2]), sum(sums[2:]) / sum(COUNTS[2:])]),
        "dr_grpo": sum(sums) / (4 * WRITTEN),
    }
    assert value == pytest.approx(-expected[loss_type], abs=1e-6)
    assert len({round(own, 4) for own in expected.values()}) == 4


def test_summed_sequences_without_a_ratio_are_divided_by_tokens_where_tokens_are_counted():
    """dapo of A sum_t log p: the rows' sums over all their tokens, by which token ratios would be divided too."""
    options = {"surrogate": "log_likelihood", "importance_sampling_level": "sequence_sum"}
    value, table = own_loss(loss_type="dapo", **options)
    rows = [sum(row) for row in tokens(table, lambda d, a, logp: a * logp)]
    assert value == pytest.approx(-sum(rows) / sum(COUNTS), abs=1e-5)


def test_a_plain_mixture_is_the_mean_over_the_draws_that_score_a_token():
    """log p_j = 1/|S_j| sum_{s in S_j} log p_js over the draws S_j that hide j; then C(rho, A, .2) a token."""
    options = {"noising": "random", "reduce": "per_token", "weighting": "uniform", "num_noise_samples": 3}
    table = Table(config(**options, num_iterations=1, beta=0.0))

    def row(b):
        seen = {j: [s for s in range(3) if j in table.target[b][s]] for j in range(COUNTS[b])}
        ratios = [mean(new(b, s, j) - old(b, s, j) for s in own) for j, own in seen.items() if own]
        assert any(len(own) > 1 for own in seen.values())
        return mean(clipped(d, table.A[b], 0.2) for d in ratios)

    assert table.loss() == pytest.approx(-mean(row(b) for b in range(4)), abs=1e-6)


def test_loss_weight_multiplies_the_loss_of_its_task():
    plain, _ = own_loss()
    weighted, _ = own_loss(task_overrides={"text": {"loss_weight": 2.5}, "t2i": {"loss_weight": 7.0}})
    assert weighted == pytest.approx(2.5 * plain)


# ---- presets as configuration ----


DEFAULTS = {key: about.default for key, about in {**RUN_KEYS, **TASK_KEYS}.items()}
"""What the parts say where a preset says nothing."""


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_one_key_of_a_recipe(tmp_path, name):
    args = build_config(recipe(tmp_path, MINIMAL, f"algorithm={name}"))
    assert args.algorithm == name
    flat = {key: value for key, value in PRESETS[name].items() if not isinstance(value, dict)}
    own = PRESETS[name].get("text", {})
    usual = {key: value for key, value in DEFAULTS.items() if key not in ("epsilon", "epsilon_high", "mask_ratio_min")}
    for key, value in {**usual, **flat, **own}.items():
        found = getattr(args.for_task("text"), key) if key in TASK_KEYS else getattr(args, key)
        assert found == value, key
    assert set(build_algorithms(args)) == set(CANVAS_TASKS)


OTHERS = {
    "noising": "quadrature", "weighting": "inverse_probability", "reduce": "per_token", "num_iterations": 5, "num_noise_samples": 6,
    "p_mask_prompt": 0.4, "draw_coupling": "antithetic", "trajectory_shrink": 3, "bound_exponent": 1.25, "bound_mixture": 0.75,
    "importance_sampling_level": "sequence", "surrogate": "cispo", "epsilon": 0.3, "epsilon_high": 0.35, "delta": 2.0,
    "log_ratio_clip": 3.0, "beta": 0.02, "kl_estimator": "k1", "kl_reference": "old", "kl_level": "sum", "loss_type": "bnpo",
    "length_normalization": "completion", "sampler": "semi_autoregressive", "guidance": "none",
}  # fmt: skip
"""A value of each part that can be set beside any preset. Those that a preset already has change nothing in it."""

FLAT_ONLY = {"advantage_estimator": "batch_mean", "advantage_temperature": 2.0, "scale_rewards": "batch"}


def one_update(name: str, key: str) -> dict:
    """wd1 sums log-likelihoods: with a ratio in their place it can make one update a rollout."""
    return {"num_iterations": 1} if (name, key) == ("wd1", "surrogate") else {}


@pytest.mark.parametrize("key", [*OTHERS, *FLAT_ONLY])
def test_any_part_of_a_preset_is_overridden_by_its_key(key):
    value = {**OTHERS, **FLAT_ONLY}[key]
    for name in PRESETS:
        args = config(algorithm=name, **{**one_update(name, key), key: value})
        if key in TASK_KEYS:
            assert all(getattr(args.for_task(task), key) == value for task in CANVAS_TASKS[:3]), name
            build_algorithms(args)
        else:
            assert getattr(args, key) == value


@pytest.mark.parametrize(("place", "key"), [(n, key) for n, key in enumerate(OTHERS) if key in TASK_KEYS])
def test_any_part_of_a_preset_is_overridden_for_one_task(place, key):
    """A third of the presets for each key, each preset with a third of the keys."""
    for name in list(PRESETS)[place % 3 :: 3]:
        plain = config(algorithm=name, **one_update(name, key))
        args = config(algorithm=name, task_overrides={"mmu": {key: OTHERS[key]}}, **one_update(name, key))
        assert getattr(args.for_task("mmu"), key) == OTHERS[key], name
        assert args.for_task("text") == plain.for_task("text")
        assert args.for_task("t2i") == plain.for_task("t2i")
        build_algorithm(args, "mmu")


def test_every_part_is_among_those_that_are_overridden():
    parts = {key for preset in PRESETS.values() for key, value in preset.items() if key not in CANVAS_TASKS}
    given = set(OTHERS) | set(FLAT_ONLY)
    # Timestep rules and mask ratios go with some noisings only; they have tests of their own.
    assert parts - given == {"timesteps", "mask_ratio_min", "mask_ratio_max"}


OWN_RATIOS = [name for name, preset in PRESETS.items() if "mask_ratio_min" in preset]


@pytest.mark.parametrize("name", OWN_RATIOS)
def test_another_noising_drops_what_belongs_to_the_presets_own(name):
    assert len(OWN_RATIOS) == 3
    for noising in ("structured", "full", "quadrature"):
        by_itself = PRESETS[name].get("t2i", {}).get("noising") == noising
        flat = config(algorithm=name, noising=noising)
        for task in ("text", "mmu") if by_itself else CANVAS_TASKS:
            own = flat.for_task(task)
            assert own.noising == noising
            assert (own.timesteps, own.mask_ratio_min, own.mask_ratio_max) == ("stratified", None, 1.0)
            assert (own.num_noise_samples, own.draw_coupling) == (1, "stratified")
        for task in ("text", "mmu"):
            args = config(algorithm=name, task_overrides={task: {"noising": noising}})
            own = args.for_task(task)
            assert (own.timesteps, own.mask_ratio_min, own.mask_ratio_max) == ("stratified", None, 1.0)
            assert args.for_task("t2i") == config(algorithm=name).for_task("t2i")


def test_another_noising_of_images_drops_the_presets_ratios_too():
    """mask_grpo names a noising by task; a task override replaces it all the same."""
    own = config(algorithm="mask_grpo", task_overrides={"t2i": {"noising": "random"}}).for_task("t2i")
    assert (own.noising, own.timesteps, own.mask_ratio_min) == ("random", "stratified", 0.0)
    for same in ({"noising": "structured"}, {"task_overrides": {"t2i": {"noising": "structured"}}}):
        kept = config(algorithm="mask_grpo", **same).for_task("t2i")
        assert (kept.noising, kept.timesteps, kept.mask_ratio_min) == ("structured", "truncated", 0.6)


def test_a_mask_ratio_that_is_given_stays_with_another_noising():
    own = config(algorithm="coupled_grpo", noising="random", mask_ratio_min=0.3).for_task("text")
    assert (own.mask_ratio_min, own.mask_ratio_max) == (0.3, 1.0)


def test_the_order_in_which_settings_are_found():
    """Task override, then the run's key, the preset's for the task, the task's default, the preset's."""
    preset = "espo"
    assert PRESETS[preset]["t2i"] == {"kl_estimator": "k2"}
    assert (TASK_DEFAULTS["t2i"]["kl_estimator"], DEFAULTS["kl_estimator"]) == ("exact", "k3")

    def found(task="t2i", **values):
        return config(**values).for_task(task).kl_estimator

    assert found(algorithm=preset, kl_estimator="k3", task_overrides={"t2i": {"kl_estimator": "k1"}}) == "k1"
    assert found(algorithm=preset, kl_estimator="k3") == "k3"
    assert found(algorithm=preset) == "k2"
    assert found(algorithm="unigrpo") == "exact"
    assert found("text", algorithm="unigrpo") == "k3"
    assert config(algorithm="unigrpo").for_task("text").beta == PRESETS["unigrpo"]["beta"] != DEFAULTS["beta"]
    assert config(algorithm="gdpo").for_task("text").beta == DEFAULTS["beta"]
    assert [config(algorithm="just_grpo").for_task(task).sampler for task in CANVAS_TASKS[:3]].count(
        "left_to_right"
    ) == 2
    assert (
        config(algorithm="just_grpo", sampler="semi_autoregressive").for_task("text").sampler == "semi_autoregressive"
    )


def test_pictures_take_an_estimate_where_the_kl_is_to_the_old_policy():
    """Their default is the exact KL, for which the old policy's whole distributions are not kept."""
    assert config(kl_reference="old").for_task("t2i").kl_estimator == "k3"
    overridden = config(task_overrides={"t2i": {"kl_reference": "old"}})
    assert overridden.for_task("t2i").kl_estimator == "k3"
    with pytest.raises(ValueError, match="kl_estimator='exact' with kl_reference='old'"):
        config(task_overrides={"t2i": {"kl_reference": "old", "kl_estimator": "exact"}})


def test_another_timestep_rule_drops_the_presets_lowest_ratio():
    own = config(algorithm="mask_grpo", timesteps="stratified")
    assert [own.for_task(task).mask_ratio_min for task in CANVAS_TASKS[:3]] == [None] * 3


def test_inverse_probabilities_sum_over_the_whole_answer():
    assert config(weighting="inverse_probability").for_task("text").length_normalization == "completion"
    overridden = config(task_overrides={"t2i": {"weighting": "inverse_probability"}})
    assert overridden.for_task("t2i").length_normalization == "completion"
    assert overridden.for_task("text").length_normalization == "masked"
    with pytest.raises(ValueError, match=r"length_normalization='masked' .* twice; use 'completion'"):
        config(weighting="inverse_probability", length_normalization="masked")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"algorithm": "spg", "epsilon": 0.3}, ["epsilon=0.3", "surrogates 'ppo' and 'cispo'"]),
        ({"draw_coupling": "antithetic"}, ["draw_coupling='antithetic'", "noising 'random'"]),
        ({"bound_mixture": 0.3}, ["bound_mixture=0.3", "reduce 'signed'"]),
        ({"algorithm": "gdpo", "kl_estimator": "k2"}, ["kl_estimator='k2'", "beta > 0"]),
        ({"advantage_temperature": 2.0}, ["advantage_temperature=2.0", "softmax"]),
        ({"task_overrides": {"t2i": {"trajectory_shrink": 2}}}, ["task_overrides.t2i.trajectory_shrink=2"]),
        ({"mask_ratio_max": 0.9}, ["mask_ratio_max=0.9", "noisings 'random' and 'coupled'"]),
        (
            {"algorithm": "coupled_grpo", "task_overrides": {"mmu": {"noising": "structured", "mask_ratio_max": 0.9}}},
            ["task_overrides.mmu.mask_ratio_max=0.9"],
        ),
    ],
)
def test_keys_that_nothing_reads_are_told(values, told):
    with pytest.warns(UserWarning, match="does not read what was set") as caught:
        config(**values)
    assert all(part in str(caught[0].message) for part in told)


def test_presets_alone_are_read_whole(recwarn):
    for name in PRESETS:
        config(algorithm=name, block_length=None)
    assert [str(own.message) for own in recwarn] == []


def test_clip_ranges_follow_the_level_unless_given():
    """The default range of a mean over many tokens is narrow; a preset's own range belongs to its own level."""
    assert config(algorithm="unigrpo").for_task("text").epsilon == 0.2
    assert config(algorithm="bgpo").for_task("text").epsilon == 1e-3
    assert config(algorithm="gdpo").for_task("text").epsilon == 0.5
    assert config(algorithm="gdpo", importance_sampling_level="token").for_task("text").epsilon == 0.2
    own = config(algorithm="dipo", importance_sampling_level="sequence").for_task("text")
    assert (own.epsilon, own.epsilon_high) == (1e-3, 1e-3)
    own = config(algorithm="dipo").for_task("t2i")
    assert (own.epsilon, own.epsilon_high) == (0.2, 0.28)


def named_presets(tree: ast.AST) -> list[str]:
    """Presets' names that stand in a comparison or a match of the code."""
    found = []
    for node in ast.walk(tree):
        inside = [node] if isinstance(node, ast.Compare | ast.match_case) else []
        for part in (leaf for own in inside for leaf in ast.walk(own)):
            if isinstance(part, ast.Constant) and part.value in PRESETS:
                names = {leaf.attr for leaf in ast.walk(node) if isinstance(leaf, ast.Attribute)}
                names |= {leaf.id for leaf in ast.walk(node) if isinstance(leaf, ast.Name)}
                if "algorithm" in names or isinstance(node, ast.match_case):
                    found.append(part.value)
    return found


def test_no_code_asks_for_the_name_of_an_algorithm():
    """A method is a combination of parts: code that branches on a preset's name would hide one."""
    files = sorted(Path(unigrpo.__file__).parent.rglob("*.py"))
    assert len(files) > 30
    for file in files:
        if file.name != "presets.py":
            assert named_presets(ast.parse(file.read_text())) == [], file
    assert named_presets(ast.parse("if args.algorithm == 'espo': pass")) == ["espo"]
    assert named_presets(ast.parse("x = self.args.algorithm in ('wd1', 'spg')")) == ["wd1", "spg"]


@pytest.mark.parametrize("name", ["beta", "num_iterations", "loss_type", "epsilon"])
def test_the_default_that_is_listed_is_what_a_run_gets(name):
    args = UniGRPOConfig("unused", report_to="none", use_cpu=True)
    task = args.for_task("text")
    listed = next(line for line in describe([name]) if line.startswith(f"  {name}: "))
    assert re.match(rf"  {name}: {getattr(task, name, getattr(args, name))}(,|$)", listed)


def test_a_part_of_ones_own_lists_its_own_default_under_any_name(tmp_path, monkeypatch):
    (tmp_path / "my_surrogate.py").write_text(
        "def softer(log_ratio, logps, advantages, *, beta=0.5):\n    return advantages\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert any(line.startswith("  beta: 0.5") for line in describe(["my_surrogate:softer"]))

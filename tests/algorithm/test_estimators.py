"""Every likelihood estimator against enumeration: all masks and all orders of a short answer under the tiny model."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

from unigrpo.algorithm.likelihood import score_tokens
from unigrpo.algorithm.loss import PolicyLoss
from unigrpo.algorithm.surrogates import SURROGATES, LogLikelihood
from unigrpo.config.arguments import UniGRPOConfig
from unigrpo.config.build import Algorithm, build_algorithm
from unigrpo.config.presets import PRESETS
from unigrpo.models import MMaDAPolicy
from unigrpo.samplers import LeftToRight, SemiAutoregressive
from unigrpo.toy import exact
from unigrpo.toy.exact import ExactLikelihood
from unigrpo.types import Canvas, Noise, Rollout, TokenSpace, keyed_generator

from ..support.parts import policy_loss
from ..support.records import terms_of
from ..support.tiny import tiny_model, tiny_processor


PROMPT = 2
DRAWS = 600
P_MASK = 0.15


@dataclass(frozen=True)
class Answer:
    """A written answer of n tokens behind ``PROMPT`` others; ``tables`` are by the number of the prompt's mask."""

    rollout: Rollout
    tables: tuple[ExactLikelihood, ...]

    @property
    def n(self) -> int:
        return self.tables[0].n

    @property
    def exact(self) -> ExactLikelihood:
        return self.tables[0]

    def prompt_mixture(self, coefficients: Tensor) -> float:
        """The mean with every prompt token hidden with chance ``P_MASK``."""
        chances = torch.where(exact.all_masks(PROMPT), P_MASK, 1 - P_MASK).prod(dim=1).tolist()
        return sum(chance * own.expect(coefficients) for chance, own in zip(chances, self.tables, strict=True))

    def scores(self, hidden: Tensor) -> Tensor:
        """log p ``[R, S, L]`` under masks ``[R, S, L]``, read from the tables."""
        stacked = torch.stack([own.table for own in self.tables])
        number = exact.mask_numbers(hidden[..., :PROMPT]), exact.mask_numbers(hidden[..., PROMPT:])
        return torch.nn.functional.pad(stacked[number], (PROMPT, 0))


@lru_cache(maxsize=1)
def loaded() -> tuple:
    model = tiny_model()
    return model, MMaDAPolicy.from_model(model, tiny_processor())


def empty_canvas(n: int, rows: int = 1) -> Canvas:
    """``PROMPT`` words and n holes."""
    policy = loaded()[1]
    ids = torch.tensor([[3, 4, *[policy.mask_token_id] * n]] * rows)
    fill = ids == policy.mask_token_id
    return Canvas(
        ids=ids,
        fill_mask=fill,
        attention_mask=torch.ones_like(fill),
        task="text",
        token_space=policy.token_space("text"),
    )


def model_logps(canvas: Canvas, hidden: Tensor, target: Tensor) -> Tensor:
    """Real scores ``[m, L]`` of one written canvas under masks ``[m, L]``."""
    copies = canvas.take(torch.zeros(len(hidden), dtype=torch.int64))
    with torch.no_grad():
        return score_tokens(*loaded(), copies, hidden, target).logps


def tabulate(rollout: Rollout) -> Answer:
    """The tables of a written answer, one for every mask of its prompt."""
    done, canvas = rollout.completion_mask[0], rollout.canvas
    tables = []
    for mask in exact.all_masks(PROMPT):
        also = torch.nn.functional.pad(mask, (0, len(done) - PROMPT))
        tables.append(ExactLikelihood.of(lambda hidden: model_logps(canvas, hidden, hidden & done), done, also))
    return Answer(rollout, tuple(tables))


@lru_cache(maxsize=4)
def written(n: int = 5, seed: int = 2) -> Answer:
    """An answer drawn left to right that fills its canvas."""
    rollout = LeftToRight()(*loaded(), empty_canvas(n), generators=[keyed_generator("answer", seed)])
    assert int(rollout.completion_mask.sum()) == n
    return tabulate(rollout)


@lru_cache(maxsize=64)
def algorithm_of(name: str, **options) -> Algorithm:
    options = {"block_length": 2, "max_completion_length": 8, "steps": 8, **options}
    args = UniGRPOConfig("unused", use_cpu=True, report_to="none", algorithm=name, **options)
    return build_algorithm(args, "text")


def draw(
    algorithm: Algorithm, answer: Answer, count: int, updates: int = 1, seed: int = 0, samples: int | None = None
):
    """Noise of the first of ``updates`` inner updates for ``count`` copies of ``answer``, each a row of its own."""
    samples = algorithm.settings.num_noise_samples if samples is None else samples
    copies = answer.rollout.take(torch.zeros(count, dtype=torch.int64))
    rows = list(range(count))
    return algorithm.noising(copies, num_iterations=updates, num_samples=samples, key=(seed, 0), rows=rows).at(0)


def estimates(algorithm: Algorithm, answer: Answer, count: int, sign: float = 1.0, **drawing) -> Tensor:
    """What the algorithm's own loss makes of ``count`` independent draws of its own noise: log-likelihoods ``[count]``.

    Its surrogate is replaced by A log p, whose loss is minus the likelihood that the ratio is made of.
    """
    return evaluate(algorithm, answer, draw(algorithm, answer, count, **drawing), sign)


def evaluate(algorithm: Algorithm, answer: Answer, noise: Noise, sign: float = 1.0) -> Tensor:
    """``estimates`` of given noise, one draw a row."""
    count = len(noise.hidden)
    hidden, target, weight = (value[:, 0] for value in (noise.hidden, noise.target, noise.weight.double()))
    logps, samples = answer.scores(hidden), hidden.shape[1]
    loss = replace(algorithm.loss, surrogate=LogLikelihood(), beta=0.0)
    rows = count if algorithm.mixes_draws else count * samples
    terms = terms_of(
        loss,
        *(logps.flatten(0, 1), torch.zeros(count * samples, logps.shape[2], dtype=torch.float64), None),
        torch.full((rows,), sign, dtype=torch.float64),
        target.flatten(0, 1),
        weight.flatten(0, 1),
        torch.full((rows,), float(answer.n), dtype=torch.float64),
        tokens_per_row=float(answer.n),
    )
    values = -sign * terms.losses
    return values if algorithm.mixes_draws else values.view(count, samples).mean(dim=1)


def compare(name: str, values: Tensor, expected: float) -> tuple[float, float]:
    """The mean and its standard error, after a printed line; the mean must lie within 4 of them of ``expected``."""
    mean, error = float(values.mean()), float(values.std()) / math.sqrt(len(values))
    z = 0.0 if error < 1e-7 else (mean - expected) / error
    print(f"estimator {name}: exact {expected:.4f}, mean {mean:.4f}, z = {z:.1f} SE over {len(values)} draws")
    assert abs(z) < 4
    assert abs(mean - expected) < max(4 * error, 1e-5)
    return mean, error


def test_two_forms_of_the_lower_bound_agree():
    for n in (1, 3, 5):
        own = written(n).exact
        assert own.elbo() == pytest.approx(own.elbo_over_orders(), abs=1e-6)
    one = written(1).exact
    assert one.elbo() == pytest.approx(one.log_likelihood()) == pytest.approx(one.one_step())


def test_the_tiny_model_reads_its_context():
    """Otherwise every estimator would be right."""
    own = written().exact
    quantities = [own.elbo(), own.log_likelihood(), own.left_to_right(), own.one_step(), own.expect(exact.coupled(5))]
    for a, b in itertools.combinations(quantities, 2):
        assert abs(a - b) > 0.5
    assert float(own.orders().std()) > 0.5


def steep(answer: Answer) -> Answer:
    """The same answer under a made-up model for which the number of hidden tokens and their place decide everything."""
    masks = exact.all_masks(answer.n)
    one = -(masks.sum(dim=1, keepdim=True) ** 2) * (1 + torch.arange(answer.n) / answer.n) * masks
    tables = (ExactLikelihood((number + 1) * one.double()) for number in range(len(answer.tables)))
    return Answer(answer.rollout, tuple(tables))


def masked_mean(n: int, chances: list[float]) -> Tensor:
    """l hidden tokens with chance ``chances[l]``, and their mean."""
    return sum(chance * exact.of_size(n, size, 1 / size) for size, chance in enumerate(chances) if size)


def timestep_counts(n: int, total: int = 1000) -> list[float]:
    """round(n t / T), at least one, for t ~ U{1..T}."""
    counts = [min(max(round(n * t / total), 1), n) for t in range(1, total + 1)]
    return [counts.count(size) / total for size in range(n + 1)]


def ratio_counts(n: int, lowest: float, highest: float) -> list[float]:
    """l = round(r n), at least 1, for r ~ U(lowest, highest)."""
    chances = [0.0] * (n + 1)
    for size in range(n + 1):
        inside = min((size + 0.5) / n, highest) - max((size - 0.5) / n, lowest)
        chances[max(size, 1)] += max(inside, 0.0) / (highest - lowest)
    return chances


def one_step_behind_masks(answer: Answer) -> float:
    return answer.prompt_mixture(exact.fixed_mask(torch.ones(answer.n, dtype=torch.bool)))


def ramp(n: int, ratio: float) -> Tensor:
    """MaskGRPO's chances; the sum over hidden tokens is divided by all tokens there."""
    return exact.independent([1 - min(1.0, 2 * (1 - ratio) * (1 - j / (n - 1))) for j in range(n)], 1 / n)


PRESET_MEANS = {
    "unigrpo": lambda own: own.exact.expect(masked_mean(own.n, timestep_counts(own.n))),
    "diffu_grpo": lambda own: one_step_behind_masks(own) / own.n,
    "coupled_grpo": lambda own: own.exact.expect(exact.coupled(own.n)) / own.n,
    "random_masking": lambda own: own.exact.expect(masked_mean(own.n, ratio_counts(own.n, 0.1, 0.9))),
    "trace_rl": lambda own: own.exact.one_step() / own.n,
    "wd1": one_step_behind_masks,
    "spg": lambda own: own.prompt_mixture(exact.blocks(own.n, 2, P_MASK)) / own.n,
    "espo": lambda own: own.exact.elbo() / own.n,
    "gdpo": lambda own: own.exact.expect(exact.quadrature(own.n, 2)) / own.n,
    "mask_grpo": lambda own: own.exact.expect(ramp(own.n, 0.8)),
    "just_grpo": lambda own: own.exact.left_to_right() / own.n,
    "bgpo": lambda own: own.exact.elbo() / own.n,
    "dipo": lambda own: own.exact.left_to_right() / own.n,
}
"""What the definition of each preset's likelihood says its mean is, for an answer of five tokens that was written from the
left. TraceRL merges up to eight steps, which are all of them."""

UNBIASED = ("espo", "bgpo")


def test_every_preset_has_a_definition():
    assert set(PRESET_MEANS) == set(PRESETS)


@pytest.mark.parametrize("name", PRESET_MEANS)
def test_preset_estimates_what_it_defines(name):
    """The preset's noise, weights, mixing, level and divisor together. All but two differ from the lower bound."""
    answer, algorithm = written(), algorithm_of(name)
    updates = 2 if name == "mask_grpo" else 1
    # Two quadrature nodes and one differ little beside the spread of either.
    count = {"just_grpo": 50, "dipo": 50, "trace_rl": 50, "gdpo": 6 * DRAWS}.get(name, DRAWS)
    noise = draw(algorithm, answer, count, updates=updates)
    for kind, own in (("", answer), (", steep", steep(answer))):
        compare(name + kind, evaluate(algorithm, own, noise), PRESET_MEANS[name](own))
    bound = answer.exact.elbo() / (1 if name == "wd1" else answer.n)
    if name in UNBIASED:
        assert PRESET_MEANS[name](answer) == bound
    else:
        assert abs(PRESET_MEANS[name](answer) - bound) > 4e-3


BOUND = {"importance_sampling_level": "sequence_sum", "surrogate": "log_likelihood"}


def mean_of(coefficients: Tensor):
    return lambda own: own.expect(coefficients)


ELBO, LEFT_TO_RIGHT = ExactLikelihood.elbo, ExactLikelihood.left_to_right
WHOLE, NARROW = {"mask_ratio_min": 0.0, "mask_ratio_max": 1.0}, {"mask_ratio_min": 0.1, "mask_ratio_max": 0.9}
SUMS = {
    "random independent": ({"draw_coupling": "independent"}, 5, ELBO),
    "random stratified": ({"draw_coupling": "stratified"}, 5, ELBO),
    "random antithetic": ({"draw_coupling": "antithetic"}, 5, ELBO),
    "random one draw": ({"draw_coupling": "stratified", "num_noise_samples": 1}, 5, ELBO),
    "antithetic one pair": ({"num_noise_samples": 2}, 5, ELBO),
    "antithetic, one token": ({"num_noise_samples": 2}, 1, ELBO),
    "quadrature 3 nodes": ({"noising": "quadrature", "num_noise_samples": 3}, 5, mean_of(exact.quadrature(5, 3))),
    "autoregressive": ({"noising": "autoregressive"}, 5, LEFT_TO_RIGHT),
    "autoregressive 2 of 5": ({"noising": "autoregressive", "num_noise_samples": 2}, 5, LEFT_TO_RIGHT),
    "trajectory": ({"noising": "trajectory"}, 5, LEFT_TO_RIGHT),
    "quadrature 1 node": ({"noising": "quadrature", "num_noise_samples": 1}, 5, mean_of(exact.quadrature(5, 1))),
    "full": ({"noising": "full"}, 5, ExactLikelihood.one_step),
    "coupled, two pairs": ({"noising": "coupled", "num_noise_samples": 2}, 5, mean_of(exact.coupled(5))),
    "coupled, whole range": (
        {"noising": "coupled", **WHOLE, "num_noise_samples": 1},
        4,
        mean_of(exact.coupled(4, 0.0, 1.0)),
    ),
    "random of a narrow range": (
        {"draw_coupling": "independent", **NARROW},
        5,
        mean_of(5 * masked_mean(5, ratio_counts(5, 0.1, 0.9))),
    ),
    "block": ({"noising": "block", "num_noise_samples": 2}, 5, mean_of(exact.blocks(5, 2))),
}
"""Settings, tokens of the answer, and the mean of the summed likelihood."""


@pytest.mark.parametrize("name", SUMS)
def test_summed_estimate_has_its_defined_mean(name):
    """Unbiased for the lower bound or the exact likelihood of the order; the others have exactly their own bias."""
    options, n, law = SUMS[name]
    answer, algorithm = written(n), algorithm_of("espo", **{**BOUND, **options})
    count = 20 if name in ("trajectory", "autoregressive", "full") else DRAWS
    # No number of draws stands for all stages.
    samples = 0 if name in ("trajectory", "autoregressive") else None
    noise = draw(algorithm, answer, count, samples=samples)
    for kind, own in (("", answer), (", steep", steep(answer))):
        compare(name + kind, evaluate(algorithm, own, noise), law(own.exact))
    assert (abs(law(answer.exact) - answer.exact.elbo()) > 0.05) == (law is not ELBO)


def test_gdpo_errs_only_where_likelihoods_depend_on_what_is_hidden():
    """Its weights sum to one: log-probabilities that no mask changes are summed exactly, others with the rule's error."""
    five = written(5).exact
    own = torch.tensor([-0.5, -1.0, -2.0, -0.1, -3.0], dtype=torch.float64)
    flat = ExactLikelihood(exact.all_masks(5) * own)
    for nodes in (1, 2, 3):
        assert flat.expect(exact.quadrature(5, nodes)) == pytest.approx(float(own.sum()), abs=1e-9)
        assert abs(five.expect(exact.quadrature(5, nodes)) - five.elbo()) > 0.05


def rollouts(sampler, n: int, seeds: range) -> list[Rollout]:
    """Real rollouts without a stop token before their last place, so that nothing is padded."""
    done = [sampler(*loaded(), empty_canvas(n), generators=[keyed_generator("rollout", seed)]) for seed in seeds]
    return [own for own in done if int(own.completion_mask.sum()) == n]


@pytest.mark.parametrize("steps", [5, 3])
def test_trajectory_is_the_likelihood_of_the_order_of_writing(steps):
    """Confidence chooses the order; the sum over stages is what the sampler recorded, token by token."""
    sampler = SemiAutoregressive(steps=steps, block_length=3)
    found = rollouts(sampler, 5, range(12))
    assert len(found) >= 8
    orders = set()
    for rollout in found:
        answer = tabulate(rollout)
        noise = draw(algorithm_of("dipo"), answer, 1)
        scored = torch.where(noise.target[:, 0], answer.scores(noise.hidden[:, 0]), 0.0).sum(dim=1)
        torch.testing.assert_close(scored.float(), rollout.sampling_logps, atol=1e-4, rtol=1e-4)
        if steps == 5:
            order = tuple(rollout.step_map[0, PROMPT:].argsort().tolist())
            orders.add(order)
            assert answer.exact.along(order) == pytest.approx(float(rollout.sampling_logps.sum()), abs=1e-3)
            total = 5 * float(estimates(algorithm_of("dipo"), answer, 1))
            assert total == pytest.approx(answer.exact.along(order), abs=1e-4)
            traced = float(estimates(algorithm_of("trace_rl", trajectory_shrink=1), answer, 1))
            assert traced == pytest.approx(answer.exact.along(order) / 5, abs=1e-4)
    assert steps != 5 or len(orders) > 3


def test_autoregressive_is_what_the_left_to_right_sampler_recorded():
    for rollout in rollouts(LeftToRight(temperature=1.0), 5, range(4)):
        answer = tabulate(rollout)
        total = 5 * float(estimates(algorithm_of("just_grpo"), answer, 1))
        assert total == pytest.approx(float(rollout.sampling_logps.sum()), abs=1e-3)
        assert total == pytest.approx(answer.exact.left_to_right(), abs=1e-4)


def random_tables(count: int, n: int, seed: int = 0) -> list[ExactLikelihood]:
    """Any table of log-probabilities; no model is needed for the inequalities."""
    generator = torch.Generator().manual_seed(seed)
    drawn = -4 * torch.rand(count, 2**n, n, dtype=torch.float64, generator=generator) ** 2
    return [ExactLikelihood(torch.where(exact.all_masks(n), own, 0.0)) for own in drawn]


def test_lower_bound_likelihood_upper_bound():
    """ELBO <= log p <= upper bound for beta >= n; for any beta >= 1 it lies above the ELBO, and grows with beta."""
    tables = [written(n).exact for n in (1, 2, 3, 5)] + random_tables(40, 4)
    for own in tables:
        betas = (1.0, 1.5, 2.0, float(own.n), own.n + 3.0, 50.0)
        bounds = [own.upper_bound(beta) for beta in sorted(betas)]
        assert own.elbo() <= own.log_likelihood() + 1e-9
        assert own.elbo() <= bounds[0] + 1e-9
        for low, high in itertools.pairwise(bounds):
            assert low <= high + 1e-9
        for beta in (float(own.n), own.n + 3.0, 50.0):
            assert own.log_likelihood() <= own.upper_bound(beta) + 1e-9
    own = written().exact
    assert own.elbo() < own.log_likelihood() - 1 < own.upper_bound(5.0) - 2


def test_log_of_a_mean_over_few_draws_is_too_low_and_draws_cure_it():
    """Antithetic pairs, which score every token in each pair: the sign of the bias is Jensen's."""
    answer, biases = written(), []
    options = {"draw_coupling": "antithetic", "reduce": "signed", "importance_sampling_level": "sequence_sum"}
    options |= {"surrogate": "log_likelihood", "bound_exponent": 1.5}
    for samples, count in ((2, 600), (8, 300), (64, 60)):
        algorithm = algorithm_of("espo", **options, num_noise_samples=samples)
        values = estimates(algorithm, answer, count, sign=-1.0)
        error = float(values.std()) / math.sqrt(count)
        biases.append((float(values.mean()) - answer.exact.upper_bound(1.5), error))
        print(f"estimator upper bound, {samples} draws: bias {biases[-1][0]:.3f} +- {error:.3f}")
    assert biases[0][0] < -6 * biases[0][1]
    assert biases[0][0] < biases[1][0] - 2 * biases[1][1] < biases[2][0]
    assert abs(biases[2][0]) < 0.15 * abs(biases[0][0])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_spg_by_hand(sign):
    """Draw by draw: the lower bound for good answers, half of it and half the upper bound for bad ones."""
    answer, algorithm = written(), algorithm_of("spg")
    noise = draw(algorithm, answer, 30)
    logps = answer.scores(noise.hidden[:, 0])
    values = estimates(algorithm, answer, 30, sign=sign)
    for row in range(30):
        lower, sums = 0.0, {}
        for s in range(2):
            scored = noise.target[row, 0, s].nonzero().flatten().tolist()
            for token in scored:
                logp = float(logps[row, s, token])
                lower += logp / len(scored) / 2
                sums[token] = sums.get(token, 0.0) + 0.5 * (5 / len(scored)) * math.exp(1.5 * logp)
        upper = sum(math.log(total) for total in sums.values()) / 1.5 / 5
        expected = lower if sign > 0 else 0.5 * lower + 0.5 * upper
        assert float(values[row]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_pair_scores_each_token_once(n):
    answer = written(n)
    pairs = [(algorithm_of("coupled_grpo", num_noise_samples=3), 3, 1), (algorithm_of("espo"), 2, 0)]
    for algorithm, count, first in pairs:
        noise = draw(algorithm, answer, 40)
        target, done = noise.target[:, 0], answer.rollout.completion_mask
        assert target.shape[1] == first + 2 * count
        if first:
            assert bool((target[:, 0] == done).all())
        for pair in range(count):
            own = target[:, first + 2 * pair : first + 2 * pair + 2]
            assert bool((own.sum(dim=1) == done.long()).all())
        sizes = target[:, first:].sum(dim=-1)
        assert set(sizes.flatten().tolist()) <= set(range(1 if first else 0, n + 1 - (1 if first else 0)))


def test_noise_follows_its_seed_and_leaves_the_global_generators_alone():
    answer = written()
    # Python's own generator is left out: the shape checks of the tests draw from it.
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for name in PRESETS:
        algorithm = algorithm_of(name)
        first, again, other = (draw(algorithm, answer, 20, updates=2, seed=seed) for seed in (0, 0, 1))
        for field in ("hidden", "target", "weight", "mask_ratio"):
            assert torch.equal(getattr(first, field), getattr(again, field))
        fixed = ("trace_rl", "just_grpo", "dipo")
        assert torch.equal(first.hidden, other.hidden) == (name in fixed)
        assert torch.equal(*(estimates(algorithm, answer, 20) for _ in range(2)))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def bent(level: str, reduce: str, surrogate: str, loss_type: str, index: int) -> PolicyLoss:
    """A loss with every option that bends it: clipping, a cut ratio and a KL, by turns of each kind."""
    return policy_loss(
        epsilon=0.2,
        epsilon_high=0.3,
        beta=0.4,
        kl_estimator=("k1", "k2", "k3")[index % 3],
        kl_level=("ratio", "sum")[index % 2],
        importance_sampling_level=level,
        length_normalization=("masked", "completion")[index % 2],
        surrogate=surrogate,
        delta=(None, 1.6)[index % 2],
        log_ratio_clip=(None, 2.0)[index % 2],
        reduce=reduce,
        bound_exponent=1.7,
        bound_mixture=0.6,
        loss_type=loss_type,
        max_length=7,
    )


def loss_inputs(reduce: str, seed: int) -> tuple:
    """Two rows of two draws over three tokens: log-probabilities, old, reference, advantages, target, weight, lengths."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=generator)

    logps = (-2 * uniform(4, 3)).requires_grad_()
    old, ref = logps.detach() + 0.9 * (uniform(4, 3) - 0.5), logps.detach() + uniform(4, 3) - 0.5
    target = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 1, 0], [1, 0, 0]]).bool()
    rows = 4 if reduce == "per_draw" else 2
    advantages = torch.tensor([1.3, -0.8, 0.6, -1.1], dtype=torch.float64)[:rows]
    return logps, old, ref, advantages, target, 0.5 + uniform(4, 3), torch.full((rows,), 3.0, dtype=torch.float64)


LEVELS = ("token", "sequence", "sequence_sum")
REDUCES = ("per_draw", "per_token", "signed")
LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo")
"""A loss type goes with a quarter of the other choices, and every two of them come together."""


@pytest.mark.parametrize(
    ("surrogate", "level", "reduce", "index"),
    [
        (surrogate, level, reduce, (s + v + 2 * r) % 4)
        for s, surrogate in enumerate(SURROGATES)
        for v, level in enumerate(LEVELS)
        for r, reduce in enumerate(REDUCES)
    ],
)
def test_gradient_of_the_loss_against_finite_differences(surrogate, level, reduce, index):
    """CISPO's ratio is a constant by definition: its old policy moves along, so that the ratio does not change."""
    loss_type = LOSS_TYPES[index]
    loss = bent(level, reduce, surrogate, loss_type, index)
    logps, old, *rest = loss_inputs(reduce, seed=3 + index)
    shift = 0.15 if index % 2 else 0.35

    def total(values: Tensor) -> Tensor:
        compared = values - shift if surrogate == "cispo" else old
        terms = terms_of(loss, values, compared, *rest, tokens_per_row=2.5)
        kinks = torch.tensor([0.8, 1.3, getattr(loss.surrogate, "delta", None) or 9.0, math.exp(-2), math.exp(2)])
        assert float((terms.ratio[:, None] - kinks).abs().min()) > 1e-4
        return (terms.losses * torch.tensor([1.0, 0.7, -0.4, 1.9])[: len(terms.losses)]).sum()

    assert torch.autograd.gradcheck(total, (logps,), eps=1e-6, atol=1e-7, rtol=1e-5, fast_mode=True)


VOCAB, SIZE = 3, 3


def every_answer() -> Rollout:
    """All ``VOCAB ** SIZE`` answers, one a row, without a prompt."""
    ids = torch.tensor(list(itertools.product(range(VOCAB), repeat=SIZE)))
    full, zeros = torch.ones_like(ids, dtype=torch.bool), torch.zeros(ids.shape)
    space = TokenSpace(start=0, stop=VOCAB)
    canvas = Canvas(ids=ids, fill_mask=full, attention_mask=full, task="text", token_space=space)
    return Rollout(
        canvas=canvas,
        completion_mask=full,
        step_map=torch.arange(SIZE).expand_as(ids),
        sampling_logps=zeros,
        completions=[""] * len(ids),
    )


def table_logps(weights: Tensor, ids: Tensor, hidden: Tensor) -> Tensor:
    """log p ``[m, n]`` under a policy that adds ``weights [n, V + 1, n, V]`` of what it sees; V stands for a hole."""
    seen = ids.masked_fill(hidden, VOCAB)
    logits = sum(weights[place, seen[:, place]] for place in range(SIZE))
    return logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)


@pytest.mark.smoke
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_summed_over_all_answers_it_is_the_gradient_of_the_expected_reward(surrogate, level):
    """sum_x p(x) A(x) grad log p(x) = grad E[r] with just_grpo's exact likelihood, for any baseline; on policy every
    surrogate has this gradient.
    """
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(SIZE, VOCAB + 1, SIZE, VOCAB, dtype=torch.float64, generator=generator).requires_grad_()
    rewards = torch.rand(VOCAB**SIZE, dtype=torch.float64, generator=generator)
    rollout, algorithm = every_answer(), algorithm_of("just_grpo")
    noise = algorithm.noising(rollout, num_iterations=1, num_samples=0, key=(0, 0), rows=list(range(len(rewards))))
    hidden, target, weight = (value[:, 0].flatten(0, 1) for value in (noise.hidden, noise.target, noise.weight))
    logps = table_logps(weights, rollout.canvas.ids.repeat_interleave(SIZE, dim=0), hidden)
    probability = (logps * target).view(-1, SIZE * SIZE).sum(dim=1).exp()
    assert probability.sum().item() == pytest.approx(1.0, abs=1e-12)
    expected = torch.autograd.grad((probability * rewards).sum(), weights, retain_graph=True)[0]
    loss = replace(algorithm.loss, surrogate=SURROGATES[surrogate](), importance_sampling_level=level)
    for baseline in (0.0, 0.4):
        advantages, lengths = rewards - baseline, torch.full((len(rewards),), float(SIZE), dtype=torch.float64)
        terms = terms_of(loss, logps, logps.detach(), None, advantages, target, weight.double(), lengths)
        mean = terms.losses * (1 if level == "sequence_sum" else SIZE)
        found = torch.autograd.grad(-(probability.detach() * mean).sum(), weights, retain_graph=True)[0]
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    assert float(expected.abs().max()) > 1e-3


EQUAL = {
    "independent": {"draw_coupling": "independent"},
    "stratified": {"draw_coupling": "stratified"},
    "antithetic": {"draw_coupling": "antithetic"},
    "quadrature": {"noising": "quadrature"},
    "coupled": {"noising": "coupled"},
    "block": {"noising": "block"},
}
"""Estimates of a sum by ``espo``'s loss; the coupled scheme's fully hidden row, which never changes, is left uncounted."""


def spread(name: str, forwards: int, answer: Answer, count: int) -> tuple[float, float]:
    """Mean and standard deviation of an estimate from ``forwards`` masks."""
    options = {**BOUND, **EQUAL[name], "num_noise_samples": forwards // 2 if name == "coupled" else forwards}
    values = estimates(algorithm_of("espo", **options), answer, count)
    print(f"spread {name}, {forwards} forwards: mean {values.mean():.3f}, sd {values.std():.3f}")
    return float(values.mean()), float(values.std())


def test_spread_at_equal_forwards():
    """Strata never hurt. Where the tokens' log-probabilities are alike, antithetic pairs do: the empty half of the pair
    (nothing hidden, everything hidden) is a forward that says nothing. Quadrature's fixed sizes avoid that.
    """
    sd = {name: spread(name, 4, written(), 300)[1] for name in EQUAL}
    assert sd["stratified"] <= 1.05 * sd["independent"]
    assert sd["antithetic"] > 1.2 * sd["independent"]
    assert sd["quadrature"] < sd["antithetic"]


def test_a_mean_over_hidden_tokens_is_the_lower_bound_per_token():
    """With sizes uniform on 1..n, (1/l) sum is (n/l) sum over n: the same numbers draw by draw."""
    options = {"draw_coupling": "stratified", "mask_ratio_min": 0.0, "mask_ratio_max": 1.0, "num_noise_samples": 4}
    mean = estimates(algorithm_of("random_masking", **options), written(), 50)
    summed = estimates(algorithm_of("espo", draw_coupling="stratified"), written(), 50)
    torch.testing.assert_close(mean, summed, atol=1e-6, rtol=1e-6)

"""Published algorithms as plain data: the value each one gives to the configuration keys a user left unset.

A preset chooses the parts of a method: noising and weighting of its draws, how draws are mixed (``reduce``), the level of
the ratio, the surrogate, the advantage, the KL and its reference, and how tokens are averaged. Every key can be set
over it; what a preset does not say is the part's own default. Adding a method is adding a function and its line in
``METHODS``; one of your own is a function (or a mapping) named ``pkg.mod:attr``. "Code" is the authors' public code; where it and
the paper differ, the docstring says which one is followed. Learning rates and numbers of generations are the user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import check_choice
from ..parts import Key, import_part
from ..types import CANVAS_TASKS, KINDS


def unigrpo() -> dict[str, Any]:
    """MMaDA's UniGRPO, arXiv 2505.15809, section 3.3, Eq. 5 and Algorithm 1 (not arXiv 2603.23500, which shares the name).

    -1/G sum_i 1/|M_i| sum_{t in M_i} min(r A, clip(r) A) + beta KL(policy || initial), masks M_i of ratios spaced over the
    noise range, one an inner update; A = (r - mean) / std. The paper leaves epsilon, beta, the KL estimator and the number
    of inner updates open; these are ours. Its text divides by |o_i|: ``length_normalization: completion``.
    """
    return {"num_iterations": 4, "beta": 0.01}


def diffu_grpo() -> dict[str, Any]:
    """diffu-GRPO of d1, arXiv 2504.12216.

    The answer wholly hidden, so that each token's log p is a one-step guess; 15 % of the prompt hidden too, anew for each
    update. Token ratios, k3, A = r - mean, and the mean over all tokens, as in the code. Authors: G 6, learning rate 3e-6,
    LoRA 128/64.
    """
    return {
        "noising": "full",
        "p_mask_prompt": 0.15,
        "num_iterations": 12,
        "epsilon": 0.5,
        "beta": 0.04,
        "scale_rewards": "none",
        "loss_type": "dapo",
    }


def coupled_grpo() -> dict[str, Any]:
    """coupled-GRPO of DiffuCoder, arXiv 2506.20639.

    log p(token) = 1/2 [log p(token | nothing else) + w log p(token | what the pair shows)]: a fully hidden row and a
    complementary pair with t ~ U(0.2, 0.8), w one over the chance to be hidden; then token ratios. Leave-one-out
    advantages as released, although the paper's own ablation prefers the plain mean. Authors: G 10, learning rate 1e-6.
    """
    return {
        "noising": "coupled",
        "weighting": "inverse_probability",
        "reduce": "per_token",
        "mask_ratio_min": 0.2,
        "mask_ratio_max": 0.8,
        "num_iterations": 2,
        "epsilon": 0.5,
        "beta": 0.01,
        "advantage_estimator": "leave_one_out",
        "scale_rewards": "none",
        "length_normalization": "completion",
    }


def random_masking() -> dict[str, Any]:
    """Random masking, the baseline in the code of TraceRL (dLLM-RL, arXiv 2509.06949).

    Several rows of ratio U(0.1, 0.9), each with its own token mean; KL to the old policy; A = (r - mean) / population std.
    Clipping and KL act from the second optimizer step on a rollout on: the code takes many steps a rollout
    (``steps_per_generation``), one pass over each answer.
    The code takes 35 rows for LLaDA and 2 for MMaDA, here 2. Its older version sums the KL over tokens, its newer one takes
    the mean and cuts log-ratios at 10: this follows the newer.
    """
    return {
        "noising": "random",
        "draw_coupling": "independent",
        "mask_ratio_min": 0.1,
        "mask_ratio_max": 0.9,
        "num_noise_samples": 2,
        "beta": 0.01,
        "kl_reference": "old",
        "log_ratio_clip": 10.0,
        "scale_rewards": "group_population",
    }


def trace_rl() -> dict[str, Any]:
    """TraceRL, arXiv 2509.06949, without its optional value model.

    One row for every ``trajectory_shrink`` steps of the rollout: later tokens hidden, those of the step scored. Clipping and
    KL act from the second optimizer step on a rollout on, as in ``random_masking``. The code
    weighs rows alike, so that answers of many steps weigh more; here every answer weighs the same.
    """
    return {
        "noising": "trajectory",
        "trajectory_shrink": 8,
        "num_noise_samples": 0,
        "beta": 0.01,
        "kl_reference": "old",
        "log_ratio_clip": 10.0,
        "scale_rewards": "group_population",
    }


def wd1() -> dict[str, Any]:
    """wd1, arXiv 2507.08838.

    -sum_i (w+_i - w-_i) sum_t log p(token), w+- = softmax over the group of +-A / psi, psi = 1; no ratio, no reference.
    Sums over the answer, as coded, on d1's masks. Authors: learning rate 3e-6, 12 updates.
    """
    return {
        "noising": "full",
        "p_mask_prompt": 0.15,
        "num_iterations": 12,
        "importance_sampling_level": "sequence_sum",
        "surrogate": "log_likelihood",
        "advantage_estimator": "softmax",
        "scale_rewards": "none",
    }


def spg() -> dict[str, Any]:
    """SPG, arXiv 2510.09541, its mixture variant.

    -A log-likelihood, without a ratio, where the likelihood of a good answer is a lower bound and that of a bad one half
    the lower and half the upper bound (1/b) sum_t log E[w p^b], b = 1.5 (the authors use 1.0 for Sudoku); block-wise masks.
    As coded, all hidden tokens are scored and not the block's alone, and w is one over their share of the answer; where no
    draw meets a token the code rescales the upper bound by n over the tokens met, this does not. Authors: lr 3e-6.
    """
    return {
        "noising": "block",
        "p_mask_prompt": 0.15,
        "weighting": "inverse_probability",
        "reduce": "signed",
        "bound_mixture": 0.5,
        "num_iterations": 4,
        "num_noise_samples": 2,
        "surrogate": "log_likelihood",
        "scale_rewards": "none",
        "loss_type": "dapo",
        "length_normalization": "completion",
    }


def espo() -> dict[str, Any]:
    """ESPO, arXiv 2512.03759.

    One ratio an answer, exp((ELBO - ELBO_old) / n), from complementary masks with weights (n + 1) / l; k2 made of the
    bounds themselves and divided by n, as coded; leave-one-out advantages. The code divides by the canvas length and scores
    the tail; this uses the answer's tokens. beta goes by task there: 1e-3 (GSM8K), 3e-3 (Countdown), 1e-2 (Sudoku, code).
    Its Countdown recipe has epsilon 0, under which no update survives; this has 0.2. Authors: lr 3e-6.
    """
    return {
        "noising": "random",
        "draw_coupling": "antithetic",
        "weighting": "inverse_probability",
        "reduce": "per_token",
        "num_iterations": 8,
        "num_noise_samples": 4,
        "importance_sampling_level": "sequence",
        "epsilon": 0.2,
        "beta": 3e-3,
        "kl_estimator": "k2",
        "kl_level": "sum",
        "advantage_estimator": "leave_one_out",
        "scale_rewards": "none",
        "length_normalization": "completion",
        "t2i": {"kl_estimator": "k2"},
    }


def gdpo() -> dict[str, Any]:
    """GDPO for diffusion language models, arXiv 2510.08554 (not the GDPO behind TRL's ``normalize_then_sum``).

    One ratio an answer, exp((ELBO - ELBO_old) / n), the bound by Gauss-Legendre quadrature in the mask ratio, two nodes.
    A rounded number l of tokens is hidden, as coded; the weight is n / l where the code keeps 1 / t. Advantages without a
    standard deviation, as in the paper (a port divides by it). Authors: lr 3e-7, 12 updates.
    """
    return {
        "noising": "quadrature",
        "weighting": "inverse_probability",
        "reduce": "per_token",
        "num_iterations": 12,
        "num_noise_samples": 2,
        "importance_sampling_level": "sequence",
        "epsilon": 0.5,
        "scale_rewards": "none",
        "length_normalization": "completion",
    }


def mask_grpo() -> dict[str, Any]:
    """MaskGRPO, arXiv 2510.02880 (not the Mask-GRPO for Show-o).

    Ratios min(g + (1 - g) k / K, 0.999), g = 0.6; text hides late tokens more often, images any. In the code the loss mask
    of all updates is applied to each; here a token is scored where it is hidden, as in the paper. The likelihood of images
    is guided as in the code. Authors: G 6 to 9, lr 3e-6, 6 (images) or 12 (text) updates.
    """
    return {
        "noising": "ramp",
        "timesteps": "truncated",
        "mask_ratio_min": 0.6,
        "num_iterations": 6,
        "beta": 0.01,
        "loss_type": "dapo",
        "t2i": {"noising": "structured", "kl_estimator": "k3", "guidance": "both"},
    }


def just_grpo() -> dict[str, Any]:
    """JustGRPO, arXiv 2601.15165, a method for text.

    Answers written and scored strictly left to right: the exact likelihood, at one forward a token. One update, so r = 1;
    no KL. The code divides by the canvas length, this by the answer's. Authors: G 16, lr 5e-6.
    """
    return {
        "noising": "autoregressive",
        "reduce": "per_token",
        "num_noise_samples": 0,
        "text": {"sampler": "left_to_right"},
        "mmu": {"sampler": "left_to_right"},
    }


def bgpo() -> dict[str, Any]:
    """BGPO, arXiv 2510.11683.

    A lower bound of the sequence objective that is additive over draws, so that memory does not grow with them:
    A (1 + d) for A >= 0, A exp(d) else, d = (ELBO_s - ELBO_s,old) / n of one draw. Up to 16 draws there, 4 here. A public port
    clips as PPO besides; this does not, so take one update a rollout, the default.
    """
    return {
        "noising": "random",
        "weighting": "inverse_probability",
        "num_noise_samples": 4,
        "importance_sampling_level": "sequence",
        "surrogate": "linear_bound",
        "length_normalization": "completion",
    }


def dipo() -> dict[str, Any]:
    """DiPO of DiRL, arXiv 2512.22234.

    Exact steps of the rollout, token ratios, asymmetric clipping 0.2 / 0.28, k3 to the initial model. Its filter of equal
    groups is ``refill_rounds``.
    """
    return {
        "noising": "trajectory",
        "reduce": "per_token",
        "num_noise_samples": 0,
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.1,
    }


METHODS = (
    unigrpo,
    diffu_grpo,
    coupled_grpo,
    random_masking,
    trace_rl,
    wd1,
    spg,
    espo,
    gdpo,
    mask_grpo,
    just_grpo,
    bgpo,
    dipo,
)

PRESETS: dict[str, dict[str, Any]] = {method.__name__: method() for method in METHODS}
"""Values by method; a nested dictionary holds those of one task."""

TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    "text": {},
    "mmu": {},
    # Images need a sampler of their own, and their likeliest codes are no picture: held-out images are drawn, not
    # greedy. k3 over 8192 codes has heavy tails where the exact sum costs one pass.
    "t2i": {"sampler": "emerge", "eval_temperature": 1.0, "kl_estimator": "exact"},
}
TASK_DEFAULTS |= {span: TASK_DEFAULTS[kind] for span, kind in KINDS.items()}
"""What a task uses for keys that the user leaves unset. They win over the algorithm's own, except those that a preset
gives to the task by name."""

SEQUENCE_EPSILON = 1e-3
"""Clip range of a sequence's mean ratio: it moves hundreds of times less than one token's."""


def preset_of(algorithm: Any, keys: Mapping[str, Key]) -> dict[str, Any]:
    """The values of a name in ``PRESETS``, of ``pkg.mod:attr``, or of a mapping ``{name: ..., key: value}`` over one of them.

    Raises:
        ValueError: an unknown name, or a key that no algorithm has.
    """
    own = dict(algorithm) if isinstance(algorithm, Mapping) else {"name": algorithm}
    name = own.pop("name", "unigrpo")
    if isinstance(name, str) and ":" in name:
        try:
            found = import_part(name)
        except (ImportError, ValueError) as error:
            raise ValueError(f"algorithm={name!r} cannot be imported: {error}") from error
        found = found()
        if not isinstance(found, Mapping):
            raise ValueError(
                f"algorithm={name!r} is a {type(found).__name__}; it must be a function that gives a mapping"
            )
    else:
        check_choice("algorithm", name, tuple(PRESETS))
        found = PRESETS[name]
    return _read({**found, **own}, keys, f"algorithm {name!r}: ")


def _read(values: Mapping[str, Any], keys: Mapping[str, Key], where: str) -> dict[str, Any]:
    read = {}
    for key, value in values.items():
        if key in CANVAS_TASKS and isinstance(value, Mapping):
            read[key] = _read(value, keys, f"{where}{key}.")
        else:
            check_choice(f"{where}key", key, tuple(keys))
            read[key] = keys[key].read(value, where)
    return read

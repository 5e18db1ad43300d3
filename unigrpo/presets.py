"""Published algorithms as plain data: the value each one gives to the configuration keys a user left unset.

A preset chooses the parts of a method: noising and weighting of its draws, how draws are mixed (``reduce``), the level of
the ratio, the surrogate, the advantage, the KL and its reference, and how tokens are averaged. Every key can be set
over it. Adding a method is adding an entry. "Code" is the authors' public code; where it and the paper differ, the
entry says which one it follows. Learning rates and numbers of generations are the user's; a comment names the authors'.
"""

from __future__ import annotations

from typing import Any


BASE: dict[str, Any] = {
    "noising": "structured",
    "timesteps": "stratified",
    "weighting": "uniform",
    "reduce": "per_draw",
    "num_iterations": 1,
    "num_noise_samples": 1,
    "p_mask_prompt": 0.0,
    "draw_coupling": "stratified",
    "trajectory_shrink": 1,
    "bound_exponent": 1.5,
    "bound_mixture": 1.0,
    "importance_sampling_level": "token",
    "surrogate": "ppo",
    "beta": 0.0,
    "kl_estimator": "k3",
    "kl_reference": "initial",
    "kl_level": "ratio",
    "advantage_estimator": "group_mean",
    "advantage_temperature": 1.0,
    "scale_rewards": "group",
    "loss_type": "grpo",
    "length_normalization": "masked",
}
"""What a preset does not say."""

PRESETS: dict[str, dict[str, Any]] = {
    # MMaDA's UniGRPO, arXiv 2505.15809, section 3.3, Eq. 5 and Algorithm 1 (not arXiv 2603.23500, which shares the
    # name). The paper leaves epsilon, beta, the KL estimator and the number of inner updates open; these are ours.
    "unigrpo": {"num_iterations": 4, "beta": 0.01},
    # diffu-GRPO of d1, arXiv 2504.12216, Eq. 3-5: the answer wholly hidden, 15 % of the prompt too, a fresh prompt mask
    # for each of 12 updates. Advantages without a standard deviation, the mean over all tokens, as in the code.
    # Authors: G 6, learning rate 3e-6 with LoRA 128/64.
    "diffu_grpo": {
        "noising": "full",
        "p_mask_prompt": 0.15,
        "num_iterations": 12,
        "epsilon": 0.5,
        "beta": 0.04,
        "scale_rewards": "none",
        "loss_type": "dapo",
    },
    # coupled-GRPO of DiffuCoder, arXiv 2506.20639, section 4.2: a fully hidden row and a complementary pair, mixed per
    # token. Leave-one-out advantages as released, although the paper's own ablation prefers the plain mean.
    # Authors: G 10, learning rate 1e-6.
    "coupled_grpo": {
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
    },
    # Random masking, the baseline of TraceRL (dLLM-RL, arXiv 2509.06949), as coded: several rows of ratio U(.1, .9),
    # each with its own mean, KL to the old policy. The code takes 35 rows for LLaDA and 2 for MMaDA; here 2. Its newer
    # version clips log-ratios at 10 and takes the KL as a mean over tokens; this follows it.
    "random_masking": {
        "noising": "random",
        "draw_coupling": "independent",
        "mask_ratio_min": 0.1,
        "mask_ratio_max": 0.9,
        "num_noise_samples": 2,
        "beta": 0.01,
        "kl_reference": "old",
        "log_ratio_clip": 10.0,
        "scale_rewards": "group_population",
        "t2i": {"kl_estimator": "k3"},
    },
    # TraceRL, arXiv 2509.06949, Eq. 6, without the optional value model: one row for every ``trajectory_shrink`` steps of
    # the rollout. The code weighs rows alike, so answers of many steps weigh more; here every answer weighs the same.
    "trace_rl": {
        "noising": "trajectory",
        "trajectory_shrink": 8,
        "num_noise_samples": 0,
        "beta": 0.01,
        "kl_reference": "old",
        "log_ratio_clip": 10.0,
        "scale_rewards": "group_population",
        "t2i": {"kl_estimator": "k3"},
    },
    # wd1, arXiv 2507.08838, Eq. 8: log-likelihoods weighted by softmax(A / psi) - softmax(-A / psi) over the group, no
    # ratio, no reference. Sums over the answer's tokens, as coded; d1's masks. Authors: learning rate 3e-6.
    "wd1": {
        "noising": "full",
        "p_mask_prompt": 0.15,
        "num_iterations": 12,
        "importance_sampling_level": "sequence_sum",
        "surrogate": "log_likelihood",
        "advantage_estimator": "softmax",
        "scale_rewards": "none",
    },
    # SPG, arXiv 2510.09541, Eq. 7-11, its mixture variant: a lower bound of the likelihood for good answers, half of it
    # and half an upper bound for bad ones. As coded, all hidden tokens are scored, not only the block's, and weights are
    # one over their share of the answer; where a draw misses a token the code rescales the upper bound, this does not.
    # The paper's exponent is 1.5 (1.0 for Sudoku). Authors: learning rate 3e-6.
    "spg": {
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
    },
    # ESPO, arXiv 2512.03759, Eq. 9-12: one ratio for the whole answer, exp of the difference of lower bounds over its
    # length, from complementary masks. As coded the k2 is made of the bounds themselves and then divided by the length.
    # The code divides by the canvas length and scores the tail; this uses the answer's tokens. beta is by task there:
    # 1e-3 (GSM8K), 3e-3 (Countdown), 1e-2 (Sudoku, code). Its Countdown recipe has epsilon 0, which no update survives.
    "espo": {
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
    },
    # GDPO for diffusion language models, arXiv 2510.08554 (not the GDPO behind TRL's ``normalize_then_sum``): the lower
    # bound by quadrature in the mask ratio. Bernoulli masks, for which the rule is exact; the code hides a rounded
    # number and keeps the weight 1 / t. Authors: learning rate 3e-7, 12 updates.
    "gdpo": {
        "noising": "quadrature",
        "weighting": "inverse_probability",
        "reduce": "per_token",
        "num_iterations": 12,
        "num_noise_samples": 2,
        "importance_sampling_level": "sequence",
        "epsilon": 0.5,
        "scale_rewards": "none",
        "length_normalization": "completion",
    },
    # MaskGRPO, arXiv 2510.02880: high, rising mask ratios; text hides late tokens more often, images any. The loss mask
    # of all updates is applied to each one in the code; here a token is scored where it is hidden, as in the paper.
    # Its likelihood of images is guided (``guidance: both``). Authors: G 6 to 9, learning rate 3e-6.
    "mask_grpo": {
        "noising": "ramp",
        "timesteps": "truncated",
        "mask_ratio_min": 0.6,
        "num_iterations": 6,
        "beta": 0.01,
        "loss_type": "dapo",
        "t2i": {"noising": "structured", "kl_estimator": "k3", "guidance": "both"},
    },
    # JustGRPO, arXiv 2601.15165: answers written and scored strictly left to right, one forward a token; one update,
    # so the ratio is 1; no KL. The code divides by the canvas length; this by the answer's. Authors: G 16, 5e-6.
    "just_grpo": {
        "noising": "autoregressive",
        "reduce": "per_token",
        "num_noise_samples": 0,
        "text": {"sampler": "left_to_right"},
        "mmu": {"sampler": "left_to_right"},
    },
    # BGPO, arXiv 2510.11683: a bound of the sequence objective that is additive over draws, so that memory does not grow
    # with them.
    "bgpo": {
        "noising": "random",
        "weighting": "inverse_probability",
        "num_noise_samples": 4,
        "importance_sampling_level": "sequence",
        "surrogate": "linear_bound",
        "length_normalization": "completion",
    },
    # DiPO of DiRL, arXiv 2512.22234: exact steps of the rollout, asymmetric clipping, KL to the initial model. Its filter
    # of equal groups is ``refill_rounds``.
    "dipo": {
        "noising": "trajectory",
        "reduce": "per_token",
        "num_noise_samples": 0,
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.1,
    },
}

_TEXT = {
    "sampler": "semi_autoregressive",
    "steps": 128,
    "guidance_scale": 0.0,
    "guidance": "rollout",
    "eval_temperature": 0.0,
}

TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    "text": _TEXT,
    "mmu": _TEXT,
    # Images need a sampler of their own, and their likeliest codes are no picture: held-out images are drawn, not
    # greedy. k3 over 8192 codes has heavy tails where the exact sum costs one pass.
    "t2i": {
        "sampler": "emerge",
        "steps": 16,
        "guidance_scale": 3.5,
        "guidance": "rollout",
        "eval_temperature": 1.0,
        "kl_estimator": "exact",
    },
}
"""What a task uses for keys that the user leaves unset. They win over the algorithm's own, except those that a preset
gives to the task by name."""

DEFAULT_EPSILON = {"token": 0.2, "sequence": 1e-3, "sequence_sum": 0.2}
"""Clip range by ratio level: a mean over many tokens moves hundreds of times less than one token's ratio."""


NOISING_KEYS = ("timesteps", "mask_ratio_min", "mask_ratio_max", "num_noise_samples", "draw_coupling")
"""Values that belong to a preset's noising: they do not follow when another noising is set."""


def preset_values(algorithm: str, task: str | None = None) -> dict[str, Any]:
    """What ``algorithm`` gives to unset keys, for ``task`` with its defaults; for no task, those of the whole run."""
    own = PRESETS[algorithm]
    values = {**BASE, **{key: value for key, value in own.items() if not isinstance(value, dict)}}
    return values if task is None else {**values, **TASK_DEFAULTS[task], **own.get(task, {})}

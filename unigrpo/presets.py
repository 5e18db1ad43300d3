"""Published algorithms as plain data: the value each one gives to the configuration keys a user left unset."""

from __future__ import annotations

from typing import Any


PRESETS: dict[str, dict[str, Any]] = {
    # MMaDA's UniGRPO, arXiv 2505.15809, section 3.3, Eq. 5 and Algorithm 1 (not arXiv 2603.23500, which shares the
    # name). The paper leaves epsilon, beta, the KL estimator and the number of inner updates open; these are ours.
    "unigrpo": {
        "noising": "structured",
        "timesteps": "stratified",
        "num_iterations": 4,
        "num_noise_samples": 1,
        "importance_sampling_level": "token",
        "beta": 0.01,
        "kl_estimator": "k3",
        "scale_rewards": "group",
        "loss_type": "grpo",
    },
}

_TEXT = {"sampler": "semi_autoregressive", "steps": 128, "guidance_scale": 0.0, "eval_temperature": 0.0}

TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    "text": _TEXT,
    "mmu": _TEXT,
    # Images need a sampler of their own, and their likeliest codes are no picture: held-out images are drawn, not
    # greedy. k3 over 8192 codes has heavy tails where the exact sum costs one pass.
    "t2i": {
        "sampler": "emerge",
        "steps": 16,
        "guidance_scale": 3.5,
        "eval_temperature": 1.0,
        "kl_estimator": "exact",
    },
}
"""What a task uses for keys that the user leaves unset. They win over the algorithm's."""

DEFAULT_EPSILON = {"token": 0.2, "sequence": 1e-3, "sequence_sum": 0.2}
"""Clip range by ratio level: a mean over many tokens moves hundreds of times less than one token's ratio."""

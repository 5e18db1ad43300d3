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

DEFAULT_EPSILON = {"token": 0.2, "sequence": 1e-3}
"""Clip range by ratio level: a mean over many tokens moves hundreds of times less than one token's ratio."""

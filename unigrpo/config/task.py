"""What one task may set for itself, and what its values may be."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.pictures import TRANSFORMS
from ..samplers.semi_autoregressive import KV_CACHES, REMASKING


CHOICES = {
    "advantage_estimator": ("group_mean", "leave_one_out", "batch_mean", "softmax"),
    "draw_coupling": ("independent", "stratified", "antithetic"),
    "guidance": ("rollout", "both", "none"),
    "image_transform": TRANSFORMS,
    "importance_sampling_level": ("token", "sequence", "sequence_sum"),
    "kl_estimator": ("k1", "k2", "k3", "exact"),
    "kv_cache": KV_CACHES,
    "kl_level": ("ratio", "sum"),
    "kl_reference": ("initial", "old"),
    "length_normalization": ("masked", "completion"),
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "mask_schedule": ("cosine", "linear", "pow2", "pow3.5", "sigmoid"),
    "prompt_truncation": ("error", "left", "right"),
    "remask_noise_decay": ("linear", "compound"),
    "reduce": ("per_draw", "per_token", "signed"),
    "remasking": REMASKING,
    "scale_rewards": ("group", "group_population", "batch", "none"),
    "timesteps": ("stratified", "paper_formula", "random", "truncated", "cosine"),
    "weighting": ("uniform", "inverse_probability"),
}

EXACT_DECODING = {"kv_cache": "none", "confidence_threshold": None, "exit_entropy": None}
"""The approximate shortcuts of text decoding, switched off."""

TASK_KEYS = (
    "sampler",
    "steps",
    "block_length",
    "temperature",
    "remasking",
    "kv_cache",
    "confidence_threshold",
    "exit_entropy",
    "guidance_scale",
    "guidance",
    "mask_schedule",
    "remask_temperature",
    "remask_noise_decay",
    "eval_sampler",
    "eval_denoising_steps",
    "eval_temperature",
    "max_prompt_length",
    "prompt_truncation",
    "max_completion_length",
    "image_size",
    "image_transform",
    "noising",
    "timesteps",
    "timestep_start",
    "mask_ratio_min",
    "mask_ratio_max",
    "p_mask_prompt",
    "draw_coupling",
    "trajectory_shrink",
    "num_noise_samples",
    "weighting",
    "reduce",
    "bound_exponent",
    "bound_mixture",
    "importance_sampling_level",
    "surrogate",
    "epsilon",
    "epsilon_high",
    "delta",
    "log_ratio_clip",
    "beta",
    "kl_estimator",
    "kl_reference",
    "kl_level",
    "loss_type",
    "length_normalization",
    "loss_weight",
)
"""What one task may set for itself in ``task_overrides``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """The settings of one task: the run's, with the task's overrides. Field meanings are ``UniGRPOConfig``'s."""

    sampler: str
    steps: int
    block_length: int
    temperature: float
    remasking: str
    kv_cache: str
    confidence_threshold: float | None
    exit_entropy: float | None
    guidance_scale: float
    guidance: str
    mask_schedule: str
    remask_temperature: float
    remask_noise_decay: str
    eval_sampler: str | None
    eval_denoising_steps: int | None
    eval_temperature: float
    max_prompt_length: int | None
    prompt_truncation: str
    max_completion_length: int
    image_size: int | list[int] | None
    image_transform: str
    noising: str
    timesteps: str
    timestep_start: int | None
    mask_ratio_min: float | None
    mask_ratio_max: float | None
    p_mask_prompt: float
    draw_coupling: str
    trajectory_shrink: int
    num_noise_samples: int
    weighting: str
    reduce: str
    bound_exponent: float
    bound_mixture: float
    importance_sampling_level: str
    surrogate: str
    epsilon: float
    epsilon_high: float
    delta: float | None
    log_ratio_clip: float | None
    beta: float
    kl_estimator: str
    kl_reference: str
    kl_level: str
    loss_type: str
    length_normalization: str
    loss_weight: float

    @property
    def likelihood_guidance(self) -> float | None:
        """The guidance scale of the likelihood, None for the conditional model alone."""
        return self.guidance_scale if self.guidance == "both" and self.guidance_scale else None

    @property
    def needs_reference(self) -> bool:
        """Whether a KL to the initial model is taken."""
        return self.beta > 0 and self.kl_reference == "initial"

    @property
    def exact_kl(self) -> bool:
        """Whether whole distributions are compared."""
        return self.needs_reference and self.kl_estimator == "exact"

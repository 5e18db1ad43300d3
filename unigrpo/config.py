"""Every knob of a run. Names follow TRL's ``GRPOConfig`` wherever TRL has the concept."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import TrainingArguments

from .presets import DEFAULT_EPSILON, PRESETS
from .types import TASKS


CHOICES = {
    "importance_sampling_level": ("token", "sequence"),
    "kl_estimator": ("k1", "k2", "k3"),
    "length_normalization": ("masked", "completion"),
    "loss_type": ("grpo",),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "prompt_truncation": ("error", "left"),
    "remasking": ("low_confidence", "random"),
    "scale_rewards": ("group", "batch", "none"),
    "timesteps": ("stratified", "paper_formula", "random"),
}

TASK_KEYS = (
    "sampler",
    "steps",
    "block_length",
    "temperature",
    "remasking",
    "guidance_scale",
    "max_prompt_length",
    "max_completion_length",
    "noising",
    "timesteps",
    "timestep_start",
    "num_noise_samples",
    "importance_sampling_level",
    "epsilon",
    "epsilon_high",
    "beta",
    "kl_estimator",
    "length_normalization",
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
    guidance_scale: float
    max_prompt_length: int | None
    max_completion_length: int
    noising: str
    timesteps: str
    timestep_start: int | None
    num_noise_samples: int
    importance_sampling_level: str
    epsilon: float
    epsilon_high: float
    beta: float
    kl_estimator: str
    length_normalization: str


@dataclass
class UniGRPOConfig(TrainingArguments):
    """Arguments of ``UniGRPOTrainer``: ``transformers.TrainingArguments`` plus the fields below.

    Fields whose default is None and that ``PRESETS`` names take the algorithm's value.

    Args:
        algorithm: a name in ``PRESETS``.
        attn_mask_mode: ``"bool"`` or ``"none"``, written into the model's config; None leaves it alone.
        disable_dropout: all dropout to 0, so that ratios carry no noise.
        num_generations: G, answers a prompt, at least 2.
        num_generations_eval: answers a held-out prompt.
        max_prompt_length: longest prompt in tokens; None = what fits the model beside the answer.
        prompt_truncation: ``"error"`` or ``"left"`` for longer prompts.
        max_completion_length: answer positions on a text canvas.
        shuffle_dataset: new prompt order every epoch.
        steps_per_generation: micro-steps fed by one rollout; default ``gradient_accumulation_steps``, and a multiple.
        generation_batch_size: the same in answers; give one of the two.
        sampler, steps, block_length, temperature, remasking, guidance_scale: see ``samplers``.
        eval_temperature: temperature of held-out generation; 0 = greedy.
        num_iterations: K, inner updates on one rollout, each with its own noise.
        noising, timesteps, timestep_start, num_timesteps, num_noise_samples: see ``noising``.
        importance_sampling_level: ratio a ``"token"`` or a ``"sequence"`` (exp of the mean log-ratio).
        epsilon, epsilon_high: clip range [1 - epsilon, 1 + epsilon_high]; epsilon_high defaults to epsilon.
        beta: weight of the KL to the reference; 0 loads no reference.
        kl_estimator: ``"k1"``, ``"k2"`` or ``"k3"``.
        loss_type: ``"grpo"``, mean over a row's tokens, then over rows.
        length_normalization: a row's tokens are its ``"masked"`` ones or its whole ``"completion"``.
        scale_rewards: divide by the std of the ``"group"``, the ``"batch"``, or not (``"none"``).
        reward_weights: one weight a reward; None = all 1.
        multi_objective_aggregation: ``"sum_then_normalize"`` or ``"normalize_then_sum"``.
        refill_rounds: how often groups of equal rewards are replaced by new prompts, 0 = never.
        sync_ref_model, ref_model_mixup_alpha, ref_model_sync_steps: periodic reference update (full fine-tuning only).
        task_overrides: ``{task: {key: value}}`` with keys from ``TASK_KEYS``.
        log_completions, num_completions_to_print: sampled answers as a table and as parquet files.

    Raises:
        ValueError: a value, or a combination, that cannot train; the message names the cure.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs", "task_overrides"]

    algorithm: str = "unigrpo"
    model_init_kwargs: dict[str, Any] | str | None = None
    attn_mask_mode: str | None = None
    disable_dropout: bool = True
    remove_unused_columns: bool | None = False
    learning_rate: float | None = None
    logging_steps: float = 10

    num_generations: int = 8
    num_generations_eval: int = 1
    max_prompt_length: int | None = None
    prompt_truncation: str = "error"
    max_completion_length: int = 256
    shuffle_dataset: bool = True
    steps_per_generation: int | None = None
    generation_batch_size: int | None = None

    sampler: str = "semi_autoregressive"
    steps: int = 128
    block_length: int = 32
    temperature: float = 1.0
    remasking: str = "low_confidence"
    guidance_scale: float = 0.0
    eval_temperature: float = 0.0

    num_iterations: int | None = None
    noising: str | None = None
    timesteps: str | None = None
    timestep_start: int | None = None
    num_timesteps: int = 1000
    num_noise_samples: int | None = None
    importance_sampling_level: str | None = None
    epsilon: float | None = None
    epsilon_high: float | None = None
    beta: float | None = None
    kl_estimator: str | None = None
    loss_type: str | None = None
    length_normalization: str = "masked"
    scale_rewards: str | bool | None = None
    reward_weights: list[float] | None = None
    multi_objective_aggregation: str = "sum_then_normalize"
    refill_rounds: int = 0

    sync_ref_model: bool = False
    ref_model_mixup_alpha: float = 0.6
    ref_model_sync_steps: int = 512

    task_overrides: dict[str, Any] | str | None = field(default_factory=dict)
    log_completions: bool = False
    num_completions_to_print: int | None = None
    use_vllm: bool = False

    def __post_init__(self) -> None:
        self._check_engine()
        self._apply_preset()
        self._check_values()
        # None reaches the trainer, which knows whether adapters are trained; the parent class wants a number.
        learning_rate, self.learning_rate = self.learning_rate, self.learning_rate or 0.0
        super().__post_init__()
        self.learning_rate = learning_rate
        self._check_batches()
        self._check_overrides()

    def _check_engine(self) -> None:
        if self.use_vllm:
            raise ValueError(
                "use_vllm=True: vLLM decodes autoregressively and cannot roll out a masked-diffusion policy. Leave it "
                "False; rollouts run on the training model. vLLM can serve a judge reward instead"
            )
        if self.bf16 and not self.use_cpu and not torch.cuda.is_available():
            raise ValueError(
                "bf16=True needs a GPU, and none is visible. Set bf16=False, or use_cpu=True to run bf16 on the CPU"
            )
        if self.auto_find_batch_size:
            raise ValueError("auto_find_batch_size=True would change the rollout window; set the batch size yourself")

    def _apply_preset(self) -> None:
        if self.algorithm not in PRESETS:
            near = difflib.get_close_matches(str(self.algorithm), PRESETS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"algorithm={self.algorithm!r} is unknown: {hint}choose one of {sorted(PRESETS)}")
        if isinstance(self.scale_rewards, bool):
            self.scale_rewards = "group" if self.scale_rewards else "none"
        for key, value in PRESETS[self.algorithm].items():
            if getattr(self, key) is None:
                setattr(self, key, value)
        if self.epsilon is None:
            self.epsilon = DEFAULT_EPSILON.get(self.importance_sampling_level)

    def _check_values(self) -> None:
        for key, choices in CHOICES.items():
            check_choice(key, getattr(self, key), choices)
        minimum = {"num_generations": 2, "num_generations_eval": 1, "num_iterations": 1, "num_timesteps": 1}
        for key, least in {**minimum, "ref_model_sync_steps": 1}.items():
            if getattr(self, key) < least:
                raise ValueError(f"{key}={getattr(self, key)} must be at least {least}")
        for key in ("eval_temperature", "refill_rounds"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}={getattr(self, key)} must not be negative")
        if self.attn_mask_mode is not None:
            check_choice("attn_mask_mode", self.attn_mask_mode, ("bool", "none"))
        _check_ranges("", self, self.num_timesteps)
        _check_blocks("", self)
        if self.sync_ref_model and self.beta == 0:
            raise ValueError("sync_ref_model=True with beta=0 updates a reference that is never used; set beta > 0")

    def _check_batches(self) -> None:
        micro = self.per_device_train_batch_size * self.world_size
        if self.steps_per_generation is not None and self.generation_batch_size is not None:
            raise ValueError("give steps_per_generation or generation_batch_size, not both")
        if self.generation_batch_size is not None:
            if self.generation_batch_size % micro:
                raise ValueError(
                    f"generation_batch_size={self.generation_batch_size} must be a multiple of "
                    f"per_device_train_batch_size x processes = {micro}"
                )
            self.steps_per_generation = self.generation_batch_size // micro
        self.steps_per_generation = self.steps_per_generation or self.gradient_accumulation_steps
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation={self.steps_per_generation} must be a multiple of gradient_accumulation_steps="
                f"{self.gradient_accumulation_steps}: an optimizer step would straddle two inner updates"
            )
        self.generation_batch_size = micro * self.steps_per_generation
        if self.generation_batch_size % self.num_generations:
            raise ValueError(
                f"a rollout of {self.generation_batch_size} answers (per_device_train_batch_size="
                f"{self.per_device_train_batch_size} x {self.world_size} processes x steps_per_generation="
                f"{self.steps_per_generation}) is not divisible by num_generations={self.num_generations}; "
                f"make it a multiple"
            )

    def _check_overrides(self) -> None:
        self.task_overrides = self.task_overrides or {}
        for task, values in self.task_overrides.items():
            check_choice("task_overrides key", task, TASKS)
            for key, value in values.items():
                if key not in TASK_KEYS:
                    near = difflib.get_close_matches(key, TASK_KEYS, n=1)
                    hint = f"did you mean {near[0]!r}? " if near else ""
                    raise ValueError(f"task_overrides.{task}.{key} is not allowed: {hint}keys are {list(TASK_KEYS)}")
                if key in CHOICES:
                    check_choice(f"task_overrides.{task}.{key}", value, CHOICES[key])
            _check_ranges(f"task_overrides.{task}.", self.for_task(task), self.num_timesteps)
            if task != "t2i":
                _check_blocks(f"task_overrides.{task}.", self.for_task(task))

    def for_task(self, task: str) -> TaskSettings:
        """The settings of ``task``; an overridden ratio level brings its own default clip range."""
        values = {item.name: getattr(self, item.name) for item in fields(TaskSettings)}
        override = self.task_overrides.get(task, {})
        level = override.get("importance_sampling_level", self.importance_sampling_level)
        if level != self.importance_sampling_level:
            values["epsilon"], values["epsilon_high"] = DEFAULT_EPSILON[level], None
        values.update(override)
        if values["epsilon_high"] is None:
            values["epsilon_high"] = values["epsilon"]
        return TaskSettings(**values)


def check_choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ``ValueError`` naming the nearest valid choice."""
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"{key}={value!r} is not valid: {hint}choose one of {list(choices)}")


def _check_ranges(where: str, values: TaskSettings | UniGRPOConfig, num_timesteps: int) -> None:
    """Raises ``ValueError`` for a number of one task's settings that cannot train; ``where`` prefixes its name."""
    for key in ("num_noise_samples", "max_completion_length", "steps", "block_length"):
        if getattr(values, key) < 1:
            raise ValueError(f"{where}{key}={getattr(values, key)} must be at least 1")
    for key in ("beta", "temperature", "guidance_scale"):
        if getattr(values, key) < 0:
            raise ValueError(f"{where}{key}={getattr(values, key)} must not be negative")
    if values.temperature == 0:
        raise ValueError(
            f"{where}temperature=0 makes every answer of a group equal, so nothing is learned; use e.g. 1.0"
        )
    if not 0 < values.epsilon < 1:
        raise ValueError(f"{where}epsilon={values.epsilon} must lie in (0, 1)")
    if values.epsilon_high is not None and values.epsilon_high <= 0:
        raise ValueError(f"{where}epsilon_high={values.epsilon_high} must be positive")
    if values.timestep_start is not None and not 1 <= values.timestep_start <= num_timesteps:
        raise ValueError(f"{where}timestep_start={values.timestep_start} must lie in 1..num_timesteps={num_timesteps}")


def _check_blocks(where: str, values: TaskSettings | UniGRPOConfig) -> None:
    """Raises ``ValueError`` where a text answer has more blocks than denoising steps."""
    blocks = -(-values.max_completion_length // values.block_length)
    if values.steps < blocks:
        raise ValueError(
            f"{where}steps={values.steps} is less than the {blocks} blocks of an answer (max_completion_length="
            f"{values.max_completion_length} / block_length={values.block_length}); raise steps or block_length"
        )

"""Every knob of a run. Names follow TRL's ``GRPOConfig`` wherever TRL has the concept."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import TrainingArguments

from ..data.image_codes import tokenizer_name
from ..errors import check_choice
from ..types import TASKS
from .inherited import settle_inherited
from .presets import BASE, DEFAULT_EPSILON, NOISING_KEYS, PRESETS, TASK_DEFAULTS, preset_values
from .run_checks import (
    check_engine,
    check_graphs,
    check_overrides,
    check_summed_ratios,
    check_values,
    settle_batches,
    settle_compile,
)
from .task import TaskSettings
from .unread_keys import READ_WITH, warn_of_unread


TASK_KEYS_BY_DEFAULT = {key for defaults in TASK_DEFAULTS.values() for key in defaults}
"""Keys that stay None when unset: each task has its own default."""


@dataclass
class UniGRPOConfig(TrainingArguments):
    """Arguments of ``UniGRPOTrainer``: ``transformers.TrainingArguments`` plus the fields below.

    Fields whose default is None and that ``PRESETS`` names take the algorithm's value; those that ``TASK_DEFAULTS``
    names take the task's. What is given here holds for every task, unless ``task_overrides`` says otherwise.

    Args:
        algorithm: a name in ``PRESETS``.
        attn_mask_mode: ``"bool"`` or ``"none"``, written into the model's config; None leaves it alone.
        disable_dropout: all dropout to 0, so that ratios carry no noise.
        ddp_find_unused_parameters: False, as every backward reaches every trained weight; a model of your own that leaves some
            out needs True.
        num_generations: G, answers a prompt, at least 2.
        num_generations_eval: answers a held-out prompt.
        max_prompt_length: longest prompt in tokens; None = what fits the model beside the answer.
        prompt_truncation: for longer prompts ``"error"``, ``"left"`` (drops the beginning) or, for captions of images
            to make, ``"right"`` (drops the end, as the public code does).
        max_completion_length: answer positions on a text canvas.
        shuffle_dataset: new prompt order every epoch.
        steps_per_generation: micro-steps fed by one rollout; default ``gradient_accumulation_steps``, and a multiple.
        generation_batch_size: the same in answers; give one of the two.
        rollout_batch_size: answers that a process denoises together; None = all of a task's. Answers do not depend on it.
            A batch that does not fit into memory is halved, and the size that fitted is kept.
        image_tokenizer: id, path, ``builtin:NAME`` or module of the tokenizer for ``mmu`` and ``t2i`` rows; None = the
            one that the model's config names.
        image_size: side in pixels, or ``[height, width]``, of images made and read; None = the checkpoint's, or 512.
        image_transform: how input images get that size: ``"squash"``, ``"crop"`` or ``"pad"``; a row's own
            ``image_transform`` column wins.
        offload_image_tokenizer, offload_reward_models: the image tokenizer, and the models of rewards (those behind a path
            or module, ``clip_score``, ``image_reward``), are on the CPU but while they are used. Results are the same.
        trim_padding: image canvases are padded to the longest caption of the batch, not to all text slots.
        sampler, steps, block_length, temperature, remasking, guidance_scale, mask_schedule, remask_temperature,
            remask_noise_decay: see ``samplers``.
        kv_cache, confidence_threshold, exit_entropy: approximate decoding of text, off by default; see
            ``SemiAutoregressive``, and ``unigrpo agreement`` for what they cost on a checkpoint.
        guidance: classifier-free guidance in the ``"rollout"``, in rollout and likelihood (``"both"``), or ``"none"``.
        eval_sampler, eval_denoising_steps: sampler and steps of held-out generation; None = the rollouts'.
        eval_temperature: temperature of held-out generation; 0 = greedy.
        num_iterations: K, inner updates on one rollout, each with its own noise.
        noising, timesteps, timestep_start, num_timesteps, mask_ratio_min, mask_ratio_max, draw_coupling,
            trajectory_shrink, p_mask_prompt: see ``noising``; p_mask_prompt hides prompt tokens with that probability.
        num_noise_samples: S, draws an inner update; 0 = every step, for noisings that follow the order of writing.
        weighting: coefficient of a scored token: ``"uniform"`` or ``"inverse_probability"`` (see ``noising.base``).
        reduce: each draw has its own ratio (``"per_draw"``), or draws are mixed first: linearly (``"per_token"``), or with
            an upper bound for negative advantages (``"signed"``).
        bound_exponent, bound_mixture: exponent and share of that upper bound, see ``algorithm.mixing``.
        importance_sampling_level: ratio a ``"token"``, a ``"sequence"`` (exp of the mean log-ratio; GSPO) or, with one
            update a rollout only, ``"sequence_sum"`` (exp of the summed log-ratio).
        surrogate: ``"ppo"``, ``"cispo"``, ``"log_likelihood"`` or ``"linear_bound"``, see ``surrogates``.
        epsilon, epsilon_high: clip range [1 - epsilon, 1 + epsilon_high]; epsilon_high defaults to epsilon.
        delta: largest ratio that a negative advantage may meet (dual clip); None = no bound.
        log_ratio_clip: log-ratios, to the old policy and to the reference, are cut to +-this; None = not.
        beta: weight of the KL to the reference; 0 loads no reference.
        kl_estimator: ``"k1"``, ``"k2"``, ``"k3"`` or ``"exact"``, the categorical KL over the whole token space.
        kl_reference: the ``"initial"`` model, or the ``"old"`` policy that wrote the rollout.
        kl_level: of sequences, the estimate is made of what the ratio is made of, or of the summed log-ratio and divided
            by the length (``"sum"``).
        loss_type: tokens are averaged in their row, then rows (``"grpo"``); over all tokens of the optimizer step
            (``"dapo"``) or of the micro-batch (``"bnpo"``), each task by itself; or divided by max_completion_length
            (``"dr_grpo"``). TRL's names; its ``cispo`` is a ``surrogate`` here.
        length_normalization: a row's tokens are its ``"masked"`` ones or its whole ``"completion"``.
        loss_weight: multiplies the whole loss; meant for ``task_overrides``.
        advantage_estimator: baseline ``"group_mean"``, ``"leave_one_out"`` or ``"batch_mean"``, or the ``"softmax"``
            weights of wd1 with temperature ``advantage_temperature``.
        advantage_clip: advantages are cut to +-this; None = not.
        scale_rewards: divide by the std of the ``"group"`` (``"group_population"``: without Bessel's correction), the
            ``"batch"``, or not (``"none"``); True and False are read as ``"group"`` and ``"none"``.
        reward_weights: one weight a reward; None = all 1.
        reward_error: what a reward does that raises, is overdue, or returns anything but one finite number or None an answer:
            ``"raise"`` ends the run with a ``RewardError`` on every process, ``"none"`` leaves out what has no score, warns
            once and counts it in ``rewards/<name>/errors``; see ``RewardSet.score``.
        reward_timeout: seconds for one call of one reward; None = no bound. The default is less than ``ddp_timeout``'s: a
            reward that hangs ends the run with its name, and not with that of a collective.
        multi_objective_aggregation: ``"sum_then_normalize"`` or ``"normalize_then_sum"``.
        refill_rounds: how often groups of equal rewards are replaced by new prompts, 0 = never.
        sft_weight, sft_batch_size: weight of the auxiliary denoising loss on ``sft_dataset``, and its rows a micro-step and
            process (default: per_device_train_batch_size).
        sync_ref_model, ref_model_mixup_alpha, ref_model_sync_steps: periodic reference update (full fine-tuning only);
            an ``"exact"`` KL follows it at once, also inside a window.
        torch_compile, torch_compile_backend, torch_compile_mode: compiles each transformer block, not the whole model; a
            backend or a mode turns it on. Default backend ``"inductor"``.
        task_overrides: ``{task: {key: value}}`` with keys from ``TASK_KEYS``.
        log_exact_kl: logs the exact KL of a few tokens once a window where the KL is an estimate (two more forwards).
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
    ddp_find_unused_parameters: bool | None = False

    num_generations: int = 8
    num_generations_eval: int = 1
    max_prompt_length: int | None = None
    prompt_truncation: str = "error"
    max_completion_length: int = 256
    shuffle_dataset: bool = True
    steps_per_generation: int | None = None
    generation_batch_size: int | None = None
    rollout_batch_size: int | None = None

    image_tokenizer: str | None = None
    image_size: int | None = None
    image_transform: str = "squash"
    trim_padding: bool = True
    offload_image_tokenizer: bool = False
    offload_reward_models: bool = False

    sampler: str | None = None
    steps: int | None = None
    block_length: int = 32
    temperature: float = 1.0
    remasking: str = "low_confidence"
    kv_cache: str = "none"
    confidence_threshold: float | None = None
    exit_entropy: float | None = None
    guidance_scale: float | None = None
    guidance: str | None = None
    mask_schedule: str = "cosine"
    remask_temperature: float = 1.0
    remask_noise_decay: str = "linear"
    eval_sampler: str | None = None
    eval_denoising_steps: int | None = None
    eval_temperature: float | None = None

    num_iterations: int | None = None
    noising: str | None = None
    timesteps: str | None = None
    timestep_start: int | None = None
    mask_ratio_min: float | None = None
    num_timesteps: int = 1000
    mask_ratio_max: float | None = None
    num_noise_samples: int | None = None
    draw_coupling: str | None = None
    trajectory_shrink: int | None = None
    p_mask_prompt: float | None = None
    weighting: str | None = None
    reduce: str | None = None
    bound_exponent: float | None = None
    bound_mixture: float | None = None
    importance_sampling_level: str | None = None
    surrogate: str | None = None
    epsilon: float | None = None
    epsilon_high: float | None = None
    delta: float | None = None
    log_ratio_clip: float | None = None
    beta: float | None = None
    kl_estimator: str | None = None
    kl_reference: str | None = None
    kl_level: str | None = None
    loss_type: str | None = None
    length_normalization: str | None = None
    loss_weight: float = 1.0
    advantage_estimator: str | None = None
    advantage_temperature: float | None = None
    advantage_clip: float | None = None
    scale_rewards: str | None = None
    reward_weights: list[float] | None = None
    reward_error: str = "raise"
    reward_timeout: float | None = 600.0
    multi_objective_aggregation: str = "sum_then_normalize"
    refill_rounds: int = 0
    sft_weight: float = 0.0
    sft_batch_size: int | None = None

    sync_ref_model: bool = False
    ref_model_mixup_alpha: float = 0.6
    ref_model_sync_steps: int = 512

    task_overrides: dict[str, Any] | str | None = field(default_factory=dict)
    log_completions: bool = False
    log_exact_kl: bool = True
    num_completions_to_print: int | None = None
    use_vllm: bool = False

    def __post_init__(self) -> None:
        settle_inherited(self)
        check_engine(self)
        settle_compile(self)
        self._read_overrides()
        before = {key: getattr(self, key) for key in (*READ_WITH, "advantage_temperature")}
        self._apply_preset()
        # Set to something else than the algorithm's own: saved arguments, read again, hold those.
        usual = {**BASE, **self._preset_values(), "epsilon": DEFAULT_EPSILON.get(self.importance_sampling_level)}
        given = {key for key, value in before.items() if value is not None and value != usual.get(key)}
        check_values(self)
        # None reaches the trainer, which knows whether adapters are trained; the parent class wants a number. And it must
        # not see torch_compile, with which it turns on TF32: the head's arithmetic would no longer be fp32.
        held = {"learning_rate": self.learning_rate or 0.0, "torch_compile": False}
        held |= {"torch_compile_backend": None, "torch_compile_mode": None}
        own = {key: getattr(self, key) for key in held}
        vars(self).update(held)
        super().__post_init__()
        vars(self).update(own)
        settle_batches(self)
        check_overrides(self)
        check_graphs(self)
        check_summed_ratios(self)
        warn_of_unread(self, given)

    def _read_overrides(self) -> None:
        """``task_overrides`` as a mapping of its own, also where it was given as JSON."""
        overrides = self.task_overrides or {}
        if isinstance(overrides, str):
            try:
                overrides = json.loads(overrides)
            except json.JSONDecodeError as error:
                raise ValueError(f"task_overrides={overrides!r} is not JSON: {error}") from error
        if not isinstance(overrides, dict):
            raise ValueError(f"task_overrides={overrides!r} must be a mapping of tasks")
        for task, values in overrides.items():
            check_choice("task_overrides key", task, TASKS)
            if not isinstance(values, dict):
                raise ValueError(f"task_overrides.{task}={values!r} must be a mapping of keys")
        self.task_overrides = {task: dict(values) for task, values in overrides.items()}

    def _apply_preset(self) -> None:
        if self.algorithm not in PRESETS:
            near = difflib.get_close_matches(str(self.algorithm), PRESETS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"algorithm={self.algorithm!r} is unknown: {hint}choose one of {sorted(PRESETS)}")
        if isinstance(self.scale_rewards, bool):
            self.scale_rewards = "group" if self.scale_rewards else "none"
        by_task = {key for key, value in PRESETS[self.algorithm].items() if isinstance(value, dict) for key in value}
        if "noising" in by_task:
            by_task |= set(NOISING_KEYS)
        for key, value in self._preset_values().items():
            if getattr(self, key) is None and key not in TASK_KEYS_BY_DEFAULT | by_task:
                setattr(self, key, value)
        if self.epsilon is None:
            self.epsilon = DEFAULT_EPSILON.get(self.importance_sampling_level)

    def _preset_values(self, task: str | None = None, override: dict[str, Any] | None = None) -> dict[str, Any]:
        """The algorithm's values, without those that belong to a noising or a ratio level which was replaced."""
        values, own = preset_values(self.algorithm, task), {}
        for key in ("noising", "timesteps", "importance_sampling_level", "weighting"):
            own[key] = (override or {}).get(key) or getattr(self, key) or values[key]
        if own["weighting"] == "inverse_probability":
            # The weights make up for what is not hidden: the whole answer is summed.
            values["length_normalization"] = "completion"
        if own["noising"] != values["noising"]:
            values |= {key: BASE.get(key) for key in NOISING_KEYS}
        elif own["timesteps"] != values["timesteps"]:
            values["mask_ratio_min"] = None
        if own["importance_sampling_level"] != values["importance_sampling_level"]:
            values |= {"epsilon": None, "epsilon_high": None}
        return values

    def to_dict(self) -> dict[str, Any]:
        """As in transformers; an image tokenizer given as a module is named, not copied, and no token is shown."""
        module, self.image_tokenizer = self.image_tokenizer, tokenizer_name(self.image_tokenizer)
        try:
            values = super().to_dict()
        finally:
            self.image_tokenizer = module
        if (values["model_init_kwargs"] or {}).get("token"):
            values["model_init_kwargs"] = {**values["model_init_kwargs"], "token": "<TOKEN>"}
        return values

    def __str__(self) -> str:
        return f"{type(self).__name__}({json.dumps(self.to_dict(), indent=2, default=str)})"

    __repr__ = __str__

    def __getstate__(self) -> dict[str, Any]:
        """What checkpoints store, without the hub's tokens: a folder of weights is made to be passed on."""
        options = self.model_init_kwargs
        if isinstance(options, dict):
            options = {name: value for name, value in options.items() if name != "token"}
        return {**self.__dict__, "hub_token": None, "model_init_kwargs": options}

    def for_task(self, task: str) -> TaskSettings:
        """The settings of ``task``: its overrides, else the run's, else the task's defaults, else the algorithm's."""
        return self.settings_of(task, self.task_overrides.get(task, {}))

    def settings_of(self, task: str, override: dict[str, Any]) -> TaskSettings:
        """The settings of ``task`` with ``override``. An overridden ratio level brings its own default clip range, an
        overridden noising drops the values that the preset gave to its own.
        """
        values = {item.name: getattr(self, item.name) for item in fields(TaskSettings)}
        noising = override.get("noising")
        if noising is not None and values["noising"] not in (None, noising):
            # What the run-level preset gave to its own noising does not follow to another one.
            values |= {key: None for key in NOISING_KEYS if values[key] == self._preset_values().get(key)}
        if values["length_normalization"] == self._preset_values()["length_normalization"]:
            values["length_normalization"] = None
        given = {**values, **override}
        for key, value in self._preset_values(task, override).items():
            if key in values and values[key] is None:
                values[key] = value
        if given["kl_estimator"] is None and given["kl_reference"] == "old" and values["kl_estimator"] == "exact":
            # Only the default of pictures: the old policy's whole distributions are not kept.
            values["kl_estimator"] = "k3"
        level = override.get("importance_sampling_level", self.importance_sampling_level)
        if level != self.importance_sampling_level:
            values["epsilon"], values["epsilon_high"] = DEFAULT_EPSILON[level], None
        values.update(override)
        if values["epsilon_high"] is None:
            values["epsilon_high"] = values["epsilon"]
        if values["guidance"] == "none":
            values["guidance_scale"] = 0.0
        return TaskSettings(**values)

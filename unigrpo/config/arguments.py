"""Every knob of a run. Names follow TRL's ``GRPOConfig`` wherever TRL has the concept."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from transformers import TrainingArguments

from ..data.image_codes import tokenizer_name
from ..parts import MOST_REPEATS, key, keys_of, plain
from ..types import CANVAS_TASKS, KINDS
from .accepted import ImageSize, ImageTokenizer, Part, RewardScale
from .inherited import settle_inherited
from .overrides import PART_KEYS, TEMPLATE_KWARGS, read_overrides, read_template_kwargs
from .presets import preset_of
from .run_checks import (
    check_engine,
    check_graphs,
    check_overrides,
    check_summed_ratios,
    check_values,
    settle_batches,
    settle_best_model,
    settle_checkpointing,
    settle_compile,
)
from .run_keys import RUN_KEYS
from .settings import run_settings, task_settings, with_lengths
from .task import TASK_KEYS, TaskSettings
from .tokens import TokensUnsaved
from .trl_keys import check_known
from .unread_keys import warn_of_unread


ALGORITHM_KEYS = {**RUN_KEYS, **TASK_KEYS}
"""What an algorithm gives a value to where the user gave none."""


@dataclass(repr=False)  # The mixin's, which shows no token.
class UniGRPOConfig(TokensUnsaved, TrainingArguments):
    """Arguments of ``UniGRPOTrainer``: ``transformers.TrainingArguments`` plus the fields below.

    ``unigrpo keys`` prints a sentence for each, and ``--help`` of a ``TrlParser`` script too. The keys of parts (samplers,
    noisings, losses ...) are None while they are not given: then the task, the algorithm or the part decides, in this order
    (``settings.py``). Afterwards a field holds what all tasks agree on, and stays None where they differ; ``for_task`` has
    the values of one task. What is given here holds for every task, unless ``task_overrides`` says otherwise.

    Raises:
        ValueError: a value, or a combination, that cannot train; the message names the cure.
    """

    _VALID_DICT_FIELDS = [
        *TrainingArguments._VALID_DICT_FIELDS,
        *("model_init_kwargs", "chat_template_kwargs", "task_overrides"),
    ]

    algorithm: Part = key("unigrpo", "the published method whose values are taken where none are given")
    model_init_kwargs: dict[str, Any] | str | None = key(None, "arguments of the model's from_pretrained")
    attn_mask_mode: str | None = key(
        None, "written into the model's config; none leaves it alone", choices=("bool", "none")
    )
    chat_template_kwargs: dict[str, Any] | str | None = key(None, TEMPLATE_KWARGS)
    disable_dropout: bool = key(True, "all dropout to 0, so that ratios carry no noise")
    remove_unused_columns: bool = key(False, "rewards read further columns, so they stay")
    learning_rate: float | None = key(None, "none = 1e-6, with adapters 5e-6")  # type: ignore[assignment]  # the trainer decides
    logging_steps: float = key(10, "optimizer steps between two log lines")
    ddp_find_unused_parameters: bool | None = key(
        False, "every backward reaches every trained weight; a model of your own that leaves some out needs true"
    )

    num_generations: int = key(8, "G, answers a prompt", at_least=2)
    num_generations_eval: int = key(1, "answers a held-out prompt", at_least=1, at_most=MOST_REPEATS)
    shuffle_dataset: bool = key(True, "new prompt order every epoch")
    steps_per_generation: int | None = key(
        None, "micro-steps fed by one rollout; none = gradient_accumulation_steps, else a multiple of it", at_least=1
    )
    generation_batch_size: int | None = key(
        None, "the same as steps_per_generation, in answers; give one of the two", at_least=1
    )
    rollout_batch_size: int | None = key(
        None,
        """answers that a process denoises together; none = all of a task's. Answers do not depend on it. A batch that does not
        fit into memory is halved, and the size that fitted is kept""",
        at_least=1,
    )
    image_tokenizer: ImageTokenizer = key(
        None,
        "id, path, builtin:NAME or module of the tokenizer of pictures; none = the one that the model's config names",
    )
    trim_padding: bool = key(
        True, "picture canvases are padded to the longest caption of the batch, not to all text slots"
    )
    offload_image_tokenizer: bool = key(False, "the image tokenizer is on the CPU but while it is used")
    offload_reward_models: bool = key(
        False,
        """models of rewards (those behind a path or module, and those that score pictures) are on the CPU but while they are
        used; results are the same""",
    )
    reward_weights: list[float] | None = key(None, "one weight a reward; none = all 1")
    reward_terms: list[dict[str, Any]] | None = key(
        None,
        """a mapping a reward of gate, clip, standardise, win_rate, schedule, {} for none: how it enters the sum; in a recipe they
        stand with the rewards""",
    )
    reward_error: str = key(
        "raise",
        """what a reward does that raises, is overdue, or returns anything but one finite number or none an answer: "raise" ends
        the run with a RewardError on every process, "none" leaves out what has no score, warns once and counts it in
        rewards/<name>/errors""",
        choices=("raise", "none"),
    )
    reward_timeout: float | None = key(
        600.0,
        """seconds for one call of one reward; none = no bound. The default is less than ddp_timeout's: a reward that hangs
        ends the run with its name, and not with that of a collective""",
    )
    refill_rounds: int = key(0, "how often groups of equal rewards are replaced by new prompts, 0 = never", at_least=0)
    sft_weight: float = key(0.0, "weight of the auxiliary denoising loss on sft_dataset", at_least=0)
    sft_batch_size: int | None = key(
        None, "rows of sft_dataset a micro-step and process; none = per_device_train_batch_size", at_least=1
    )
    sync_ref_model: bool = key(
        False,
        "periodic update of the reference (full fine-tuning only); an exact KL follows it at once, also in a window",
    )
    ref_model_mixup_alpha: float = key(0.6, "share of the policy in an updated reference", at_least=0, at_most=1)
    ref_model_sync_steps: int = key(512, "optimizer steps between two updates of the reference", at_least=1)
    task_overrides: dict[str, Any] | str | None = field(default_factory=dict)
    log_rewards: bool = key(
        False,
        "a table a task at every log: mean, spread inside groups, ties, share without a score, seconds of a call",
    )
    log_completions: bool = key(False, "sampled answers as a table and as parquet files")
    num_completions_to_print: int | None = key(None, "rows of that table; none = all", at_least=1)
    log_exact_kl: bool = key(
        True, "logs the exact KL of a few tokens once a window where the KL is an estimate (two more forwards)"
    )
    overwrite: bool = key(
        False, "what another run left in output_dir is deleted when training starts; nothing that a user put there"
    )
    use_vllm: bool = key(False, "refused: vLLM decodes autoregressively")
    given_keys: list[str] | None = key(
        None, "the keys of parts that were given; written by the config itself, so that saved arguments remember"
    )
    filled_keys: dict[str, Any] | None = key(
        None, "the values that the config filled in for the others; written by itself"
    )

    # ---- keys of the parts, where they are described; None = not given ----
    advantage_temperature: float | None = None
    num_iterations: int | None = None
    pictures_per_thought: int | None = None
    r2i_decoding: str | None = None
    r2i_noise: str | None = None
    advantage_estimator: Part = None
    advantage_clip: float | None = None
    scale_rewards: RewardScale = None
    multi_objective_aggregation: str | None = None
    beta: float | None = None
    kl_estimator: str | None = None
    kl_level: str | None = None
    importance_sampling_level: str | None = None
    length_normalization: str | None = None
    log_ratio_clip: float | None = None
    loss_type: str | None = None
    epsilon: float | None = None
    epsilon_high: float | None = None
    delta: float | None = None
    bound_exponent: float | None = None
    bound_mixture: float | None = None
    weighting: str | None = None
    p_mask_prompt: float | None = None
    block_length: int | None = None
    trajectory_shrink: int | None = None
    mask_ratio_min: float | None = None
    mask_ratio_max: float | None = None
    draw_coupling: str | None = None
    timesteps: str | None = None
    timestep_start: int | None = None
    num_timesteps: int | None = None
    noise_per: str | None = None
    steps: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    guidance_scale: float | None = None
    image_guidance_scale: float | None = None
    guidance_direction: str | None = None
    mask_schedule: str | None = None
    remask_temperature: float | None = None
    remask_noise: str | None = None
    remask_noise_decay: str | None = None
    remasking: str | None = None
    kv_cache: str | None = None
    confidence_threshold: float | None = None
    logits_eos_inf: bool | None = None
    confidence_eos_eot_inf: bool | None = None
    exit_entropy: float | None = None
    alg: str | None = None
    alg_temp: float | None = None
    order: str | None = None
    entropy_bound: float | None = None
    edit_threshold: float | None = None
    post_steps: int | None = None
    t_min: float | None = None
    t_max: float | None = None
    stability_threshold: int | None = None
    finish_entropy: float | None = None
    sampler: Part = None
    eval_sampler: Part = None
    eval_denoising_steps: int | None = None
    eval_temperature: float | None = None
    guidance: str | None = None
    max_prompt_length: int | None = None
    prompt_truncation: str | None = None
    max_completion_length: int | None = None
    mask_truncated_completions: bool | None = None
    image_size: ImageSize = None
    image_transform: str | None = None
    noising: Part = None
    num_noise_samples: int | None = None
    reduce: Part = None
    surrogate: Part = None
    kl_reference: str | None = None
    loss_weight: float | None = None
    # ---- end of the keys of the parts ----

    def __new__(cls, *values: Any, **named: Any) -> UniGRPOConfig:
        check_known(named, (own.name for own in fields(cls)))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        settle_inherited(self)
        check_engine(self)
        settle_checkpointing(self)
        settle_compile(self)
        settle_best_model(self)
        self._read_parts()
        self.task_overrides = read_overrides(self.task_overrides)
        self.chat_template_kwargs = read_template_kwargs(self.chat_template_kwargs)
        given = self._settle()
        check_values(self, OWN_KEYS)
        # None reaches the trainer, which knows whether adapters are trained; the parent class wants a number. And it must
        # not see torch_compile, with which it turns on TF32: the head's arithmetic would no longer be fp32.
        held: dict[str, Any] = {"learning_rate": self.learning_rate or 0.0, "torch_compile": False}
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

    def _read_parts(self) -> None:
        """Parts given as objects, or as JSON, in the form that a recipe has."""
        if isinstance(self.scale_rewards, bool):
            self.scale_rewards = "group" if self.scale_rewards else "none"
        for name in PART_KEYS:
            setattr(self, name, plain(name, getattr(self, name)))

    # ---- what was given ----

    def given(self) -> dict[str, Any]:
        """The keys of parts that the user set, with their values.

        They are remembered by name. What holds another value than was filled in was given too: changed since then.
        """
        filled, found = self.filled_keys or {}, {}
        for name in ALGORITHM_KEYS:
            value = plain(name, getattr(self, name)) if name in PART_KEYS else getattr(self, name)
            named = self.given_keys is None or name in self.given_keys
            if value is not None and (named or value != filled.get(name)):
                found[name] = value
        return found

    def _settle(self) -> dict[str, Any]:
        """Fills in what all tasks agree on; returns what was given."""
        for name, kind in (("given_keys", list), ("filled_keys", dict)):
            if not isinstance(getattr(self, name), kind | None):
                raise ValueError(f"{name}={getattr(self, name)!r} is written by the config itself: leave it out")
        given = {name: ALGORITHM_KEYS[name].read(value) for name, value in self.given().items()}
        self.filled_keys, self.given_keys = self._agreed(given), sorted(given)
        vars(self).update({**self.filled_keys, **given})
        # A mapping that names no estimator has keys for the algorithm's.
        preset = preset_of(self.algorithm, ALGORITHM_KEYS)
        self.advantage_estimator = run_settings(given, preset, RUN_KEYS)["advantage_estimator"]
        return given

    def _agreed(self, given: dict[str, Any]) -> dict[str, Any]:
        """The values of keys that are not ``given``, None where tasks differ."""
        preset = self._preset(given, {})
        every = [task_settings(given, preset, task, {}) for task in CANVAS_TASKS]
        values = run_settings(given, preset, RUN_KEYS)
        for name in TASK_KEYS:
            first, *others = (getattr(own, name) for own in every)
            values[name] = first if all(other == first for other in others) else None
        return {name: value for name, value in values.items() if name not in given}

    @property
    def algorithm_name(self) -> str:
        """The name of the algorithm, also where it was given with keys."""
        return str(self.algorithm.get("name", "unigrpo") if isinstance(self.algorithm, dict) else self.algorithm)

    def to_dict(self) -> dict[str, Any]:
        """As in transformers; an image tokenizer given as a module is named, not copied, and no token is shown."""
        module, self.image_tokenizer = self.image_tokenizer, tokenizer_name(self.image_tokenizer)
        try:
            values = super().to_dict()
        finally:
            self.image_tokenizer = module
        return values

    def take_lengths(self, usual: dict[str, Any] | None) -> None:
        """Text lengths that suit a checkpoint, its ``sampling_defaults``, for tasks of which none was given."""
        self._usual = usual or {}
        self._settle()

    def _preset(self, given: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        return with_lengths(preset_of(self.algorithm, ALGORITHM_KEYS), getattr(self, "_usual", {}), given, overrides)

    def for_task(self, task: str) -> TaskSettings:
        """The settings of ``task``; ``settings.py`` says where each value comes from."""
        assert isinstance(self.task_overrides, dict), "task_overrides is a mapping since the config was made"
        return self.settings_of(task, self.task_overrides.get(task, {}))

    def settings_of(self, task: str, override: dict[str, Any]) -> TaskSettings:
        """The settings of ``task`` with ``override`` in place of its own overrides."""
        given = self.given()
        preset = self._preset(given, {task: override, KINDS.get(task, task): override})
        return task_settings(given, preset, task, override, f"task_overrides.{task}." if override else "")


_KEYS = keys_of(UniGRPOConfig)
OWN_KEYS = {name: own for name, own in _KEYS.items() if own.help and name not in {**RUN_KEYS, **TASK_KEYS}}
"""The keys of a run that belong to no part and to no task, by name."""

for _item in fields(UniGRPOConfig):
    # Parsers of the command line hand a field's metadata to ``argparse``.
    _about = {**TASK_KEYS, **RUN_KEYS, **OWN_KEYS}.get(_item.name)
    if _about is not None:
        _item.metadata = MappingProxyType({"help": _about.help.replace("%", "%%")})
    elif _item.name == "task_overrides":
        _item.metadata = MappingProxyType({"help": "{task: {key: value}} for one task; JSON on a command line"})

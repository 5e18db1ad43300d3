"""What becomes of every field of ``TrainingArguments``: it works, is refused with the cure, or does nothing and says so.

Each field stands here once. A test walks the fields of the installed transformers, so that a release cannot add one in silence.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import MappingProxyType
from typing import Any


_WORKS = """
output_dir run_name seed data_seed use_cpu full_determinism resume_from_checkpoint local_rank do_train do_eval
per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps num_train_epochs max_steps
learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio max_grad_norm
optim optim_args optim_target_modules weight_decay adam_beta1 adam_beta2 adam_epsilon
bf16 fp16 torch_compile torch_compile_backend torch_compile_mode
gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs
logging_strategy logging_steps logging_first_step logging_nan_inf_filter logging_dir log_level log_level_replica
log_on_each_node disable_tqdm report_to project trackio_space_id trackio_bucket_id trackio_static_space_id
skip_memory_metrics
eval_strategy eval_steps eval_delay eval_on_start load_best_model_at_end metric_for_best_model greater_is_better
save_strategy save_steps save_total_limit save_only_model save_on_each_node restore_callback_states_from_checkpoint
push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
deepspeed fsdp fsdp_config accelerator_config ddp_backend ddp_timeout ddp_bucket_cap_mb ddp_broadcast_buffers
ddp_find_unused_parameters dataloader_pin_memory dataloader_drop_last remove_unused_columns
"""

WORKS = frozenset(_WORKS.split())

REFUSED = {
    "auto_find_batch_size": "it would change the rollout window; set the batch size yourself",
    "neftune_noise_alpha": "noise in the embeddings would make another policy of the one that wrote the answers, so that its "
    "ratios are not 1; leave it out",
    "label_smoothing_factor": "the loss has no labels to smooth; leave it at 0",
    "fp16_full_eval": "held-out answers are written by the model as it is trained; load it in that dtype "
    "(model_init_kwargs.dtype)",
    "bf16_full_eval": "held-out answers are written by the model as it is trained; load it in that dtype "
    "(model_init_kwargs.dtype)",
    "use_liger_kernel": "its kernels are for causal language models; the head computes its log-probabilities in pieces by itself",
    "train_sampling_strategy": "prompts come in windows; for their order in the dataset set shuffle_dataset=False",
    "group_by_length": "prompts come in windows; for their order in the dataset set shuffle_dataset=False",
    "enable_jit_checkpoint": "SIGTERM saves the last state of every run; leave it out",
    "ignore_data_skip": "a run would go on in a window with another window's prompts; leave it False",
    "parallelism_config": "the model is parallel over data alone; leave it out, and shard it with FSDP or DeepSpeed",
    "ddp_static_graph": "the backward passes of a step differ in number from step to step; leave it out",
    "tf32": "the head's log-probabilities would keep three digits; leave it out, bf16=True is faster",
    "debug": "its hooks do not take boolean masks; a loss or gradient that is not finite ends a run by itself",
}
"""Another value than the default raises, with this sentence."""

IGNORED = {
    "average_tokens_across_devices": "token losses are divided by the tokens of all processes already",
    "include_num_input_tokens_seen": "log has num_completion_tokens",
    "torch_empty_cache_steps": "a rollout that does not fit into memory is halved; rollout_batch_size bounds it",
    "use_cache": "kv_cache is the sampler's",
    "liger_kernel_config": "there is no Liger kernel",
    "length_column_name": "prompts come in windows",
    "label_names": "rows have no labels",
    "prediction_loss_only": "evaluate scores answers",
    "eval_do_concat_batches": "evaluate scores answers",
    "eval_use_gather_object": "evaluate scores answers",
    "eval_accumulation_steps": "evaluate keeps answers on the CPU",
    "include_for_metrics": "evaluate scores answers with the rewards; there is no compute_metrics",
    "batch_eval_metrics": "evaluate scores answers with the rewards; there is no compute_metrics",
    "do_predict": "a policy predicts no labels; evaluate() scores answers",
    **dict.fromkeys(
        (
            "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_prefetch_factor",
            "dataloader_multiprocessing_context", "dataloader_in_order",
        ),
        "prompts are read in the main process",
    ),
}  # fmt: skip
"""Another value than the default changes nothing, and a warning says why."""

OF_GIVEN_ANSWERS = {
    "auto_find_batch_size": "it would change the rows of a step; set the batch size yourself",
    "neftune_noise_alpha": "noise in the embeddings is no part of the objective; leave it out",
    **dict.fromkeys(
        ("fp16_full_eval", "bf16_full_eval"),
        "held-out losses are taken by the model as it is trained; load it in that dtype (model_init_kwargs.dtype)",
    ),
    **dict.fromkeys(
        ("train_sampling_strategy", "group_by_length"),
        "sampling_weights say how often rows come; for their order in the dataset set shuffle_dataset=False",
    ),
    "ignore_data_skip": "a run would go on with other rows than those that it was at; leave it False",
    "average_tokens_across_devices": "losses are divided over all processes already",
    "include_num_input_tokens_seen": "tokens are not counted",
    "torch_empty_cache_steps": "per_device_train_batch_size bounds the memory",
    "use_cache": "training keeps no keys and values",
    "length_column_name": "rows are not ordered by their lengths",
    **dict.fromkeys(
        ("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps"),
        "evaluate takes losses",
    ),
    **dict.fromkeys(
        ("include_for_metrics", "batch_eval_metrics"), "evaluate takes losses; there is no compute_metrics"
    ),
    "do_predict": "a policy predicts no labels; evaluate() takes losses",
    **dict.fromkeys((name for name in IGNORED if name.startswith("dataloader")), "rows are read in the main process"),
}
"""What ``REFUSED`` and ``IGNORED`` say of them where answers are given and none are rolled out."""

UNSORTED = "{names}: not sorted. Put each into WORKS, REFUSED or IGNORED of unigrpo/config/sorted_keys.py, after a run has shown which"


def unsorted_fields(kind: type) -> list[str]:
    """The fields of the dataclass ``kind`` that stand nowhere here, or in two places."""
    places = (WORKS, REFUSED, IGNORED)
    return [own.name for own in fields(kind) if sum(own.name in place for place in places) != 1]


def check_inherited(args: Any, own_words: Mapping[str, str] = MappingProxyType({})) -> None:
    """Warns of inherited keys that do nothing.

    Args:
        own_words: sentences in place of those of ``REFUSED`` and ``IGNORED``.

    Raises:
        ValueError: one that would break the algorithm; the message names the cure.
    """
    ignored = []
    for own in fields(args):
        value = getattr(args, own.name)
        if own.name not in REFUSED | IGNORED or _is_default(value, own):
            continue
        if own.name in REFUSED:
            raise ValueError(f"{own.name}={value!r}: {own_words.get(own.name, REFUSED[own.name])}")
        ignored.append(f"{own.name}={value!r} ({own_words.get(own.name, IGNORED[own.name])})")
    if ignored:
        warnings.warn(f"these keys of TrainingArguments change nothing here: {'; '.join(ignored)}", stacklevel=5)


def _is_default(value: Any, own: Any) -> bool:
    """Whether ``value`` is what the field ``own`` has anyway, also in the form that a config which was made has it in."""
    default = own.default if own.default_factory is MISSING else own.default_factory()
    return value is None or value == default or (not value and (not default or default == "no"))

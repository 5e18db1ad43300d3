"""Keys that scripts for TRL have and this trainer has not: what to write in their place.

Beside them any unknown key is answered with the nearest one that there is.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any


OF_MODEL = "it belongs to the model: model_init_kwargs={{{name!r}: ...}}"
NO_AUTOREGRESSION = "a masked-diffusion policy draws positions, not next tokens; leave it out"
NO_ENTROPY = "no term of the loss rewards entropy; leave it out (entropy is logged)"

INSTEAD = {
    **dict.fromkeys(
        ("trust_remote_code", "attn_implementation", "dtype", "quantization_config", "device_map"), OF_MODEL
    ),
    "model_name_or_path": "give it to the trainer: UniGRPOTrainer(model=...)",
    "model_revision": "model_init_kwargs={{'revision': ...}}",
    "max_length": "max_prompt_length and max_completion_length bound the two parts",
    "vllm_importance_sampling_correction": "old log-probabilities are the training model's own; leave it out",
    "repetition_penalty": "positions are drawn together, so that none knows what the others repeat; the reward 'repetition' does",
    "generation_kwargs": "what a sampler reads are keys of their own: `unigrpo keys sampler`",
    "cache_implementation": "kv_cache is the key of the text sampler",
    **dict.fromkeys(("entropy_coef", "use_adaptive_entropy", "top_entropy_quantile"), NO_ENTROPY),
    "router_aux_loss_coef": "the models have no experts; leave it out",
    "cast_lm_head_to_fp32": "the head computes in float32 by itself; leave it out",
    "ds3_gather_for_generation": "rollouts go through the engine's own forward; leave it out",
    "pad_to_multiple_of": "rows of equal length share a forward; leave it out",
    "off_policy_mask_threshold": "num_iterations bounds how far off-policy an update is; delta clips its ratios",
    "use_bias_correction_kl": "kl_estimator chooses the estimate",
    "max_tool_calling_iterations": "answers are written in one piece, without tools; leave it out",
    "log_unique_prompts": "log_completions shows groups; num_completions_to_print bounds them",
    "log_multimodal": "log_completions saves pictures too",
    "log_completions_hub_repo": "completions lie in output_dir/completions as parquet; upload that folder",
}
"""Key -> the cure."""

OTHER_NAMES = {
    **dict.fromkeys(("gen_length", "max_new_tokens", "max_token", "max_gen_toks"), "max_completion_length"),
    **dict.fromkeys(("diffusion_steps", "denoising_steps", "num_inference_steps"), "steps"),
    "cfg_scale": "guidance_scale",
    "remasking_strategy": "remasking",
    "dynamic_threshold": "confidence_threshold",
    **dict.fromkeys(("group_size", "num_return_sequences", "num_response_per_task"), "num_generations"),
    **dict.fromkeys(("mu", "ppo_epochs"), "num_iterations"),
    **dict.fromkeys(("kl_coef", "kl_loss_coef"), "beta"),
    **dict.fromkeys(("clip_eps", "clip_ratio"), "epsilon"),
    **dict.fromkeys(("epochs", "num_epochs"), "num_train_epochs"),
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
}
"""What scripts of LLaDA, Dream, d1, dLLM-RL and verl call a key -> its name here."""

OF_SFT = {
    **{name: INSTEAD[name] for name in ("trust_remote_code", "router_aux_loss_coef", "pad_to_multiple_of")},
    "completion_only_loss": "the answer alone is trained, and all of a row that has a text alone; leave it out",
    "assistant_only_loss": "train_turns='all' trains every answer of a chat, 'last' the last",
    **dict.fromkeys(
        ("packing", "packing_strategy", "eval_packing", "padding_free"),
        "every row has a canvas and a share of hidden tokens of its own; leave it out",
    ),
    "truncation_mode": "no answer is cut: overlong='drop' leaves out the rows that max_length does not hold",
    "dataset_text_field": "name the column text, in a recipe column_map: {text: yours}",
    **dict.fromkeys(("dataset_kwargs", "dataset_num_proc"), "rows are read when they are drawn; leave it out"),
    **dict.fromkeys(("eos_token", "pad_token"), "the policy has them from its checkpoint; leave it out"),
    "chat_template_path": "the template is the processor's: give one that has yours as processing_class",
    "loss_type": "objective names one of the published losses, and `unigrpo keys` what they are made of",
    "activation_offloading": "gradient_checkpointing=True saves the same memory",
}
"""Keys of TRL's ``SFTConfig`` -> the cure."""

OF_TRAINER = {
    "quantization_config": "UniGRPOConfig(model_init_kwargs={'quantization_config': BitsAndBytesConfig(...)})",
    "tools": "answers are written in one piece, without tools; leave it out",
    "rollout_func": "a sampler of your own writes rollouts: UniGRPOConfig(sampler='pkg.mod:attr')",
    "environment_factory": "answers are written in one piece, without steps of an environment; score them with a reward",
}
"""Arguments of TRL's trainer -> the cure."""

LOSSES = {
    "cispo": "it is a surrogate here, beside any average: surrogate='cispo', loss_type='dapo' divides as TRL's does",
    "sapo": "there is no such surrogate: `unigrpo keys surrogate` has those there are",
    "vespo": "there is no such surrogate: `unigrpo keys surrogate` has those there are",
    "luspo": "its ratio is importance_sampling_level='sequence'; no loss here weighs an answer by its length",
}
"""Values of ``loss_type`` that TRL has -> the cure."""

FAMILIES = {
    "vllm_": "vLLM decodes autoregressively and cannot roll out a masked-diffusion policy; leave it out",
    "transformers_": NO_AUTOREGRESSION,
    "use_transformers_": NO_AUTOREGRESSION,
    "entropy_": NO_ENTROPY,
    "sapo_": "there is no such surrogate: `unigrpo keys surrogate` has those there are",
    "vespo_": "there is no such surrogate: `unigrpo keys surrogate` has those there are",
    "lora_": "adapters are a peft config: UniGRPOTrainer(peft_config=LoraConfig(...)), in a recipe lora: {{r: 16}}",
    "load_in_": "model_init_kwargs={{'quantization_config': BitsAndBytesConfig(...)}}, in a recipe model: {{{name}: true}}",
}
"""First letters of keys -> the cure."""


def cure_of(name: str) -> str | None:
    """What to do in place of a key that only TRL has, or that others call otherwise; None for others."""
    if name in OTHER_NAMES:
        return f"its name here is {OTHER_NAMES[name]!r}"
    found = INSTEAD.get(name) or next((cure for first, cure in FAMILIES.items() if name.startswith(first)), None)
    return None if found is None else found.format(name=name)


def check_trainer_arguments(names: Iterable[str], known: Iterable[str]) -> None:
    """Raises ``TypeError`` for an argument that only TRL's trainer has and that is not among the ``known`` ones, with the cure."""
    for name in names:
        if name in OF_TRAINER and name not in known:
            raise TypeError(f"{name} is no argument of UniGRPOTrainer: {OF_TRAINER[name]}")


def check_loss(loss_type: Any, where: str = "") -> None:
    """Raises ``ValueError`` for a ``loss_type`` that only TRL has, with the cure; ``where`` prefixes the key."""
    if isinstance(loss_type, str) and loss_type in LOSSES:
        raise ValueError(f"{where}loss_type={loss_type!r}: {LOSSES[loss_type]}")


def check_known(
    names: Iterable[str],
    known: Iterable[str],
    owner: str = "UniGRPOConfig",
    cure_of: Callable[[str], str | None] = cure_of,
) -> None:
    """Raises ``TypeError``, as Python does, for a name that is not ``known`` to ``owner``, with the cure or the nearest that is."""
    known = tuple(known)
    for name in names:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`unigrpo keys` lists those there are"
        raise TypeError(f"{name} is no key of {owner}: {cure_of(name) or hint}")

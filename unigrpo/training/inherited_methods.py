"""What becomes of what ``transformers.Trainer`` brings: it works, or is refused with the cure.

Each public name stands here once. A test walks those of the installed transformers, so that a release cannot add one in silence.
"""

from __future__ import annotations

from typing import Any


_WORKS = """
    train evaluate log save_model save_state save_metrics log_metrics metrics_format end
    add_callback pop_callback remove_callback is_world_process_zero is_local_process_zero
    training_step compute_loss compute_loss_context_manager autocast_smart_context_manager floating_point_ops store_flos
    create_accelerator_and_postprocess create_optimizer create_scheduler create_optimizer_and_scheduler
    get_train_dataloader get_batch_samples num_examples set_initial_training_values get_total_train_batch_size
    get_learning_rates get_decay_parameter_names get_num_trainable_parameters get_optimizer_cls_and_kwargs
    get_optimizer_group get_cp_size get_sp_size get_tp_size call_model_init loss_is_scaled_for_ga
    push_to_hub init_hf_repo create_model_card
"""

WORKS = frozenset(_WORKS.split())

_ANSWERS = "a policy predicts no labels: use evaluate() to {evaluates}, and generate(prompts) to write answers"

REFUSED = {
    "predict": _ANSWERS,
    "prediction_step": _ANSWERS,
    "evaluation_loop": _ANSWERS,
    "get_eval_dataloader": "evaluate() reads the rows of its set itself; give it one, evaluate(dataset)",
    "get_test_dataloader": "evaluate() reads the rows of its set itself; give it one, evaluate(dataset)",
    "hyperparameter_search": "it makes the model anew for every trial, and a run has one: start `unigrpo {command} RECIPE key=value` "
    "for every value",
}
"""By name the cure, in the words of the trainer: what it ``evaluates``, and its ``command``."""

UNSORTED = "{names}: not sorted. Put each into WORKS or REFUSED of unigrpo/training/inherited_methods.py, after a call has shown which"


def unsorted_names(kind: type) -> list[str]:
    """The public names of ``kind`` that stand nowhere here, or in two places."""
    return [name for name in dir(kind) if not name.startswith("_") and (name in WORKS) + (name in REFUSED) != 1]


def _refused(name: str, cure: str) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(f"{name}() has no meaning for this trainer: {cure.format(**self._words)}")

    method.__name__, method.__doc__ = name, "Raises ``ValueError`` with the cure."
    return method


WORDS = {"evaluates": "score answers", "command": "train"}
"""Of reinforcement learning; another trainer has its own ``_words``."""

RefusedMethods = type(
    "RefusedMethods",
    (),
    {name: _refused(name, cure) for name, cure in REFUSED.items()} | {"__module__": __name__, "_words": WORDS},
)
"""A mixin before ``Trainer`` with the methods of ``REFUSED``."""

"""What becomes of what ``PreTrainedModel`` brings: it works, or is refused with the cure. And what a forward does not take.

Each public name stands here once. A test walks those of the installed transformers, so that a release cannot add one in silence.
"""

from __future__ import annotations

import difflib
import inspect
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import TransformersKwargs

from .placing import on_host


_WORKS = """
    base_model base_model_prefix config_class main_input_name input_modalities device dtype dummy_inputs model_tags
    can_generate generation_config_class loss_function is_remote_code is_custom_code is_backend_compatible
    from_pretrained save_pretrained push_to_hub add_model_tags register_for_auto_class get_init_context
    get_input_embeddings set_input_embeddings get_output_embeddings set_output_embeddings
    get_memory_footprint num_parameters get_parameter_or_buffer named_non_persistent_buffers retrieve_modules_from_names
    post_init init_weights initialize_weights tie_weights get_expanded_tied_weights_keys mark_tied_weights_as_initialized
    gradient_checkpointing_enable gradient_checkpointing_disable is_gradient_checkpointing supports_gradient_checkpointing
    activation_checkpointing_enable activation_checkpointing_disable is_activation_checkpointing
    enable_input_require_grads disable_input_require_grads warn_if_padding_and_no_attention_mask
    add_adapter load_adapter set_adapter delete_adapter active_adapters enable_adapters disable_adapters
    get_adapter_state_dict enable_peft_hotswap
    get_correct_attn_implementation get_correct_experts_implementation get_experts_implementation get_compiled_call
    can_record_outputs use_kernels get_encoder get_decoder
    dequantize is_distributed_loading_by_transformers maybe_distribute_model prepare_distribute_model
    init_parallel_plans tp_plan tp_size ep_plan pp_plan fsdp_plan fsdp_size supports_tp_plan supports_pp_plan
    supports_context_parallel should_save_on_this_rank gather_sharded_state_dict_for_save
    barrier_after_gathered_checkpoint_save save_distributed_checkpoint
"""

WORKS = frozenset(_WORKS.split())
"""What does here what it does in transformers, plans of parallelism being empty."""

REFUSED = {
    "resize_token_embeddings": "the ids of pictures and of the mask follow the text's, and the head computes by itself: train "
    "with the vocabulary that the checkpoint has",
    "resize_position_embeddings": "positions are rotary and have no table; any length works",
    "get_position_embeddings": "positions are rotary and have no table",
    "set_attn_implementation": "attention is PyTorch's scaled_dot_product_attention, which chooses its kernel by itself",
    "set_experts_implementation": "there are no experts",
    "set_use_kernels": "kernels of the hub are code from elsewhere, and attention chooses PyTorch's own by itself",
    "set_encoder": "there is one trunk, model.model",
    "set_decoder": "there is one trunk, model.model",
}
"""What would break the model, or do nothing: calling it raises, with this sentence."""

UNSORTED = (
    "{names}: not sorted. Put each into WORKS or REFUSED of unigrpo/models/inherited.py, after a call has shown which"
)

NOT_TAKEN = {
    "output_attentions": "scaled_dot_product_attention keeps no attention weights",
    "past_key_values": "keys and values are kept by cache",
    "use_cache": "keys and values are kept by cache",
    "cache_position": "keys and values are kept by cache",
    "logits_to_keep": "select chooses the rows",
    "head_mask": "heads are not masked",
    "token_type_ids": "there are no token types",
    "return_dict": "it returns a MaskedDiffusionOutput",
}
"""Arguments of other models' forwards, which may be there as None or switched off; and why they are not taken."""

OFF = {"return_dict": True}
"""What means "as usual" beside None, False and zeros."""


def unsorted_names(kind: type) -> list[str]:
    """The public names that ``kind`` adds to ``nn.Module`` and that stand nowhere here, or in two places."""
    names = [name for name in dir(kind) if not name.startswith("_") and not hasattr(nn.Module, name)]
    return [name for name in names if (name in WORKS) + (name in REFUSED) != 1]


def _refused(name: str, cure: str) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        if given and not any(given):
            # Loading switches things off by the same calls.
            return getattr(super(RefusedMethods, self), name)(*args, **kwargs)
        raise NotImplementedError(f"{type(self).__name__}.{name} is not for this model: {cure}")

    method.__name__, method.__doc__ = name, f"Raises ``NotImplementedError``: {cure}."
    return method


RefusedMethods = type(
    "RefusedMethods", (), {name: _refused(name, cure) for name, cure in REFUSED.items()} | {"__module__": __name__}
)
"""A mixin before ``PreTrainedModel`` with the methods of ``REFUSED``."""


def refuse_arguments(given: dict[str, Any], taken: tuple[str, ...]) -> None:
    """Raises ``TypeError`` for further arguments of a forward, unless they are another model's and switched off."""
    for name, value in given.items():
        if name in NOT_TAKEN and _is_off(name, value):
            continue
        near = difflib.get_close_matches(name, taken, n=1)
        why = NOT_TAKEN.get(name) or (f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(taken)}")
        raise TypeError(f"forward() takes no {name!r}: {why}")


def refuse_swallowed(forward: Any, given: dict[str, Any]) -> None:
    """Raises ``TypeError`` for arguments that a ``forward`` of transformers takes by ``**kwargs`` and reads nowhere."""
    if not given:
        return
    named, swallows = _named_arguments(getattr(forward, "__func__", forward))
    if given.get("output_attentions"):
        raise TypeError(f"forward() takes no 'output_attentions': {NOT_TAKEN['output_attentions']}")
    for name in given if swallows else ():
        if name not in named:
            near = difflib.get_close_matches(name, named, n=1)
            raise TypeError(
                f"forward() takes no {name!r}: "
                + (f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(named)}")
            )


@lru_cache
def _named_arguments(forward: Any) -> tuple[tuple[str, ...], bool]:
    """The names that a forward takes, and whether it takes any others without reading them."""
    taken = inspect.signature(forward).parameters.values()
    named = [own.name for own in taken if own.kind is not own.VAR_KEYWORD]
    others = [own for own in taken if own.kind is own.VAR_KEYWORD]
    swallows = any("TransformersKwargs" in str(own.annotation) for own in others)
    return (*named[1:], *TransformersKwargs.__annotations__, "return_dict"), swallows


def _is_off(name: str, value: Any) -> bool:
    if isinstance(value, Tensor):
        return name == "token_type_ids" and on_host(value) and not bool(value.any())
    return value is None or value is OFF.get(name, False)


def check_attention_mask(mask: Tensor | None) -> None:
    """Raises ``ValueError`` for an ``attention_mask`` that is not ``[B, L]`` of truth values, or of 0 and 1.

    An additive mask, 0 for "attended" and a large negative number for "not", would be read the other way round. Numbers on a
    device are not looked at: the host would wait.
    """
    if mask is None:
        return
    wrong = f"{mask.dtype} {list(mask.shape)}" if mask.dim() != 2 or mask.is_floating_point() else ""
    if not wrong and mask.dtype != torch.bool and on_host(mask) and not torch.compiler.is_compiling():
        wrong = "other numbers" if bool((mask.clamp(0, 1) != mask).any()) else ""
    if wrong:
        raise ValueError(
            f"attention_mask is {wrong}: give [B, L] of truth values, or of whole numbers 0 and 1, where 1 is a real token; an "
            "additive mask is not read"
        )

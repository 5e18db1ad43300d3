"""Putting LoRA (or any PEFT adapter) on a policy, with the mistakes that PEFT accepts in silence made errors."""

from __future__ import annotations

import copy

from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel


def add_adapter(model: PreTrainedModel | PeftModel, config: PeftConfig | None) -> PreTrainedModel | PeftModel:
    """The model with the adapter of ``config``; ``target_modules`` defaults to every linear layer but the head.

    Raises:
        ValueError: a target that matches nothing or hits the head; a config for a model that already has adapters.
    """
    if config is None:
        return model
    if isinstance(model, PeftModel):
        raise ValueError(
            "peft_config is given for a model that is a PeftModel already: pass one of the two, or merge the adapter"
        )
    config = copy.deepcopy(config)
    # CAUSAL_LM makes PEFT look for autoregressive generation, which a diffusion policy does not have.
    config.task_type = None
    if getattr(config, "target_modules", None) is None:
        config.target_modules = "all-linear"
    wanted = config.target_modules
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ValueError(f"lora target_modules={wanted!r}: {error}") from error
    _check_targets(adapted, wanted)
    return adapted


def _check_targets(model: PeftModel, wanted: str | list[str] | set[str]) -> None:
    base = model.get_base_model()
    head = base.get_output_embeddings()
    names = [name for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)]
    if isinstance(head, BaseTunerLayer) or type(head).__name__ == "ModulesToSaveWrapper":
        raise ValueError(
            f"lora target_modules={wanted!r} or modules_to_save hits the LM head, which must stay frozen; use "
            "'all-linear', or a regex such as '.*blocks.*(q_proj|v_proj|ff_out)'"
        )
    if isinstance(wanted, str):
        return
    unmatched = sorted(t for t in wanted if not any(name == t or name.endswith(f".{t}") for name in names))
    if unmatched:
        linear = sorted({name.rsplit(".", 1)[-1] for name in names})
        raise ValueError(
            f"lora target_modules={unmatched} match no module of {type(base).__name__}, so they would stay frozen "
            f"without a word; matched are {linear}. 'all-linear' takes every layer but the head"
        )

"""The reference policy of the KL term: adapters off, a frozen adapter, or a frozen copy of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn


ADAPTER = "ref"


def is_peft(model: nn.Module) -> bool:
    """True for a PeftModel; peft is imported only when the model could be one."""
    if type(model).__module__.partition(".")[0] != "peft":
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def belongs_to(adapter: str, parameter: str) -> bool:
    """Whether a parameter of this name is the adapter's. Of a ParameterDict the name ends in the adapter's."""
    return adapter in parameter.split(".")


def freeze_adapter_copy(model: nn.Module) -> None:
    """Adds a frozen copy of the trained adapter: the reference where the adapter turned off is not the start.

    It is filled as PEFT fills an adapter from a file, which also knows what is not a parameter: indices, projections.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    active = model.active_adapter
    config = copy.deepcopy(model.peft_config[active])
    if getattr(config, "init_lora_weights", True) is not True:
        # PiSSA and its like would take a second part out of the base.
        config.init_lora_weights = True
    if hasattr(config, "bias"):
        # Biases of the base are nobody's copy; PEFT lets one adapter have them.
        config.bias = "none"
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.add_adapter(ADAPTER, config)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        twin = ".".join(active if part == ADAPTER else part for part in name.split("."))
        if name not in trained and twin in parameters:
            parameter.data = parameter.data.to(parameters[twin].dtype)
    state = get_peft_model_state_dict(model, adapter_name=active, save_embedding_layers=False)
    set_peft_model_state_dict(model, state, adapter_name=ADAPTER)
    model.set_adapter(active)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained.get(name, False))


def reload_adapters(model: nn.Module, folder: str) -> None:
    """The weights of all adapters from a ``folder`` that ``trained_at_the_top`` has arranged; what is trained stays so."""
    active = model.active_adapter
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for name in model.peft_config:
        place = Path(folder) if name == active else Path(folder, name)
        if place.is_dir():
            model.load_adapter(str(place), name, is_trainable=name == active)
    model.set_adapter(active)
    for parameter, requires_grad in trained:
        parameter.requires_grad_(requires_grad)


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy without gradients, in eval mode."""
    twin = copy.deepcopy(model).eval()
    return twin.requires_grad_(False)


def reference_context(model: nn.Module, wrapped: Callable[[], Any], twin: nn.Module | None) -> Callable:
    """A function that opens the context in which the yielded module is the reference policy.

    Args:
        model: the unwrapped policy.
        wrapped: gives the module to call for the policy, wrapped by the engine.
        twin: the frozen copy of full fine-tuning, None with adapters.
    """

    @contextmanager
    def reference() -> Iterator[Any]:
        """The module to call as the reference policy."""
        if twin is not None:
            yield twin
        elif ADAPTER in model.peft_config:
            active = model.active_adapter
            trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
            model.set_adapter(ADAPTER)
            try:
                yield wrapped()
            finally:
                model.set_adapter(active)
                for parameter, requires_grad in trained:
                    parameter.requires_grad_(requires_grad)
        else:
            with model.disable_adapter():
                yield wrapped()

    return reference

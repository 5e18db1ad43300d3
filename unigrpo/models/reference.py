"""The reference policy of the KL term: adapters off, a frozen adapter, or a frozen copy of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


ADAPTER = "ref"


def is_peft(model: nn.Module) -> bool:
    """True for a PeftModel; peft is imported only when the model could be one."""
    if type(model).__module__.partition(".")[0] != "peft":
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def freeze_adapter_copy(model: nn.Module) -> None:
    """Adds a frozen copy of the trained adapter, the reference of a run that goes on from an existing adapter."""
    active = model.active_adapter
    model.add_adapter(ADAPTER, model.peft_config[active])
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if f".{ADAPTER}." in name:
            parameter.data.copy_(parameters[name.replace(f".{ADAPTER}.", f".{active}.")].data)
            parameter.requires_grad_(False)
    model.set_adapter(active)


def reload_trained_adapter(model: nn.Module, folder: str) -> None:
    """The active adapter's weights from ``folder``, trainable, with the frozen copy left as it is."""
    active = model.active_adapter
    model.load_adapter(folder, active, is_trainable=True)
    model.set_adapter(active)


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
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            model.set_adapter(ADAPTER)
            try:
                yield wrapped()
            finally:
                model.set_adapter(active)
                for parameter in trained:
                    parameter.requires_grad_(True)
                for name, parameter in model.named_parameters():
                    if f".{ADAPTER}." in name:
                        parameter.requires_grad_(False)
        else:
            with model.disable_adapter():
                yield wrapped()

    return reference

"""LLaDA2 as a masked-diffusion network: the layers of transformers' Glm4Moe, which compute what LLaDA2's do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Glm4MoeModel, Glm4MoePreTrainedModel
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter

from ..decoder.modeling import MaskedDecoder
from .configuration import LLaDA2MoeConfig
from .names import of_layers


class Router(Glm4MoeTopkRouter):
    """Which experts see a token. Autocast is off, so that the choice is made in fp32 as in the public code."""

    def forward(self, hidden_states: Tensor) -> Any:
        """``[..., d]`` to fp32 logits ``[n, experts]``, and weights and indices of the chosen, each ``[n, k]``."""
        with torch.autocast(hidden_states.device.type, enabled=False):
            return super().forward(hidden_states)


class _WithExperts:
    """A mixin for what transformers takes from a class of Glm4Moe and from its file."""

    # Glm's checkpoints have layers that nobody reads; here a layer without a place is an error.
    _keys_to_ignore_on_load_unexpected = None

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """True: a decorator is looked for in the class's own file, and the experts have it in theirs."""
        return True


class LLaDA2MoeModel(_WithExperts, Glm4MoeModel):
    """Glm4Moe's trunk with routers that stay in fp32."""

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__(config)
        for layer in self.layers[config.first_k_dense_replace :]:
            layer.mlp.gate = Router(config)


class LLaDA2MoeForMaskedDiffusion(_WithExperts, MaskedDecoder, Glm4MoePreTrainedModel):
    """LLaDA2.0-mini and LLaDA2.1-mini. Modules are named as Glm4Moe's; files keep the published names (``names.py``)."""

    config_class = LLaDA2MoeConfig
    trunk_class = LLaDA2MoeModel
    _keep_in_fp32_modules_strict = ["e_score_correction_bias"]

    set_experts_implementation = Glm4MoePreTrainedModel.set_experts_implementation

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of every module; also a file's published names, under which ``Trainer`` finds its checkpoints."""
        if not state_dict.keys() <= self.state_dict().keys():
            state_dict = of_layers(self.config, dict(state_dict))
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

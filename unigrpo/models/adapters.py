"""Putting LoRA (or any PEFT adapter) on a policy, with the mistakes that PEFT accepts in silence made errors."""

from __future__ import annotations

import copy
import functools
import shutil
from pathlib import Path

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from torch import nn
from transformers import PreTrainedModel

from .reference import ADAPTER, belongs_to, freeze_adapter_copy


REFUSED = {
    "ADALORA": "its ranks follow a schedule that PEFT has to be told of after each step; use LoRA, with rank_pattern for "
    "other ranks in other layers",
    "ADAPTION_PROMPT": "it is written for the causal attention of some models; use LoRA",
    "POLY": "each of its forwards wants to know the task; use LoRA",
    "SHADOW": "it runs a second, causal model beside the first; use LoRA",
    "XLORA": "it mixes adapters that are trained already; merge one of them into the model, and train LoRA on it",
    "PVERA": "it draws noise in each forward, so that a ratio of the unmoved policy is not 1; use VeRA",
}
"""Kinds of adapters that cannot be trained here, with the reason and the cure."""

REFUSED_OF_LORA = {
    "alora_invocation_tokens": "the adapter starts behind given tokens of a causal prompt; leave it out",
    "arrow_config": "it mixes adapters that are trained already; leave it out",
    "layer_replication": "it is written for other networks; leave it out",
    "monteclora_config": "it draws noise in each forward, so that a ratio of the unmoved policy is not 1; leave it out",
}

REFUSED_INITS = {
    "corda": "it takes a part out of the base that a saved adapter cannot name; use 'pissa'",
    "lora_ga": "it takes a part out of the base that a saved adapter cannot name; use 'pissa'",
    "loftq": "it changes the base, which a saved adapter cannot name; use load_in_4bit with init_lora_weights=True",
    "pissa_niter": "its random decomposition gives another base whenever the adapter is opened; use 'pissa'",
}

VARIANTS_OFF_THE_START = ("kasa_config", "use_bdlora", "use_qalora", "velora_config")


def add_adapter(model: PreTrainedModel | PeftModel, config: PeftConfig | None) -> PreTrainedModel | PeftModel:
    """The model with the adapter of ``config``; ``target_modules`` defaults to every linear layer but the head.

    A configuration that was read from a saved adapter is trained like a fresh one.

    Raises:
        ValueError: a target that matches nothing or hits the head; a config for a model that already has adapters; a kind of
            adapter that cannot be trained; a model that takes none (``no_adapters`` of its class says why).
    """
    if config is None:
        return model
    if isinstance(model, PeftModel):
        raise ValueError(
            "peft_config is given for a model that is a PeftModel already: pass one of the two, or merge the adapter"
        )
    check_adapter(config)
    if (refused := getattr(model, "no_adapters", None)) is not None:
        raise ValueError(f"peft_config: {refused}")
    if getattr(config, "init_lora_weights", None) == "eva":
        raise ValueError(
            "init_lora_weights='eva' needs data before the run: give the trainer the PeftModel that "
            "peft.initialize_lora_eva_weights has filled, or use init_lora_weights=True"
        )
    _check_token_rows(config, model.get_input_embeddings().weight.shape[0])
    config = copy.deepcopy(config)
    config.inference_mode = False
    # CAUSAL_LM makes PEFT look for autoregressive generation, which a diffusion policy does not have.
    config.task_type = None
    aimed = getattr(config, "target_parameters", None)
    if hasattr(config, "target_modules") and config.target_modules is None and not aimed:
        config.target_modules = "all-linear"
    wanted = getattr(config, "target_modules", None) or []
    try:
        adapted = get_peft_model(model, config)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{describe(config)} target_modules={wanted!r}: {error}") from error
    _check_targets(adapted, wanted)
    return adapted


def _check_token_rows(config: PeftConfig, count: int | None = None) -> None:
    """Raises ``ValueError`` for ``trainable_token_indices`` that name no token of the ``count`` that there are; None = unknown yet."""
    given, last = getattr(config, "trainable_token_indices", None), "" if count is None else f" to {count - 1}"
    for rows in given.values() if isinstance(given, dict) else [] if given is None else [given]:
        if not rows or not all(0 <= row < (count or row + 1) for row in rows):
            raise ValueError(
                f"peft_config: trainable_token_indices={given!r} must be ids of tokens, from 0{last or ' on'}; leave it out to train none"
            )


def describe(config: PeftConfig) -> str:
    """How messages call an adapter: its kind and, of LoRA, how it starts."""
    kind = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    init = getattr(config, "init_lora_weights", True)
    return kind if init is True else f"{kind} (init_lora_weights={init!r})"


def check_adapter(config: PeftConfig) -> None:
    """Raises ``ValueError`` for a kind of adapter that cannot be trained; the message names the cure."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    what = f"peft_config: {type(config).__name__} cannot be trained here: "
    if config.is_prompt_learning:
        raise ValueError(
            f"{what}its virtual tokens stand before a causal prompt, and a canvas has no place for them; use LoRA"
        )
    if kind in REFUSED:
        raise ValueError(what + REFUSED[kind])
    if not isinstance(config, LoraConfig):
        return
    _check_token_rows(config)
    for name, reason in REFUSED_OF_LORA.items():
        if getattr(config, name, None):
            raise ValueError(f"peft_config: {name} of LoRA cannot be used here: {reason}")
    init = config.init_lora_weights
    for name, reason in REFUSED_INITS.items():
        if isinstance(init, str) and init.lower().startswith(name):
            raise ValueError(f"peft_config: init_lora_weights={init!r} cannot be used here: {reason}")


def off_is_start(config: PeftConfig) -> bool:
    """Whether a fresh adapter changes nothing, to the bit, so that the reference is the model with the adapter turned off."""
    if type(config) is not LoraConfig or config.init_lora_weights not in (True, "gaussian"):
        return False
    return not any(getattr(config, name, None) for name in VARIANTS_OFF_THE_START)


def keep_start(model: PeftModel, fresh: bool) -> None:
    """Makes sure that there is a reference that stays what the model is now, also while its active adapter is trained.

    Args:
        fresh: the adapter was added just now.

    Raises:
        ValueError: parameters outside the adapter are trained, or the name of the frozen copy is taken.
    """
    active = model.active_adapter
    stray = [name for name, own in model.named_parameters() if own.requires_grad and not belongs_to(active, name)]
    if stray:
        raise ValueError(
            f"{len(stray)} trained parameters lie outside the adapter {active!r} ({', '.join(stray[:3])}), and the "
            "reference of the KL would move with them: freeze them (bias='none' in peft_config), or set beta=0"
        )
    if ADAPTER in model.peft_config:
        raise ValueError(
            f"an adapter is called {ADAPTER!r}, as the frozen copy for the KL is: give it another name, or remove it with "
            f"model.delete_adapter({ADAPTER!r})"
        )
    if not fresh or not off_is_start(model.peft_config[active]):
        freeze_adapter_copy(model)


def check_trains(model: nn.Module, optimizer: object = None) -> None:
    """Raises ``ValueError`` unless something requires a gradient and, where an ``optimizer`` is given, is in it."""
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    if isinstance(model, PeftModel):
        _check_active(model)
        cure = "load the PeftModel with from_pretrained(..., is_trainable=True), or call model.set_adapter(name)"
    else:
        cure = "call model.requires_grad_(True), which merging an adapter takes away, or give peft_config"
    if not trained:
        raise ValueError(f"the {type(model).__name__} has nothing to train, no parameter requires a gradient: {cure}")
    groups = getattr(optimizer, "param_groups", None)
    if groups is not None and trained.isdisjoint(id(own) for group in groups for own in group["params"]):
        raise ValueError(
            "optimizers: the given optimizer holds none of the parameters that are trained; make it from "
            "[p for p in model.parameters() if p.requires_grad] of the model that is given, without peft_config"
        )


def _check_active(model: PeftModel) -> None:
    names = list(getattr(model.base_model, "active_adapters", [model.active_adapter]))
    if len(names) > 1:
        raise ValueError(
            f"adapters {names} are active at once: call model.set_adapter(name) with the one to train, or join them with "
            "add_weighted_adapter"
        )
    trained = [name for name, own in model.named_parameters() if own.requires_grad]
    if trained and not any(belongs_to(model.active_adapter, name) for name in trained):
        raise ValueError(
            f"the active adapter {model.active_adapter!r} has nothing to train, while {trained[0]} requires a gradient: call "
            "model.set_adapter(name) with the one to train"
        )


def merged(model: PeftModel) -> nn.Module:
    """The base model with the adapter in its weights.

    Raises:
        ValueError: PEFT cannot merge this kind of adapter into this model.
    """
    config = model.peft_config[model.active_adapter]
    untie_adapted(model.get_base_model())
    try:
        return model.merge_and_unload()
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{describe(config)} cannot be merged: {str(error).rstrip('.')}; keep the folder of the adapter, "
            "which load_policy opens too"
        ) from error


def untie_adapted(base: nn.Module) -> None:
    """Gives the head weights of its own where it shares those of the embeddings, and an adapter is to be merged into these alone."""
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    if isinstance(embeddings, BaseTunerLayer) and head is not None and head.weight is embeddings.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        for name in {"tie_word_embeddings", "weight_tying"} & vars(base.config).keys():
            setattr(base.config, name, False)


def trained_at_the_top(model: PeftModel, folder: str | Path) -> None:
    """Moves the files of the active adapter to the top of a saved ``folder``, where whoever opens it looks.

    PEFT puts the one called "default" there, and the others into folders of their names.
    """
    folder, active = Path(folder), model.active_adapter
    if active == "default" or not (folder / active).is_dir():
        return
    other = folder / "default"
    for file in folder.glob("adapter_*"):
        other.mkdir(exist_ok=True)
        file.replace(other / file.name)
    for file in (folder / active).glob("adapter_*"):
        file.replace(folder / file.name)
    shutil.rmtree(folder / active)


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


def keep_out_vocabulary(model: PeftModel) -> None:
    """Saves of the adapters hold no copy of the base's embeddings, unless an adapter stands on them.

    peft would compare the vocabulary with the base's configuration, which it does not find behind ``builtin:`` or offline. No
    vocabulary is resized here: ``resize_token_embeddings`` is refused.
    """
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    if not names & set(EMBEDDING_LAYER_NAMES):
        model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)  # type: ignore[method-assign]  # of this one

"""What a trainer is put together from: its model, its rewards, its evaluation sets, its defaults."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback

from ..algorithm.combining import read_terms
from ..algorithm.noising import AutoregressiveNoising
from ..config.arguments import UniGRPOConfig
from ..config.build import Algorithm
from ..config.run_checks import settle_best_model
from ..data.image_codes import ImageCodec, load_tokenizer, tokenizer_name
from ..models import DiffusionPolicy, policy_class_of
from ..models.adapter_files import adapter_digest
from ..models.adapters import add_adapter, check_adapter, check_trains, keep_out_vocabulary, keep_start, merged
from ..models.builtin import model_name, model_path
from ..models.hub import asking_once
from ..models.loading import check_from_scratch
from ..models.opening import lineage, open_model
from ..models.processing import settle_template
from ..models.quantization import check_quantization, prepare_quantised
from ..rollout.rewards import RewardSet, offload, resolve_reward
from ..terminal import masked
from .checkpoints.files import check_writable


def check_arguments(args: UniGRPOConfig) -> None:
    """Raises ``ValueError`` for arguments that no trainer can follow, and for an ``output_dir`` that takes no files."""
    if args.should_save:
        check_writable(args.output_dir)
    if args.n_gpu > 1:
        raise ValueError(f"{args.n_gpu} GPUs are visible to one process; start with `accelerate launch`")
    if args.ignore_data_skip:
        raise ValueError(
            "ignore_data_skip=True would go on with other rows than those that the run was at; leave it False"
        )


def settle_early_stopping(args: Any, callbacks: list[TrainerCallback] | None, usual: str) -> None:
    """``metric_for_best_model`` for a callback that stops a run early, as ``settle_best_model`` has it.

    Raises:
        ValueError: nothing is evaluated on the way.
    """
    for own in callbacks or []:
        if isinstance(own, EarlyStoppingCallback):
            settle_best_model(args, usual, type(own).__name__)


@asking_once()
def load_trainable(
    model: str,
    policy: str | type[DiffusionPolicy] | None,
    init_kwargs: dict[str, Any] | str | None,
    args: UniGRPOConfig,
    adapters: bool,
) -> PreTrainedModel | PeftModel:
    """A policy's module from a hub id, path or ``builtin:NAME``, in the checkpoint's dtype unless told otherwise.

    From an adapter's folder it is the ``PeftModel`` to go on with; where further ``adapters`` will be put on it, its base with that
    adapter merged in.

    Its attribute ``load_again`` loads a whole model once more, for engines under which it cannot be copied, and
    ``saved_processor`` is what was saved beside an adapter, ``base_adapter`` the digest of an adapter that was merged into it. With
    ``from_scratch=True`` among ``init_kwargs`` the weights are drawn from the run's ``seed``, and none are read.

    Raises:
        ValueError: text in place of options, quantised weights that no adapter will be put on, that one would be merged into, or
            without the package for them; options that the model does not take.
    """
    if isinstance(init_kwargs, str):
        raise ValueError(
            "model_init_kwargs is a text, which is not shown in case it has a token: give a mapping, or JSON of one"
        )
    adapted = len(lineage(model)) > 1
    check_from_scratch(init_kwargs, adapters or adapted)
    check_quantization(init_kwargs, adapters or adapted)
    options = {"dtype": "auto", **(init_kwargs or {})}
    if options.get("quantization_config") is not None:
        # Made of the weights while they are loaded, on the device that has to compute with them.
        options.setdefault("device_map", {"": str(args.device)})
    try:
        opened = open_model(model, policy, trained=not adapters, seed=args.seed, **options)
    except TypeError as error:
        raise ValueError(f"model_init_kwargs={masked(init_kwargs)}: {error}") from error
    module = opened.model
    if adapted and adapters:
        if getattr(module.get_base_model(), "is_quantized", False):
            raise ValueError(
                f"{model!r} is an adapter on a quantised base, and a new one needs it merged, which would round it: leave out lora "
                "(peft_config) to go on with that adapter, or start from what `unigrpo merge` makes of it"
            )
        module = merged(module)
        module.base_adapter = adapter_digest(model_path(model))
    elif not adapted:
        fresh = options.pop("from_scratch", False)
        load = partial(opened.family.fresh_model, seed=args.seed) if fresh else opened.family.load_model
        module.load_again = partial(load, model_path(model), **options)
    base = module.get_base_model() if isinstance(module, PeftModel) else module
    base.saved_processor = opened.processor
    if not isinstance(module, PeftModel):
        # What an adapter on it names as its base.
        base.name_or_path = model
    return module


def load_codec(tokenizer: Any, policy: DiffusionPolicy, offload: bool = False) -> ImageCodec | None:
    """The image tokenizer of a run: an id, a path, ``builtin:NAME``, a module, or None for the policy's own.

    None where the policy has none either. ``offload`` is the run's ``offload_image_tokenizer``.
    """
    tokenizer = policy.image_tokenizer if tokenizer is None else tokenizer
    if tokenizer is None:
        return None
    tokenizer = load_tokenizer(model_path(tokenizer) if isinstance(tokenizer, str) else tokenizer)
    return ImageCodec(tokenizer, policy, offload)


def opened(
    model: str | PreTrainedModel | PeftModel,
    args: Any,
    policy: str | type[DiffusionPolicy] | None,
    processing_class: Any,
    adapted: bool,
) -> tuple[PreTrainedModel | PeftModel, Any, DiffusionPolicy]:
    """The module that a run trains, the network under its adapters, and its description, as the run's arguments want them.

    ``adapted``: a new adapter will be put on it.
    """
    if isinstance(model, str):
        model = load_trainable(model, policy, args.model_init_kwargs, args, adapted)
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if args.attn_mask_mode is not None:
        base.config.attn_mask_mode = args.attn_mask_mode
    described = policy_class_of(base, policy).from_model(base, processing_class)
    return model, base, settle_template(described, args.chat_template_kwargs)


def settle_tokenizer(args: Any, base: Any) -> Any:
    """The image tokenizer as it was given; ``args`` and the model's configuration keep its name.

    Saved with the weights, so that pictures are decoded later by what they were trained with.
    """
    given, args.image_tokenizer = args.image_tokenizer, tokenizer_name(args.image_tokenizer)
    if isinstance(given, str) and hasattr(base.config, "image_tokenizer"):
        base.config.image_tokenizer = given
    return given


def reward_set(
    functions: Any,
    processing_classes: Any,
    weights: list[float] | None,
    on_error: str = "raise",
    timeout: float | None = None,
    offload_models: bool = False,
    terms: list[dict[str, Any]] | None = None,
) -> RewardSet:
    """The rewards of a run, names and models resolved, each model reward with its own tokenizer.

    ``on_error``, ``timeout``, ``offload_models`` and ``terms`` are the run's ``reward_error``, ``reward_timeout``,
    ``offload_reward_models`` and ``reward_terms``.
    """
    functions = list(functions) if isinstance(functions, list | tuple) else [functions]
    classes = processing_classes
    if not isinstance(classes, list | tuple):
        classes = [classes] * len(functions)
    if len(classes) != len(functions):
        raise ValueError(f"reward_processing_classes has {len(classes)} entries for {len(functions)} rewards")
    resolved = [resolve_reward(function, own) for function, own in zip(functions, classes, strict=True)]
    offload(resolved, offload_models)
    read = None if terms is None else read_terms(terms)
    return RewardSet(functions=resolved, weights=weights, terms=read, on_error=on_error, timeout=timeout)


def check_policy_keys(algorithms: Mapping[str, Algorithm], policy: DiffusionPolicy) -> None:
    """Raises ``ValueError`` for keys that mean nothing with ``policy``: its answers would all count as cut off, or have no blocks."""
    text = [algorithms[task] for task in ("text", "mmu", "thought")]
    if any(own.settings.mask_truncated_completions for own in text) and not policy.stop_token_ids:
        raise ValueError(
            f"mask_truncated_completions=True leaves every answer out of the loss: {type(policy).__name__} has no stop token "
            "that would end one. Leave it False"
        )
    if policy.block_size is None and any(getattr(own.noising, "noise_per", None) == "block" for own in text):
        raise ValueError(
            f"noise_per='block': the attention of {type(policy).__name__} is not in blocks. Leave it out, or load the model with "
            "attention='block_causal' and its block_size"
        )
    if policy.mask_token_id is None and policy.block_size is not None:
        _check_random_blocks(algorithms["text"], type(policy).__name__)


def _check_random_blocks(algorithm: Algorithm, name: str) -> None:
    """Raises ``ValueError`` for noise whose meaning rests on masks or on the order of writing, of a model that denoises random tokens."""
    noising, chosen = algorithm.noising, algorithm.settings.choice("noising").name
    cure = "set noising='structured' with weighting='uniform'"
    if noising.reads_step_map or isinstance(noising, AutoregressiveNoising):
        raise ValueError(
            f"noising={chosen!r} follows the order in which tokens were written, and {name} denoises a whole canvas at once: {cure}"
        )
    if getattr(noising, "weighting", "uniform") == "inverse_probability":
        raise ValueError(
            f"weighting='inverse_probability' estimates a bound of the evidence, and {name}, which denoises random tokens, has none: "
            f"{cure}"
        )


def warn_of_waits(args: UniGRPOConfig, rewards: RewardSet) -> None:
    """Warns where rewards that hang on one process may take longer than the others wait for it."""
    longest = (rewards.timeout or math.inf) * len(rewards.functions)
    if args.world_size > 1 and longest > args.ddp_timeout:
        warnings.warn(
            f"{len(rewards.functions)} rewards with reward_timeout={rewards.timeout} may take {longest:g} s, and processes wait "
            f"ddp_timeout={args.ddp_timeout} s for each other: a reward that hangs would end the run without its name. Lower "
            "reward_timeout or raise ddp_timeout"
        )


def named_sets(dataset: Any) -> list[tuple[str, Any]]:
    """Evaluation sets with the names that errors use."""
    if dataset is None:
        return []
    if isinstance(dataset, dict):
        return [(f"eval_dataset[{name!r}]", part) for name, part in dataset.items()]
    return [("eval_dataset", dataset)]


def trainable(
    model: PreTrainedModel | PeftModel,
    peft_config: PeftConfig | None,
    args: UniGRPOConfig,
    with_reference: bool,
    optimizer: torch.optim.Optimizer | None = None,
) -> PreTrainedModel | PeftModel:
    """The module that is trained: with its adapter, with a frozen copy where its start is not the adapter turned off,
    without dropout.

    Raises:
        ValueError: a module of which nothing is trained or reaches the given ``optimizer``, an adapter that cannot be trained,
            or quantised weights without an adapter.
    """
    was_adapted = isinstance(model, PeftModel)
    prepare_quantised(model, adapters=was_adapted or peft_config is not None)
    # A new adapter's weights are random: they are the run's seed's, whatever was drawn before.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(args.seed)
        model = add_adapter(model, peft_config)
        check_trains(model, optimizer)
        if isinstance(model, PeftModel):
            check_adapter(model.peft_config[model.active_adapter])
            if with_reference:
                keep_start(model, fresh=not was_adapted)
            keep_out_vocabulary(model)
    if isinstance(model, PeftModel):
        for config in model.peft_config.values():
            # It is saved: the name of what ships, and no folder of this machine.
            config.base_model_name_or_path = model_name(config.base_model_name_or_path or "") or None
        if args.gradient_checkpointing:
            model.enable_input_require_grads()
    else:
        warn_of_half_precision(model)
    if args.disable_dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return model


def warn_of_half_precision(model: nn.Module) -> None:
    """Warns when weights that would round small steps away are trained themselves."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    if dtypes & {torch.bfloat16, torch.float16}:
        warnings.warn(
            f"the whole model is trained in {sorted(map(str, dtypes))}: steps of a usual learning rate round to nothing "
            "there. Load it in float32 (model_init_kwargs={'dtype': 'float32'} with bf16=True), or train adapters"
        )


def default_learning_rate(args: UniGRPOConfig, adapters: bool) -> float:
    """1e-6 for the whole model, 5e-6 for adapters, unless set."""
    if args.learning_rate is not None:
        return args.learning_rate
    return 5e-6 if adapters else 1e-6

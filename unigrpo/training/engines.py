"""What accelerate's engines (DDP, FSDP2, DeepSpeed ZeRO) need beyond ``accelerator.prepare``."""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from packaging.version import Version
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from ..config.build import Algorithm
from ..models.reference import frozen_copy


FSDP2_NEEDS = "1.15"
"""The first accelerate that resumes an adapter under FSDP2 as it was, and wraps embedding and head by themselves."""


def settle_precision(accelerator: Accelerator) -> None:
    """FSDP2's precision: bf16 (or fp16) weights in a forward, fp32 gradients between processes, outputs left as they are.

    accelerate's own policy also casts what a forward is given and what it returns. Log-probabilities leave the model in
    fp32, and those of a reference enter it in fp32: in bf16 a ratio of 1 could not be told from 1.008.

    Raises:
        ValueError: FSDP2 with an accelerate that is too old for it.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None or plugin.fsdp_version != 2:
        return
    found = importlib.metadata.version("accelerate")
    if Version(found) < Version(FSDP2_NEEDS):
        raise ValueError(
            f"FSDP2 with accelerate {found}, which goes on from a checkpoint with other adapter weights than it saved: "
            f'pip install "accelerate>={FSDP2_NEEDS}"'
        )
    policy = plugin.mixed_precision_policy
    if policy is None:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=policy.param_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


@contextmanager
def accumulating(accelerator: Accelerator, model: nn.Module, last: bool) -> Iterator[None]:
    """The block's backward passes; gradients meet (and DeepSpeed steps) only in the ``last`` of an optimizer step."""
    sync = accelerator.sync_gradients
    if last and sync:
        yield
        return
    # DeepSpeed knows nothing of no_sync: its engine steps wherever accelerate says that gradients are synchronised.
    accelerator.gradient_state._set_sync_gradients(False)
    try:
        with accelerator.no_sync(model):
            yield
    finally:
        accelerator.gradient_state._set_sync_gradients(sync)


def reference_copy(model: nn.Module) -> nn.Module:
    """The frozen reference of full fine-tuning; under ZeRO-3, whose weights cannot be copied, loaded again.

    Raises:
        ValueError: ZeRO-3 with a model that does not know how to load itself again.
    """
    if not is_deepspeed_zero3_enabled():
        return frozen_copy(model)
    if not hasattr(model, "load_again"):
        raise ValueError(
            "ZeRO-3 shards the model while it is loaded, so its reference has to be loaded again, and this model was made "
            "elsewhere: give the trainer a path or hub id, set model.load_again to a function that loads it once more, train "
            "an adapter, or set beta=0"
        )
    twin = model.load_again()
    # What was set on the model's configuration after it was loaded holds for both.
    vars(twin.config).update(copy.deepcopy(vars(model.config)))
    return twin.eval().requires_grad_(False)


def prepare_reference(accelerator: Accelerator, twin: nn.Module, sync: bool = False) -> nn.Module:
    """The frozen reference on this process's device, sharded where the policy is and in the dtype that it computes in.

    Raises:
        ValueError: ``sync``, a reference that is mixed with the policy now and then, of weights that are sharded.
    """
    if sync and (accelerator.is_fsdp2 or accelerator.distributed_type == DistributedType.DEEPSPEED):
        raise ValueError(
            "sync_ref_model=True mixes whole weights, and this engine shards or casts them: set it to False, or use DDP"
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from trl.models import prepare_deepspeed

        return prepare_deepspeed(twin, accelerator)
    if accelerator.is_fsdp2:
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        return fsdp2_prepare_model(accelerator, twin)
    return accelerator.prepare_model(twin, device_placement=True, evaluation_mode=True)


def check_same_graph(accelerator: Accelerator, algorithms: dict[str, Algorithm], tasks: list[str]) -> None:
    """Raises ``ValueError`` for tasks that ZeRO-3 cannot train in one run.

    It compares the modules that processes visit, forward and backward; the exact KL's own gradient counts as one more visit.
    """
    exact = {task: algorithms[task].settings.exact_kl for task in tasks}
    if is_deepspeed_zero3_enabled() and accelerator.num_processes > 1 and len(set(exact.values())) > 1:
        estimated = [task for task, own in exact.items() if not own]
        raise ValueError(
            f"kl_estimator: ZeRO-3 needs the same kind of KL for all tasks of a run, and {estimated} estimate it while "
            f"{[task for task in exact if exact[task]]} take it exactly; set kl_estimator to k3 in their task_overrides, or "
            "use FSDP2 or ZeRO-2"
        )


def engine_of(accelerator: Accelerator, model: nn.Module) -> dict[str, Any]:
    """What trains the model: the engine that was really set up, which accelerate may choose otherwise than asked.

    Returns:
        ``kind``, ``processes``, ``wrapper`` (the class around the model), ``sharded_units`` (modules that FSDP gathers and
        frees by themselves) and DeepSpeed's ``zero_stage``, where they apply.
    """
    from torch.distributed.fsdp import FSDPModule

    found: dict[str, Any] = {"kind": accelerator.distributed_type.value, "processes": accelerator.num_processes}
    found["wrapper"] = type(model).__name__
    units = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
    if units:
        found |= {"kind": "FSDP2", "sharded_units": units}
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None:
        found["zero_stage"] = plugin.zero_stage
    return found

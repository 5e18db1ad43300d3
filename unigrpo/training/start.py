"""Whether a run starts where it says: until the first optimizer step every ratio is 1, and the KL to the reference is 0.

It is measured once a run, on some tokens of the first window, because it depends on more than this library: on the kind of
adapter, the version of PEFT, the engine, and on whatever a model does in train mode only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..algorithm.likelihood import score_tokens
from ..models.adapters import describe
from ..models.reference import is_peft
from ..rollout.pipeline import Pipeline
from .batches import collate
from .diagnostics import thinned
from .old_and_reference import in_step
from .window import Window


EXACT, ROUNDED = 1e-3, 0.2
"""Mean differences of log-probabilities, in nats, that rounding explains: of fp32, and of anything coarser or compiled.

The two sides run the same kernels on the same numbers, so that they differ by 0 as a rule, and by another order of sums where
train mode has kernels of its own. fp32 holds a logit of 50 to 3e-6 and loses a digit or two over all layers; bf16, fp16 and
8 bits hold it to 0.4 %, and the published models answer by 0.01 to 0.1 nats otherwise from one kernel to another. An adapter that is
not the identity at the start, or noise in train mode, is off by 0.3 to 3.
"""


@torch.no_grad()
def check_start(pipe: Pipeline, model: nn.Module, window: Window) -> None:
    """Compares the policy in eval mode with itself in train mode and with the reference, on the window's first unit.

    Makes two forwards, and one of the reference where a task has one. Nothing is recorded, and no random number is used up.

    Args:
        model: the unwrapped policy, which has not been trained yet.

    Raises:
        ValueError: they differ by more than rounding, on any rank; the message names the adapter and the cure.
    """
    units = [unit for step in window.micro_batches for unit in step]
    if not units:
        return
    batch = collate(window.experiences, units[0], 0, pipe.policy, pipe.device)
    settings = pipe.algorithms[batch.canvas.task].settings
    target = thinned(batch.target)

    def logps(module: nn.Module) -> Tensor:
        arguments = (batch.canvas, batch.hidden, target, batch.noisy_ids)
        return score_tokens(module, pipe.policy, *arguments, settings.temperature, settings.likelihood_guidance).logps[
            target
        ]

    devices = [torch.device(pipe.device)] if torch.device(pipe.device).type != "cpu" else []
    with torch.random.fork_rng(devices, device_type=devices[0].type if devices else "cuda"):
        with in_step(pipe.model, pipe.policy, pipe.device) as module:
            own = logps(module)
            if pipe.args.disable_dropout:
                pipe.model.train()
            again = logps(module)
        reference = own
        if any(algorithm.settings.needs_reference for algorithm in pipe.algorithms.values()):
            with pipe.reference() as other, in_step(other, pipe.policy, pipe.device) as module:
                reference = logps(module)
    found = torch.stack([_apart(own, again).sum(), _apart(own, reference).sum(), target.sum()]).float()
    moved, away, count = pipe.gather(found[None]).sum(dim=0).tolist()
    _judge(moved / max(count, 1), away / max(count, 1), model, pipe)


def _apart(left: Tensor, right: Tensor) -> Tensor:
    """Two log-probabilities of -inf are equal."""
    return torch.where(left == right, 0.0, (left - right).abs())


def _judge(moved: float, away: float, model: nn.Module, pipe: Pipeline) -> None:
    limit = tolerance(model, pipe)
    name = describe(model.peft_config[model.active_adapter]) if is_peft(model) else type(model).__name__
    rounding = f"on average, where rounding explains {limit:g}"
    if not moved <= limit:
        raise ValueError(
            f"{name}: the unmoved policy gives its answers log-probabilities that differ by {moved:.2g} nats in train mode from "
            f"those in eval mode {rounding}, so a ratio would not be 1 before the first step. Something draws noise in train "
            "mode: set every dropout of the adapter to 0 (module_dropout, rank_dropout ...), or train another adapter, such as "
            "LoRA; with disable_dropout=False dropout is not compared"
        )
    if not away <= limit:
        raise ValueError(
            f"{name}: the reference is not the policy that the run starts from, their log-probabilities differ by "
            f"{away:.2g} nats {rounding}, so the KL would pull towards another model. Train LoRA with init_lora_weights=True, or merge the "
            "adapter into the model and start from that, or set beta=0"
        )


def tolerance(model: nn.Module, pipe: Pipeline) -> float:
    """``EXACT`` where all is computed in fp32 and as it stands, else ``ROUNDED``."""
    args = pipe.args
    coarse = args.bf16 or args.fp16 or args.torch_compile or getattr(model, "is_quantized", False)
    base = model.get_base_model() if is_peft(model) else model
    coarse = coarse or (isinstance(base, PreTrainedModel) and getattr(base, "is_quantized", False))
    return ROUNDED if coarse or any(own.dtype.itemsize < 4 for own in model.parameters()) else EXACT

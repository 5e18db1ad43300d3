"""Training runs on one or several processes under each of accelerate's engines, small enough for a test."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import accelerate
import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from packaging.version import Version
from peft import LoraConfig
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, training_args

import unigrpo.config.arguments
from unigrpo import UniGRPOConfig, UniGRPOTrainer
from unigrpo.errors import NonFiniteError, RewardError
from unigrpo.rollout.rewards import RewardSet
from unigrpo.training.engines import FSDP2_NEEDS, engine_of
from unigrpo.training.evaluation import held_out_answers
from unigrpo.training.window import Window

from .images import options, picture
from .runs import adapted as trained_adapter
from .tiny import TRAINING, low_ids, prompts, tiny_model, tiny_processor


MIXED_WORDS = (2, 70, 5)
"""Prompt lengths in two buckets, so that units differ between processes."""


def deepspeed_config(stage: int) -> dict[str, Any]:
    """ZeRO on processors: torch's own optimizer, nothing offloaded."""
    return {
        "zero_optimization": {"stage": stage},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


NEEDS_FSDP2 = pytest.mark.skipif(
    Version(accelerate.__version__) < Version(FSDP2_NEEDS),
    reason=f'an older accelerate is refused: pip install "accelerate>={FSDP2_NEEDS}"',
)
NEEDS_CPU_0 = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.12"),
    reason="torch 2.11 cannot load an optimizer that one of several processes saved on the device cpu:0",
)
ENGINES = ["ddp", pytest.param("fsdp2", marks=NEEDS_FSDP2)]


DIVIDED = (
    *("kl", "entropy", "clip_ratio/region_mean", "ratio/mean", "ratio/max", "num_completion_tokens"),
    *(f"completions/{kind}_length" for kind in ("mean", "min", "max")),
    *("completions/clipped_ratio", "sampling/sampling_logp_difference/mean", "mask_ratio/0.4-0.6", "reward", "reward_std"),
)  # fmt: skip
"""Metrics that do not depend on how rows are divided."""


class Watched(UniGRPOTrainer):
    """A trainer that keeps what it saw: token ids by window and row, dtypes of scores, gradients by step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.rollouts: list[dict[int, list[int]]] = []
        self.dtypes: set[str] = set()
        self.tasks: list[list[str]] = []
        self.lengths: dict[int, int] = {}
        self.idle_rows = 0
        super().__init__(*args, **kwargs)

    def _show_window(self, window: Window) -> None:
        rows = window.experiences
        self.rollouts.append({row.index: row.ids.tolist() for row in rows})
        self.tasks.append(sorted({row.task for row in rows}))
        self.lengths |= {row.index: int(row.completion_mask.sum()) for row in rows}
        self.idle_rows += sum(row.advantage == 0 for row in rows)

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        scores = outputs["scores"]
        self.dtypes |= {str(own.dtype) for own in (scores.logps, scores.entropy, scores.kl) if own is not None}
        return (loss, outputs) if return_outputs else loss


class Sharding:
    """Has accelerate shard a trainer with FSDP2, which it leaves out on processors without a word."""

    def create_accelerator_and_postprocess(self) -> None:
        original = Trainer.create_accelerator_and_postprocess

        def with_plugin(trainer: Trainer) -> None:
            original(trainer)
            plugin = FullyShardedDataParallelPlugin(
                fsdp_version=2,
                auto_wrap_policy="transformer_based_wrap",
                cpu_ram_efficient_loading=False,
                state_dict_type="FULL_STATE_DICT",
                reshard_after_forward=True,
            )
            if trainer.args.bf16:
                plugin.set_mixed_precision("bf16")
            AcceleratorState._shared_state["fsdp_plugin"] = plugin
            for state in (AcceleratorState, PartialState):
                state._shared_state["distributed_type"] = DistributedType.FSDP
            trainer.is_fsdp_enabled = True

        with patch.object(Trainer, "create_accelerator_and_postprocess", with_plugin):
            super().create_accelerator_and_postprocess()


class Sharded(Sharding, Watched):
    """A sharded run of reinforcement learning."""


class Gradients(TrainerCallback):
    """Whole gradients at every optimizer step, gathered where they are sharded."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs: Any) -> None:
        found = {name: own.grad for name, own in model.named_parameters() if own.grad is not None}
        self.steps.append({plain(name): whole(value).clone() for name, value in found.items()})


def plain(name: str) -> str:
    """A parameter's name without the engine's wrapper."""
    return name.removeprefix("module.")


def whole(value: Tensor) -> Tensor:
    """The full tensor behind a shard."""
    value = value.detach()
    return value.full_tensor() if hasattr(value, "full_tensor") else value


@contextlib.contextmanager
def on_processors(engine: str) -> Iterator[None]:
    """accelerate's state fresh, and DeepSpeed allowed where accelerate would not look for processes without a GPU."""
    AcceleratorState._reset_state(reset_partial_state=True)
    if not engine.startswith("zero"):
        yield
        return
    backend = lambda state, *args, **kwargs: ("gloo", DistributedType.MULTI_CPU)  # noqa: E731
    # bf16 without a GPU is refused unless use_cpu is set, which would keep DeepSpeed away.
    allowed = (
        patch.object(unigrpo.config.arguments, "check_engine"),
        patch.object(training_args, "is_torch_bf16_gpu_available"),
    )
    with patch.object(PartialState, "_prepare_backend", backend), allowed[0], allowed[1]:
        yield


def equal_at_first(prompts, completions, completion_ids, **_):
    """Every answer to the window's first prompt is worth the same; the others are worth their share of even ids."""
    dense = low_ids(prompts, completions, completion_ids)
    return [0.5 if prompt == "w0 w1" else value for prompt, value in zip(prompts, dense, strict=True)]


def given_answers(arguments: dict[str, Any]) -> list[dict[str, str]]:
    """Rows with answers of several lengths for the auxiliary loss; as many a micro-step as there are sampled ones."""
    arguments["sft_batch_size"] = arguments["per_device_train_batch_size"]
    rows = prompts(9)
    for number, row in enumerate(rows):
        row["completion"] = " ".join(f"w{number + i}" for i in range(1 + number % 5))
    return rows


def make(engine: str, lora: bool = False, tasks: list[str] | None = None, count: int = 16, **changes: Any) -> Watched:
    """The trainer of a tiny run over ``count`` rows; ``tasks`` are those of the rows, in order."""
    arguments = {"output_dir": tempfile.mkdtemp(), **TRAINING, **changes}
    if engine.startswith("zero"):
        arguments.pop("use_cpu")
        arguments["deepspeed"] = deepspeed_config(int(engine[-1]))
    rows = prompts(count, MIXED_WORDS)
    if tasks is not None:
        arguments = {**options("text", 0), **arguments}
        arguments.pop("rows")
        for number, (row, task) in enumerate(zip(rows, tasks, strict=True)):
            row |= {"task": task, "image": picture(number) if task == "mmu" else None}
    stop_ids = arguments.pop("stop_ids", None)
    given = given_answers(arguments) if "sft_weight" in arguments else None
    reward = globals()[arguments.pop("reward", "low_ids")]
    dtype = getattr(torch, arguments.pop("dtype", "float32"))
    from_adapter = arguments.pop("from_adapter", False)
    args = UniGRPOConfig(**arguments)
    model = trained_adapter() if from_adapter else tiny_model(dtype)
    model.load_again = partial(tiny_model, dtype)
    trainer = (Sharded if engine == "fsdp2" else Watched)(
        model,
        reward,
        args,
        rows,
        processing_class=tiny_processor(),
        peft_config=LoraConfig(r=4) if lora else None,
        callbacks=[gradients := Gradients()],
        sft_dataset=given,
    )
    if stop_ids is not None:
        trainer.policy.stop_token_ids = tuple(stop_ids)
    trainer.gradients = gradients
    return trainer


def weights(trainer: Watched) -> dict[str, Tensor]:
    """The trained parameters, whole."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    trained = {name: own for name, own in model.named_parameters() if own.requires_grad}
    if any(hasattr(own, "ds_id") for own in trained.values()):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(trained.values())):
            return {name: own.detach().clone() for name, own in trained.items()}
    return {name: whole(own).clone() for name, own in trained.items()}


def history(trainer: Watched) -> list[tuple[float, float, float | None]]:
    """Loss, gradient norm and reward by step."""
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return [(log["loss"], float(log["grad_norm"]), log.get("reward")) for log in logs]


def precision(accelerator: Any) -> list[str]:
    """FSDP2's dtypes: of weights in a forward, of gradients between processes, of outputs."""
    policy = getattr(getattr(accelerator.state, "fsdp_plugin", None), "mixed_precision_policy", None)
    return (
        [] if policy is None else [str(own) for own in (policy.param_dtype, policy.reduce_dtype, policy.output_dtype)]
    )


def train(rank: int, engine: str, resume: str | None = None, **arguments: Any) -> dict[str, Any]:
    """A whole run, and what it left on this process."""
    with on_processors(engine):
        trainer = make(engine, **arguments)
        trainer.train(resume_from_checkpoint=resume)
        logs = [log for log in trainer.state.log_history if "loss" in log]
        return {
            "engine": engine_of(trainer.accelerator, trainer.model_wrapped),
            "dtensors": sum(type(own).__name__ == "DTensor" for own in trainer.model.parameters()),
            "engine_dtype": str(getattr(trainer.model_wrapped, "communication_data_type", None)),
            "precision": precision(trainer.accelerator),
            "history": history(trainer),
            "first": {name: logs[0].get(name) for name in ("kl", "ratio/max", "ratio/mean")},
            "metrics": [{name: log[name] for name in DIVIDED if name in log} for log in logs],
            "rollouts": trainer.rollouts,
            "tasks": trainer.tasks,
            "lengths": trainer.lengths,
            "idle_rows": trainer.idle_rows,
            "gradients": trainer.gradients.steps,
            "weights": weights(trainer),
            "dtypes": sorted(trainer.dtypes),
        }


def evaluate(rank: int, engine: str, batch: int) -> dict[str, Any]:
    """Held-out answers after two steps of training, and the sizes of the batches that this process scored."""
    sizes: list[int] = []

    def counted(prompts, completions, completion_ids, **_):
        sizes.append(len(completions))
        return low_ids(prompts, completions, completion_ids)

    with on_processors(engine):
        trainer = make(
            engine, max_steps=2, per_device_train_batch_size=batch, per_device_eval_batch_size=2, eval_temperature=1.0
        )
        trainer.train()
        trainer.rewards.functions[0] = counted
        rows = prompts(7, MIXED_WORDS)
        samples = held_out_answers(trainer.pipeline(), rows, 1, 2)
        seen = list(sizes)
        metrics = trainer.evaluate(rows)
        metrics = {name: own for name, own in metrics.items() if "time" not in name}
        return {
            "ids": [sample.rollout.canvas.ids[0].tolist() for sample in samples],
            "sizes": [size for size in seen if size],
            "metrics": metrics,
        }


def resumed(rank: int, engine: str, folder: str, **arguments: Any) -> dict[str, Any]:
    """A run of four steps and one that goes on from its second, in the middle of a rollout window."""
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "output_dir": folder}
    with on_processors(engine):
        whole_run = make(engine, **saving, **arguments)
        whole_run.train()
        expected, final = history(whole_run), weights(whole_run)
    with on_processors(engine):
        again = make(engine, **{**saving, "save_strategy": "no"}, **arguments)
        again.train(resume_from_checkpoint=f"{folder}/checkpoint-2")
        return {
            "files": sorted(path.name for path in Path(folder, "checkpoint-2").iterdir()),
            "windows": len(again.rollouts),
            "expected": expected,
            "history": history(again),
            "weights": [final, weights(again)],
        }


def diverging(rank: int, engine: str, what: str, folder: str) -> dict[str, Any]:
    """A run whose loss or gradient turns infinite on the second process in its third step, and what the error says."""
    with on_processors(engine):
        trainer = make(engine, output_dir=folder)
        real = trainer.compute_loss

        def compute_loss(model, inputs, return_outputs=False, **kwargs):
            loss, outputs = real(model, inputs, return_outputs=True)
            if trainer.state.global_step == 2 and rank == 1:
                if what == "loss":
                    outputs["terms"].losses.data[0] = torch.inf
                loss = loss * torch.inf
            return loss, outputs

        trainer.compute_loss = compute_loss
        try:
            trainer.train()
        except NonFiniteError as error:
            return {"error": str(error), "steps": trainer.state.global_step}
        return {"error": "", "steps": trainer.state.global_step}


def failing_evaluation(rank: int, on_error: str) -> dict[str, Any]:
    """Held-out answers of four batches, of which the last process's last one makes the second reward raise."""

    def one(completions, **_):
        return [1.0] * len(completions)

    def fails(completions, solution, **_):
        if "6" in solution:
            raise RuntimeError("not this one")
        return [1.0] * len(completions)

    with on_processors("ddp"):
        trainer = make("ddp", max_steps=1, per_device_eval_batch_size=2, reward_error=on_error)
        trainer.rewards = RewardSet(functions=[one, fails], on_error=on_error)
        try:
            found = trainer.evaluate(prompts(8, MIXED_WORDS))
        except RewardError as error:
            return {"error": str(error)}
        return {"error": "", **{name: value for name, value in found.items() if "reward" in name}}

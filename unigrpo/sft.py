"""``MaskedDenoisingTrainer``: fine-tuning on given answers, on ``transformers.Trainer``."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback

from .config.denoising_arguments import MaskedDenoisingConfig
from .data.image_codes import ImageCodec
from .models import DiffusionPolicy
from .training import setup
from .training.batches import Unit
from .training.callbacks import add_callbacks
from .training.card import objective_lines
from .training.check_given import CheckedGiven, prefix_of
from .training.checkpoints.identity import described_denoising
from .training.checkpoints.window_checkpoints import WindowCheckpoints
from .training.compiling import compile_blocks
from .training.engines import accumulating, settle_precision
from .training.finite import FiniteGuard
from .training.generating import Generates
from .training.given import Writer
from .training.given_step import GivenStep, Place, given_step, unit_sums
from .training.held_out_loss import held_out_loss
from .training.inherited_methods import RefusedMethods
from .training.metrics import Metrics
from .training.mixture import Mixture
from .training.stopping import StoppableRun
from .types import keyed_generator


class MaskedDenoisingTrainer(CheckedGiven, WindowCheckpoints, StoppableRun, Generates, RefusedMethods, Trainer):
    """Trains a masked-diffusion policy on given answers: MMaDA's and LLaDA's pre-training and fine-tuning losses.

    Args:
        model: hub id, path, ``PreTrainedModel`` or ``PeftModel``.
        args: the run's arguments; ``args.objective`` names the losses.
        train_dataset: rows as ``data.given.given_of`` reads them, or ``{source: rows}``, mixed by ``args.sampling_weights``. Rows
            are a dataset, a list, a DataFrame or a path.
        eval_dataset: held-out rows of the same kind, or a dict of such sets.
        processing_class: the policy's tokenizer or processor; None = the one saved beside the model.
        callbacks, optimizers: as in ``transformers.Trainer``.
        peft_config: adapter to train instead of the whole model.
        policy: name in ``POLICIES``, ``pkg.mod:attr`` or a class; None = found from the model.

    Raises:
        ValueError: a configuration that cannot train, or a row that cannot be written, before anything runs.
    """

    args: MaskedDenoisingConfig  # type: ignore[assignment]  # what the mixins read of it, it has
    train_dataset: Any
    eval_dataset: Any
    _tag_names = ["unigrpo", "diffusion-language-model", "sft"]
    _datasets = ("train_dataset", "eval_dataset")
    _words = {"evaluates": "take the loss of given answers", "command": "sft"}
    _cure = "A lower learning_rate or max_grad_norm, or leaving these rows out may help"
    _curve = ("loss", "loss/text", "loss/mmu", "loss/t2i", "loss/r2i", "loss/thought", "loss/picture")

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: MaskedDenoisingConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        peft_config: PeftConfig | None = None,
        policy: str | type[DiffusionPolicy] | None = None,
    ) -> None:
        args = MaskedDenoisingConfig("unigrpo-sft-output") if args is None else copy.copy(args)
        shared: Any = args
        setup.check_arguments(shared)
        setup.settle_early_stopping(args, callbacks, "eval_loss")
        model, base, self.policy = setup.opened(model, args, policy, processing_class, peft_config is not None)
        self._image_tokenizer = setup.settle_tokenizer(args, base)
        self.args = args
        self.writer = Writer.of_run(self.policy, args, base.config.get_text_config().vocab_size)
        self._tasks: dict[str, set[str]] = {}
        sources = self._checked(train_dataset, "train_dataset")
        held_out = self._checked(eval_dataset, "eval_dataset") if eval_dataset is not None else {}
        self._check_best_metric(held_out)
        self.starts_from(model)
        model = setup.trainable(model, peft_config, shared, False, optimizers[0])
        if args.learning_rate is None:
            args.learning_rate = 1e-4 if isinstance(model, PeftModel) else 1e-5
        compile_blocks(shared, model)
        super().__init__(
            model=model,
            args=args,
            data_collator=list,  # type: ignore[arg-type]  # numbers of micro-steps
            train_dataset=sources or None,
            eval_dataset=held_out or None,
            processing_class=self.policy.processor,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self._micro_step, self._window, self._metrics = 0, None, Metrics()
        self._guard = FiniteGuard()
        self._fitted: dict[str, int] = {}
        self._step: tuple[int, GivenStep] | None = None
        self._mixture: Mixture | None = None
        if sources:
            sizes = {name: len(rows) for name, rows in sources.items()}
            seed = args.seed if args.data_seed is None else args.data_seed
            weights: Any = args.sampling_weights
            self._mixture = Mixture(sizes, weights, self._rows_per_step, seed, args.shuffle_dataset)
        self._progress = add_callbacks(self)
        if hasattr(model, "add_model_tags"):
            model.add_model_tags(self._tag_names)

    def create_accelerator_and_postprocess(self) -> None:
        """As in transformers, but accelerate does not compile the whole model: its blocks are compiled already."""
        backend, self.args.torch_compile_backend = self.args.torch_compile_backend, None
        super().create_accelerator_and_postprocess()
        self.args.torch_compile_backend = backend
        settle_precision(self.accelerator)

    # ---- data ----

    @property
    def _rows_per_step(self) -> int:
        """Rows of an optimizer step on all processes."""
        args = self.args
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size

    def get_train_dataloader(self) -> DataLoader:
        """Micro-steps of an epoch, which is as many rows as all sources have; which rows, the mixture says."""
        if self._mixture is None:
            raise ValueError("train_dataset is None: give one to train")
        steps = max(sum(self._mixture.sizes.values()) // self._rows_per_step, 1)
        count = steps * self.args.gradient_accumulation_steps
        return DataLoader(range(count), collate_fn=list, generator=keyed_generator("loader", self.args.seed))  # type: ignore[arg-type]

    @property
    def codec(self) -> ImageCodec | None:
        """What turns pictures into codes and back; None before the first picture."""
        return self.writer.codec

    def _place(self) -> Place:
        accelerator = self.accelerator
        if self.writer.codec is not None:
            self.writer.codec.to(accelerator.device)
        return Place(
            rank=accelerator.process_index,
            ranks=accelerator.num_processes,
            gather=accelerator.gather,
            device=accelerator.device,
        )

    def _given(self, number: int) -> GivenStep:
        """The rows of optimizer step ``number``."""
        if self._step is None or self._step[0] != number:
            assert self._mixture is not None, "training has a dataset"
            args = self.args
            found = given_step(
                self.writer,
                self.train_dataset,
                self._mixture,
                number,
                self._place(),
                seed=args.seed,
                rows_per_batch=args.per_device_train_batch_size,
                micro_steps=args.gradient_accumulation_steps,
            )
            self._step = number, found
        return self._step[1]

    # ---- one micro-step ----

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-step: forward and backward of each unit. Gradients synchronise on the last unit only."""
        number, part = divmod(self._micro_step, self.args.gradient_accumulation_steps)
        with self._metrics.timed("time/rows"):
            given = self._given(number)
        model.train()
        total = torch.zeros((), device=self.args.device)
        units = given.micro_batches[part]
        with self._metrics.timed("time/update"):
            for count, unit in enumerate(units, start=1):
                last = count == len(units)
                with accumulating(self.accelerator, model, last):
                    total += self._backward(model, given, unit, last)
        if self.is_deepspeed_enabled and self.accelerator.sync_gradients:
            self._stop_if_applied(model)
        self._micro_step += 1
        return total

    def _backward(self, model: nn.Module, given: GivenStep, unit: Unit, last: bool) -> Tensor:
        with self.compute_loss_context_manager():
            loss = self._unit_loss(model, given, unit)
        if last and self.is_deepspeed_enabled and self.accelerator.sync_gradients:
            # Its engine steps inside this backward: the loss is checked before, the gradient can only be checked after.
            self._stop_unless_finite(model, self._micro_step)
        # Engines divide by accumulation and by ranks; the loss is already the step's own share.
        engine = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
        self.accelerator.backward(loss, **engine)
        return loss.detach()

    def _unit_loss(self, model: nn.Module, given: GivenStep, unit: Unit) -> Tensor:
        """The unit's share of the optimizer step's loss, times the ranks, over which engines average."""
        task = given.experiences[unit.indices[0]].task
        total, sums = unit_sums(model, self.policy, given.experiences, unit, self.args.device)
        self._guard.check_given(sums, unit, given.experiences)
        if not unit.dummy:
            share = sum(given.shares[index] for index in unit.indices)
            self._metrics.add(f"loss/{task}", sums.sum() / max(share, 1.0), weight=max(share, 1.0))
        scale = self.writer.objectives[task].coefficient * self.accelerator.num_processes / given.divisors[task]
        return scale * total

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated: the batch of a micro-step is its number."""
        return 0

    # ---- logs, held-out loss ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the metrics collected since the last training log, averaged over ranks."""
        if "loss" in logs:
            logs = {**logs, **self._metrics.flush(gather_object)}
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The loss of held-out rows at fixed noise, and the evidence bound in nats a token; logged and returned.

        See ``held_out_loss``. A set of several gets its name between the prefix and the number.
        """
        found = self.eval_dataset if eval_dataset is None else self._checked(eval_dataset, "eval_dataset")
        if not found:
            raise ValueError("evaluate needs eval_dataset: give it to the trainer or to evaluate()")
        start = time.perf_counter()
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in self.measure(found).items()}
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - start
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measure(self, sets: Mapping[str, Any]) -> dict[str, float]:
        """``held_out_loss`` of checked ``sets``, under their names unless there is one; not logged."""
        found: dict[str, float] = {}
        for name, rows in sets.items():
            numbers = held_out_loss(
                self.writer,
                self.model_wrapped,
                rows,
                name,
                self._place(),
                draws=self.args.num_eval_draws,
                batch_size=self.args.per_device_eval_batch_size,
            )
            found |= {f"{prefix_of(name)}{key}": value for key, value in numbers.items()}
        return found

    # ---- checkpoints ----

    def _settings(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:  # type: ignore[override]
        return described_denoising(self.args, type(self.policy).__name__)

    def _method(self) -> tuple[list[str], str | None]:
        tasks = {task for own in self.train_dataset or {} for task in self._canvas_tasks(own)}
        return objective_lines(self.args.objective, self.args.objectives, tasks)

    @property
    def _moving_reference(self) -> None:
        return None

    def _check_norm(self, norm: Any) -> None:
        self._guard.check_norm(norm, [], {})

    def _window_sizes(self) -> dict[str, int]:
        names = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")
        return {name: getattr(self.args, name) for name in names}

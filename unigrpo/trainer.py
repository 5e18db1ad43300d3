"""``UniGRPOTrainer``: the reinforcement-learning loop on ``transformers.Trainer``."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback

from .config.arguments import UniGRPOConfig
from .config.build import build_algorithms
from .config.trl_keys import check_trainer_arguments
from .data.image_codes import ImageCodec
from .data.rows import check_dataset
from .models import DiffusionPolicy
from .models.lockstep import forwards_meet
from .models.reference import reference_context
from .rollout.model_reward import ModelReward
from .rollout.pipeline import Pipeline
from .training import evaluation, setup
from .training.batches import Batch, Unit, collate, score_batch
from .training.callbacks import add_callbacks, reference_update, reward_callbacks
from .training.check_datasets import CheckedDatasets, held_out_sets
from .training.checkpoints.window_checkpoints import WindowCheckpoints
from .training.compiling import compile_blocks
from .training.completions import save_completions, show_completions, track_completions
from .training.demonstrations import demonstration_loss, demonstrations
from .training.diagnostics import loss_metrics
from .training.engines import accumulating, check_same_graph, prepare_reference, reference_copy, settle_precision
from .training.experience import make_experience
from .training.finite import FiniteGuard
from .training.generating import Generates
from .training.inherited_methods import RefusedMethods
from .training.loader import WindowLoader, WindowSampler
from .training.metrics import Metrics
from .training.old_and_reference import exact_reference
from .training.old_policy import compared, without_moved_sampler
from .training.start import check_start
from .training.stopping import StoppableRun
from .training.window import Window
from .types import Experience, canvas_tasks, keyed_generator


class UniGRPOTrainer(CheckedDatasets, WindowCheckpoints, StoppableRun, Generates, RefusedMethods, Trainer):
    """Trains a masked-diffusion policy with MMaDA's UniGRPO (arXiv 2505.15809) or another algorithm of ``PRESETS``.

    Args:
        model: hub id, path, ``PreTrainedModel`` or ``PeftModel``.
        reward_funcs: one or a list of registry names, ``pkg.mod:attr``, sequence-classification models (id, path or
            module) or callables with TRL's protocol.
        args: the run's arguments.
        train_dataset: rows with ``prompt`` (or ``messages``) and any columns that rewards ask for; ``image`` or ``images`` makes
            a row a question about a picture, ``task="t2i"`` a caption to draw. A dataset, a list, a DataFrame or a path.
        eval_dataset: the same, or a dict of such sets.
        sft_dataset: rows with a given answer beside the prompt (``completion`` text; ``image`` for ``task="t2i"``) for the
            auxiliary denoising loss of weight ``sft_weight``.
        processing_class: the policy's tokenizer or processor; None = the one saved beside the model.
        reward_processing_classes: tokenizers of reward models, one entry a reward, None for functions.
        callbacks, optimizers: as in ``transformers.Trainer``.
        peft_config: adapter to train instead of the whole model.
        policy: name in ``POLICIES``, ``pkg.mod:attr`` or a class; None = found from the model.

    Raises:
        ValueError: a configuration that cannot train, before anything runs.
    """

    args: UniGRPOConfig
    train_dataset: Any
    eval_dataset: Any
    _tag_names = ["trl", "unigrpo", "diffusion-language-model"]

    def __new__(cls, *values: Any, **named: Any) -> UniGRPOTrainer:
        check_trainer_arguments(named, inspect.signature(cls.__init__).parameters)
        return super().__new__(cls)

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: Any,
        args: UniGRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        peft_config: PeftConfig | None = None,
        policy: str | type[DiffusionPolicy] | None = None,
        sft_dataset: Any = None,
    ) -> None:
        args = UniGRPOConfig("unigrpo-output") if args is None else copy.copy(args)
        setup.check_arguments(args)
        setup.settle_early_stopping(args, callbacks, "eval_reward")
        model, base, self.policy = setup.opened(model, args, policy, processing_class, peft_config is not None)
        args.take_lengths(getattr(base.config, "sampling_defaults", None))
        self.algorithms = build_algorithms(args)
        of_rewards = (args.reward_error, args.reward_timeout, args.offload_reward_models, args.reward_terms)
        self.rewards = setup.reward_set(reward_funcs, reward_processing_classes, args.reward_weights, *of_rewards)
        setup.warn_of_waits(args, self.rewards)
        setup.check_policy_keys(self.algorithms, self.policy)
        self.codec: ImageCodec | None = None
        self._image_tokenizer = setup.settle_tokenizer(args, base)
        self.args = args
        self._tasks: set[str] = set()
        train_dataset, eval_dataset = self._checked(train_dataset, eval_dataset)
        self.sft_dataset = self._checked_demonstrations(sft_dataset)
        self.starts_from(model)
        model = setup.trainable(model, peft_config, args, self._with_reference, optimizers[0])
        args.learning_rate = setup.default_learning_rate(args, isinstance(model, PeftModel))
        self._twin = reference_copy(model) if self._with_reference and not isinstance(model, PeftModel) else None
        compile_blocks(args, model, self._twin)
        super().__init__(
            model=model,
            args=args,
            data_collator=list,  # type: ignore[arg-type]  # prompts are no tensors yet
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=self.policy.processor,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        tasks = canvas_tasks(self._tasks)
        self._micro_step, self._window, self._metrics = 0, None, Metrics(by_task=len(tasks) > 1)
        self._guard, self._starts = FiniteGuard(), True
        self._fitted: dict[str, int] = {}
        check_same_graph(self.accelerator, self.algorithms, tasks)
        if self._twin is not None:
            self._twin = prepare_reference(self.accelerator, self._twin, args.sync_ref_model)
        for reward in (getattr(own, "reward", own) for own in self.rewards.functions):
            if isinstance(reward, ModelReward):
                reward.to(self.accelerator.device)
        self._reference = reference_context(model, lambda: self.model_wrapped, self._twin)
        if args.sync_ref_model:
            self.add_callback(reference_update(self._twin, self._with_reference, self.accelerator))
        for callback in reward_callbacks(args, self.rewards):
            self.add_callback(callback)
        self._progress = add_callbacks(self)
        if hasattr(model, "add_model_tags"):
            model.add_model_tags(self._tag_names)

    @property
    def _with_reference(self) -> bool:
        """Whether any task takes a KL to a reference model."""
        return any(algorithm.settings.needs_reference for algorithm in self.algorithms.values())

    def create_accelerator_and_postprocess(self) -> None:
        """As in transformers, but accelerate does not compile the whole model: its blocks are compiled already."""
        backend, self.args.torch_compile_backend = self.args.torch_compile_backend, None
        super().create_accelerator_and_postprocess()
        self.args.torch_compile_backend = backend
        settle_precision(self.accelerator)

    # ---- data ----

    def get_train_dataloader(self) -> WindowLoader:
        """Prompts of whole windows for this rank; accelerate must not shard them a second time."""
        if self.train_dataset is None:
            raise ValueError("train_dataset is None: give one to train")
        sampler = WindowSampler(len(self.train_dataset), self.args, self.accelerator.process_index)
        return WindowLoader(self.train_dataset, sampler)

    def _new_prompt(self, window: int, attempt: int, group: int) -> dict[str, Any]:
        generator = keyed_generator("refill", self.args.seed, window, attempt, group)
        return self.train_dataset[int(torch.randint(len(self.train_dataset), (), generator=generator))]

    def pipeline(self) -> Pipeline:
        """What ``make_experience`` and evaluation need of this trainer."""
        progress = self._progress
        return Pipeline(
            model=self.model_wrapped,
            policy=self.policy,
            args=self.args,
            rewards=self.rewards,
            algorithms=self.algorithms,
            reference=self._reference,
            gather=self.accelerator.gather,
            gather_objects=gather_object,
            new_prompt=self._new_prompt,
            rank=self.accelerator.process_index,
            ranks=self.accelerator.num_processes,
            device=self.accelerator.device,
            on_step=progress.on_rollout if progress is not None else None,
            trainer_state=self.state,
            codec=self.codec.to(self.accelerator.device) if self.codec is not None else None,
            forwards_meet=forwards_meet(self.model_wrapped),
            fitted=self._fitted,
        )

    # ---- one micro-step ----

    def training_step(self, model: nn.Module, inputs: list[dict], num_items_in_batch: Any = None) -> Tensor:  # type: ignore[override]  # prompts, no tensors
        """One micro-step: units of the current inner update, forward and backward each.

        The first micro-step of a window samples it. Gradients synchronise on the last unit only.
        """
        updates, steps = self._window_shape
        number, position = divmod(self._micro_step, updates * steps)
        if position == 0:
            self._window = self._new_window(inputs, number)
        k, step = divmod(position, steps)
        units = self._current.micro_batches[step]
        parts: list[Callable[[], Tensor]] = [partial(self._policy_loss, model, unit, k, step) for unit in units]
        if self.sft_dataset is not None:
            parts += self._denoising_losses(model)
        model.train()
        total = torch.zeros((), device=self.args.device)
        with self._metrics.timed("time/update"):
            for number, part in enumerate(parts, start=1):
                last = number == len(parts)
                with accumulating(self.accelerator, model, last):
                    total += self._backward(model, part, last)
        if self.is_deepspeed_enabled and self.accelerator.sync_gradients:
            # It has stepped by now; what could be known before was checked in ``_backward``.
            self._stop_if_applied(model)
        self._micro_step += 1
        return total

    def _new_window(self, prompts: list[dict], number: int) -> Window:
        """Samples and scores window ``number``, and shows it; the first one must be where the run says that it starts."""
        pipe, unscored = self.pipeline(), 0 if self._window is None else self._window.unscored
        window = make_experience(pipe, prompts, number, self._metrics, unscored)
        if self._starts and self.state.global_step == 0:
            check_start(pipe, self.accelerator.unwrap_model(self.model), window)
        self._starts = False
        self._show_window(window)
        return window

    def _backward(self, model: nn.Module, part: Callable[[], Tensor], last: bool) -> Tensor:
        with self.compute_loss_context_manager():
            loss = part()
        if last and self.is_deepspeed_enabled and self.accelerator.sync_gradients:
            # Its engine steps inside this backward: the loss is checked before, the gradient can only be checked after.
            self._stop_unless_finite(model, self._micro_step)
        # Engines divide by accumulation and by ranks; the loss is already the step's own share of the mean.
        engine = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
        self.accelerator.backward(loss, **engine)
        return loss.detach()

    def _policy_loss(self, model: nn.Module, unit: Unit, k: int, step: int) -> Tensor:
        window = self._current
        task = window.experiences[unit.indices[0]].task
        algorithm = self.algorithms[task]
        batch = collate(window.experiences, unit, k, self.policy, self.args.device, algorithm.mixes_draws)
        batch = replace(batch, tokens_per_row=window.tokens_per_row(algorithm.loss.loss_type, step, k, task))
        batch = without_moved_sampler(batch, self.args, k, step)
        loss, found = self.compute_loss(model, batch, return_outputs=True)
        self._guard.check_loss(found["terms"].losses.detach(), unit, window.experiences, k, window.table)
        if not unit.dummy:
            loss_metrics(self._metrics, algorithm, **found)
        return loss

    def _denoising_losses(self, model: nn.Module) -> list[Callable[[], Tensor]]:
        """The auxiliary term of this micro-step, one part a unit."""
        pipe = self.pipeline()
        experiences, units = demonstrations(pipe, self.sft_dataset, self._micro_step)
        return [partial(self._denoising_loss, pipe, model, experiences, unit) for unit in units]

    def _denoising_loss(self, pipe: Pipeline, model: nn.Module, experiences: list[Experience], unit: Unit) -> Tensor:
        loss, losses = demonstration_loss(pipe, model, experiences, unit)
        self._guard.check_given(losses, unit, experiences)
        if not unit.dummy:
            self._metrics.add("sft_loss", losses.mean(), weight=len(unit.indices))
        return loss

    def compute_loss(  # type: ignore[override]  # a batch of ours, no mapping
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, dict]:
        """The unit's share of the optimizer step's loss: a sum over its answers / (nominal answers of the step), times ranks.

        What it found on the way goes with it: the ``batch`` with what was compared, its ``scores``, the loss's ``terms``.
        """
        algorithm = self.algorithms[inputs.canvas.task]
        settings = algorithm.settings
        ref_logprobs = exact_reference(self._reference, self.policy, self.algorithms, inputs)
        law = (settings.temperature, settings.likelihood_guidance)
        scores = score_batch(model, self.policy, inputs, *law, ref_logprobs)
        batch = compared(inputs, scores, settings)
        terms = algorithm.loss(batch, scores)
        answers_per_step = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        loss = settings.loss_weight * (terms.losses * batch.scale).sum() / answers_per_step
        return (loss, {"batch": batch, "scores": scores, "terms": terms}) if return_outputs else loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated: the batch of a micro-step is a list of prompts or empty."""
        return 0

    # ---- logs ----

    def _show_window(self, window: Window) -> None:
        """The completions of a fresh window: a table, a parquet file, of pictures a contact sheet, and tables in trackers."""
        if not self.args.log_completions or not self.is_world_process_zero():
            return
        step = self.state.global_step
        show_completions(window.table, step, self.args.num_completions_to_print)
        save_completions(window.table, Path(str(self.args.output_dir)) / "completions", step)
        track_completions(window.table, step, list(self.args.report_to or ()), self.callback_handler.callbacks)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the metrics collected since the last training log, averaged over ranks."""
        if "loss" in logs:
            collected = self._metrics.flush(gather_object)
            tokens, seconds = collected.get("num_completion_tokens"), collected.get("time/rollout")
            if tokens and seconds:
                collected["tokens_per_second"] = tokens / seconds
            logs = {**logs, **collected}
        super().log(logs, start_time)

    # ---- held-out generation ----

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Answers to held-out prompts at ``eval_temperature``, scored with the run's rewards; logged and returned."""
        dataset = self.eval_dataset if eval_dataset is None else held_out_sets(eval_dataset)
        if isinstance(dataset, dict):
            results: dict[str, float] = {}
            for name, part in dataset.items():
                results |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return results
        if dataset is None:
            raise ValueError("evaluate needs eval_dataset: give it to the trainer or to evaluate()")
        if eval_dataset is not None:
            check_dataset(dataset, "eval_dataset", self._row_check(held_out=True), self._learn)
        start = time.perf_counter()
        pipe = self.pipeline()
        rows = [dataset[index] for index in range(len(dataset))]
        collected = Metrics()
        samples = evaluation.held_out_answers(
            pipe, rows, self.args.num_generations_eval, self.args.per_device_eval_batch_size, metrics=collected
        )
        metrics = evaluation.reward_summary(
            self.rewards, self.policy.stop_token_ids, samples, metric_key_prefix, collected
        )
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - start
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

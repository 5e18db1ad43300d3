"""``UniGRPOTrainer``: the reinforcement-learning loop on ``transformers.Trainer``."""

from __future__ import annotations

import contextlib
import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from . import evaluation
from .algorithms import build_algorithms
from .assembly import (
    default_learning_rate,
    load_codec,
    load_trainable,
    named_sets,
    reward_set,
    trainable,
)
from .buffer import load_window, save_window
from .callbacks import UniGRPOProgress, save_completions, show_completions
from .codec import ImageCodec
from .config import UniGRPOConfig, tokenizer_name
from .data import WindowLoader, WindowSampler, check_dataset, task_of, undecoded
from .experience import make_experience, rebuild_window
from .likelihood import score_tokens, token_logprobs
from .metrics import Metrics, loss_metrics
from .models import DiffusionPolicy, policy_class_of
from .reference import ADAPTER, frozen_copy, is_peft, reference_context, reload_trained_adapter
from .rewarding import ModelReward
from .rng import keyed_generator
from .sampling import Pipeline, check_prompt, evaluating
from .units import Batch, Unit, collate


REFERENCE_FILE = "reference_model.safetensors"


def window_file(checkpoint: str | Path, rank: int) -> Path:
    """Where a checkpoint keeps the rollout buffer of one rank."""
    return Path(checkpoint) / f"rollout_window_{rank}.safetensors"


class UniGRPOTrainer(Trainer):
    """Trains a masked-diffusion policy with MMaDA's UniGRPO (arXiv 2505.15809) or another algorithm of ``PRESETS``.

    Args:
        model: hub id, path, ``PreTrainedModel`` or ``PeftModel``.
        reward_funcs: one or a list of registry names, ``pkg.mod:attr``, sequence-classification models (id, path or
            module) or callables with TRL's protocol.
        args: the run's arguments.
        train_dataset: rows with ``prompt`` and any columns that rewards ask for; ``image`` or ``images`` makes a row a
            question about a picture, ``task="t2i"`` a caption to draw.
        eval_dataset: the same, or a dict of such sets.
        processing_class: the policy's tokenizer or processor; None = the one saved beside the model.
        reward_processing_classes: tokenizers of reward models, one entry a reward, None for functions.
        callbacks, optimizers: as in ``transformers.Trainer``.
        peft_config: adapter to train instead of the whole model.
        policy: name in ``POLICIES`` or ``pkg.mod:attr``; None = found from the model.

    Raises:
        ValueError: a configuration that cannot train, before anything runs.
    """

    _tag_names = ["trl", "unigrpo", "diffusion-language-model"]

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
        policy: str | None = None,
    ) -> None:
        args = UniGRPOConfig("unigrpo-output") if args is None else copy.copy(args)
        if args.n_gpu > 1:
            raise ValueError(f"{args.n_gpu} GPUs are visible to one process; start with `accelerate launch`")
        if args.ignore_data_skip:
            raise ValueError(
                "ignore_data_skip=True would resume a window with another window's prompts; leave it False"
            )
        if isinstance(model, str):
            model = load_trainable(model, policy, args.model_init_kwargs)
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        if args.attn_mask_mode is not None:
            base.config.attn_mask_mode = args.attn_mask_mode
        self.policy: DiffusionPolicy = policy_class_of(base, policy).from_model(base, processing_class)
        self.algorithms = build_algorithms(args)
        self.rewards = reward_set(reward_funcs, reward_processing_classes, args.reward_weights)
        self.codec: ImageCodec | None = None
        self._image_tokenizer, args.image_tokenizer = args.image_tokenizer, tokenizer_name(args.image_tokenizer)
        if isinstance(self._image_tokenizer, str) and hasattr(base.config, "image_tokenizer"):
            # Saved with the weights, so that pictures are decoded later by what they were trained with.
            base.config.image_tokenizer = self._image_tokenizer
        self.args = args
        train_dataset, eval_dataset = self._checked(train_dataset, eval_dataset)
        with_reference = any(algorithm.settings.needs_reference for algorithm in self.algorithms.values())
        model = trainable(model, peft_config, args, with_reference)
        args.learning_rate = default_learning_rate(args, isinstance(model, PeftModel))
        self._twin = frozen_copy(model) if with_reference and not isinstance(model, PeftModel) else None
        super().__init__(
            model=model,
            args=args,
            data_collator=list,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=self.policy.processor,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self._micro_step, self._window, self._metrics = 0, None, Metrics()
        if self._twin is not None:
            self._twin = self.accelerator.prepare_model(self._twin, evaluation_mode=True)
        for reward in self.rewards.functions:
            reward = getattr(reward, "reward", reward)
            if isinstance(reward, ModelReward):
                reward.model.to(self.accelerator.device)
        self._reference = reference_context(model, lambda: self.model_wrapped, self._twin)
        self._add_callbacks()
        if hasattr(model, "add_model_tags"):
            model.add_model_tags(self._tag_names)

    def _checked(self, train_dataset: Any, eval_dataset: Any) -> tuple[Any, Any]:
        """The datasets with their pictures left encoded, every row checked."""
        if train_dataset is not None:
            train_dataset = undecoded(train_dataset)
            check_dataset(train_dataset, "train_dataset", self._check_row)
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: undecoded(part) for name, part in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = undecoded(eval_dataset)
        for name, part in named_sets(eval_dataset):
            check_dataset(part, name, self._check_held_out_row)
        return train_dataset, eval_dataset

    def _check_row(self, row: dict[str, Any], where: str, held_out: bool = False) -> None:
        """A dataset row that this run cannot answer is an error; the first picture loads the image tokenizer."""
        if self.codec is None and task_of(row) != "text":
            self.codec = load_codec(self._image_tokenizer, self.policy)
        check_prompt(self.policy, self.args, self.codec, row, where, held_out)
        self.rewards.know_columns(row)

    def _check_held_out_row(self, row: dict[str, Any], where: str) -> None:
        self._check_row(row, where, held_out=True)

    def _add_callbacks(self) -> None:
        if self.args.sync_ref_model:
            if self._twin is None:
                raise ValueError(
                    "sync_ref_model=True does nothing with adapters: the reference is the model without them. Set it "
                    "to False, or train the whole model"
                )
            from trl import SyncRefModelCallback

            self.add_callback(SyncRefModelCallback(ref_model=self._twin, accelerator=self.accelerator))
        self._progress = None
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.remove_callback(PrinterCallback)
            self._progress = UniGRPOProgress()
            self.add_callback(self._progress)

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
            new_prompt=self._new_prompt,
            rank=self.accelerator.process_index,
            device=self.accelerator.device,
            on_step=progress.on_rollout if progress is not None else None,
            trainer_state=self.state,
            codec=self.codec.to(self.accelerator.device) if self.codec is not None else None,
        )

    # ---- one micro-step ----

    @property
    def _window_length(self) -> int:
        return self.args.steps_per_generation * self.args.num_iterations

    def training_step(self, model: nn.Module, inputs: list[dict], num_items_in_batch: Any = None) -> Tensor:
        """One micro-step: units of the current inner update, forward and backward each.

        The first micro-step of a window samples it. Gradients synchronise on the last unit only.
        """
        position = self._micro_step % self._window_length
        if position == 0:
            number = self._micro_step // self._window_length
            self._window = make_experience(self.pipeline(), inputs, number, self._metrics)
            self._show_window()
        k, step = divmod(position, self.args.steps_per_generation)
        units = self._window.micro_batches[step]
        model.train()
        total = torch.zeros((), device=self.args.device)
        with self._metrics.timed("time/update"):
            for number, unit in enumerate(units, start=1):
                last = number == len(units)
                with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                    total += self._backward(model, unit, k, step)
        self._micro_step += 1
        return total

    def _backward(self, model: nn.Module, unit: Unit, k: int, step: int) -> Tensor:
        task = self._window.rows[unit.rows[0]].task
        algorithm = self.algorithms[task]
        batch = collate(self._window.rows, unit, k, self.policy, self.args.device, algorithm.mixes_draws)
        batch = replace(batch, tokens_per_row=self._window.tokens_per_row(algorithm.loss.loss_type, step, k, task))
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, batch)
        # Engines divide by accumulation and by ranks; the loss is already the step's own share of the mean.
        engine = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
        self.accelerator.backward(loss, **engine)
        return loss.detach()

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, dict]:
        """The unit's share of the optimizer step's loss: a sum over rows / (nominal rows of the step), times ranks."""
        algorithm = self.algorithms[inputs.canvas.task]
        settings = algorithm.settings
        noisy = (inputs.canvas, inputs.hidden, inputs.target, inputs.noisy_ids)
        law = (settings.temperature, settings.likelihood_guidance)
        ref_logprobs = None
        if settings.exact_kl:
            with self._reference() as reference, evaluating(reference):
                ref_logprobs = token_logprobs(reference, self.policy, *noisy, *law)
        scores = score_tokens(model, self.policy, *noisy, *law, ref_logprobs)
        old_logps = scores.logps.detach() if inputs.old_logps is None else inputs.old_logps
        terms = algorithm.loss(
            scores.logps,
            old_logps,
            old_logps if settings.kl_reference == "old" else inputs.ref_logps,
            inputs.advantages,
            inputs.target,
            inputs.weight,
            inputs.completion_length,
            scores.kl,
            inputs.scored_tokens,
            inputs.tokens_per_row,
        )
        if bool(inputs.scale.any()):
            loss_metrics(self._metrics, terms, scores.entropy, inputs.target, settings.beta > 0)
        rows_per_step = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        loss = settings.loss_weight * (terms.rows * inputs.scale).sum() / rows_per_step
        return (loss, {"scores": scores, "terms": terms}) if return_outputs else loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated: the batch of a micro-step is a list of prompts or empty."""
        return 0

    # ---- logs ----

    def _show_window(self) -> None:
        """The completions of a fresh window, as a table, as a parquet file and, of pictures, as a contact sheet."""
        if not self.args.log_completions or not self.is_world_process_zero():
            return
        step = self.state.global_step
        show_completions(self._window.table, step, self.args.num_completions_to_print)
        save_completions(self._window.table, Path(self.args.output_dir) / "completions", step)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the metrics collected since the last training log, averaged over ranks."""
        if "loss" in logs:
            collected = self._metrics.flush()
            if self.accelerator.num_processes > 1:
                collected = self._mean_over_ranks(collected)
            tokens, seconds = collected.get("num_completion_tokens"), collected.get("time/rollout")
            if tokens and seconds:
                collected["tokens_per_second"] = tokens / seconds
            logs = {**logs, **collected}
        super().log(logs, start_time)

    def _mean_over_ranks(self, values: dict[str, float]) -> dict[str, float]:
        from accelerate.utils import gather_object

        ranks = gather_object([values])
        names = sorted({name for rank in ranks for name in rank})
        return {name: _mean([rank[name] for rank in ranks if name in rank]) for name in names}

    # ---- held-out generation ----

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Answers to held-out prompts at ``eval_temperature``, scored with the run's rewards; logged and returned."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):
            results = {}
            for name, part in dataset.items():
                results |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return results
        if dataset is None:
            raise ValueError("evaluate needs eval_dataset: give it to the trainer or to evaluate()")
        if eval_dataset is not None:
            dataset = undecoded(dataset)
            check_dataset(dataset, "eval_dataset", self._check_held_out_row)
        start = time.perf_counter()
        pipe = self.pipeline()
        rows = [dataset[index] for index in range(len(dataset))]
        samples = evaluation.held_out_answers(
            pipe, rows, self.args.num_generations_eval, self.args.per_device_eval_batch_size
        )
        metrics = evaluation.reward_summary(pipe, samples, metric_key_prefix)
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - start
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def prediction_step(self, *args: Any, **kwargs: Any):
        """Not used: ``evaluate`` generates and scores answers instead of predicting labels."""
        raise ValueError("predict() has no meaning for a policy; use evaluate(), or policy.generate() for answers")

    # ---- checkpoints ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Trainer's checkpoint plus this rank's rollout buffer and micro-step counter."""
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        inside = self._window is not None and self._micro_step % self._window_length > 0
        rows, order = (self._window.rows, self._window.order) if inside else ([], [])
        path = window_file(folder, self.accelerator.process_index)
        save_window(path, rows, order, self._micro_step, self._window_sizes())
        if self.args.sync_ref_model and self.args.should_save:
            twin = self.accelerator.unwrap_model(self._twin)
            save_file({name: value.contiguous() for name, value in twin.state_dict().items()}, folder / REFERENCE_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Also restores the place inside the window, which the weights alone cannot give back."""
        super()._load_optimizer_and_scheduler(checkpoint)
        self._micro_step, self._window = 0, None
        if checkpoint is None:
            return
        path = window_file(checkpoint, self.accelerator.process_index)
        if not path.exists():
            raise ValueError(f"{checkpoint} has no {path.name}: it was not written by this trainer with as many ranks")
        rows, order, self._micro_step, sizes = load_window(path)
        self._check_same_window(sizes, checkpoint)
        if rows:
            self._window = rebuild_window(self.pipeline(), rows, order)
        reference = Path(checkpoint) / REFERENCE_FILE
        if self.args.sync_ref_model and reference.exists():
            self.accelerator.unwrap_model(self._twin).load_state_dict(load_file(reference))

    def _window_sizes(self) -> dict[str, int]:
        """What the micro-step counter of a checkpoint counts in; a resumed run must agree."""
        names = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")
        names += ("num_generations", "num_iterations", "world_size")
        return {name: getattr(self.args, name) for name in names}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Also loads the trained adapter where a frozen copy of it lies beside: transformers 5.17 reads only that one."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if is_peft(self.model) and ADAPTER in self.model.peft_config:
            reload_trained_adapter(self.model, resume_from_checkpoint)

    def _check_same_window(self, sizes: dict[str, int], checkpoint: str) -> None:
        own = self._window_sizes()
        changed = {name: f"{value} there, {own[name]} here" for name, value in sizes.items() if value != own[name]}
        if changed:
            raise ValueError(
                f"{checkpoint} counts rollouts of another size: {changed}; resume with the same batch sizes, or start a "
                "new run from its weights"
            )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
